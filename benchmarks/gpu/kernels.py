"""The plugins' kernels as Python calls on device memory, and how the libraries for them are built."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plugins_trt
from benchmarks.gpu.device import Buffer, Call, Device
from plugins_trt.builder import cuda_commands, emulated_commands
from plugins_trt.toolchain import choose_architectures, find_compiler, find_nvcc

ROOT = Path(__file__).resolve().parents[2]
FLOAT, HALF, BF16 = range(3)
AUTOMATIC, RECURRENT, CHUNKED = range(3)
DECODE_SOURCES = ("plugins_trt/wkv7/launch.cu", "benchmarks/gpu/decode.cu")


class Kernels:
    """The plugin library's kernels."""

    def __init__(self, device: Device, folder: Path, built: Path | None = None) -> None:
        arch = None if device.dry else device.capability
        path = built or plugins_trt.build(emulate=device.dry, architectures=arch, out=folder)
        self.device, self.path, self.library = device, path, ctypes.CDLL(str(path))
        for name in ("vrwkv_wkv6_workspace", "vrwkv_wkv7_workspace"):
            getattr(self.library, name).restype = ctypes.c_size_t
        self._workspaces: dict[int, Buffer] = {}

    def recurrence(
        self, name: str, kinds: tuple[int, int], sizes: tuple[int, int, int], inputs: Sequence[Buffer],
        outputs: Sequence[Buffer], path: int = AUTOMATIC,
    ) -> Call:  # fmt: skip
        """Return a call of "wkv6" or "wkv7"; kinds: series and decay, sizes: batch, length, heads."""
        needed = getattr(self.library, f"vrwkv_{name}_workspace")(kinds[0], sizes[0], max(33, sizes[1]), sizes[2])
        if needed not in self._workspaces:
            self._workspaces[needed] = self.device.new(needed)
        room = ctypes.c_void_p(self._workspaces[needed].at)
        given, made = pointers(inputs), pointers(outputs)
        function = getattr(self.library, f"vrwkv_{name}")
        alive = (inputs, outputs)

        def call() -> None:
            assert alive  # addresses alone would not keep the memory
            check(function(*kinds, *sizes, given, made, room, path, self.device.stream))

        return call

    def read_state(self, kind: int, sizes: tuple[int, int, int], inputs: Sequence[Buffer], output: Buffer) -> Call:
        """Return a call of the image state's read-out; sizes: batch, length, heads; inputs: q, gate, y, state."""
        function, given = self.library.vrwkv_read_state, pointers(inputs)
        alive = (inputs, output)

        def call() -> None:
            assert alive  # addresses alone would not keep the memory
            check(function(kind, *sizes, given, ctypes.c_void_p(output.at), self.device.stream))

        return call

    def matmul_w8(
        self, kinds: tuple[int, int], sizes: tuple[int, int, int], group: int, buffers: Sequence[Buffer]
    ) -> Call:
        """Return a call of the product; kinds: series and scales, sizes: tokens, inputs, outputs; x codes scales y."""
        function = self.library.vrwkv_matmul_w8

        def call() -> None:
            data = [ctypes.c_void_p(one.at) for one in buffers]
            check(function(*kinds, *sizes, group, *data, self.device.stream))

        return call


def decode_library(device: Device, folder: Path) -> ctypes.CDLL:
    """Build and load the whole decode step (decode.cu)."""
    if device.dry:
        compile_one, link = emulated_commands(find_compiler(), ROOT, folder)
    else:
        nvcc = find_nvcc()
        chosen = choose_architectures(device.capability, nvcc)
        compile_one, link = cuda_commands(str(nvcc.path), chosen, ROOT, folder, None, None)
    objects = []
    for source in DECODE_SOURCES:
        command = compile_one(source)
        subprocess.run(command, check=True)
        objects.append(command[command.index("-o") + 1])
    out = folder / "libdecode.so"
    subprocess.run(link(objects, str(out)), check=True)
    return ctypes.CDLL(str(out))


def pointers(buffers: Sequence[Buffer]) -> Any:
    """Return an array of addresses."""
    return (ctypes.c_void_p * len(buffers))(*(one.at for one in buffers))


def check(error: int) -> None:
    """Raise if a launch failed."""
    if error:
        raise RuntimeError(f"a kernel call returned {error}")
