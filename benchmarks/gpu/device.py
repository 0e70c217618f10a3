"""Memory, timing and launching: on an NVIDIA GPU through PyTorch, or on the emulation, for a dry run."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Call = Callable[[], None]


class Buffer:
    """Memory on the device; `at` is its address."""

    def __init__(self, owner: Any, at: int, nbytes: int) -> None:
        self.owner, self.at, self.nbytes = owner, at, nbytes


class Emulation:
    """The CPU: addresses of NumPy arrays. Times mean nothing here."""

    name, dry = "emulation", True
    stream = ctypes.c_void_p(None)

    def put(self, array: Array) -> Buffer:
        """Copy an array to the device."""
        own = np.array(array, order="C")
        return Buffer(own, own.ctypes.data, own.nbytes)

    def new(self, nbytes: int) -> Buffer:
        """Return memory full of ones in every bit: NaN, whatever the float type."""
        return self.put(np.full(nbytes, 0xFF, np.uint8))

    def write(self, buffer: Buffer, array: Array) -> None:
        """Overwrite what the device holds, in place."""
        buffer.owner.reshape(-1).view(np.uint8)[:] = array.reshape(-1).view(np.uint8)

    def get(self, buffer: Buffer, dtype: str, shape: Sequence[int]) -> Array:
        """Return a copy of what the device holds."""
        return buffer.owner.reshape(-1).view(np.uint8).view(dtype).reshape(shape).copy()

    def normal(self, shape: Sequence[int], scale: float, seed: int) -> Buffer:
        """Return random float16 numbers."""
        return self.put((np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float16))

    def bytes(self, shape: Sequence[int], seed: int) -> Buffer:
        """Return random bytes from -127 to 127."""
        return self.put(np.random.default_rng(seed).integers(-127, 128, shape, np.int8))

    def synchronize(self) -> None:
        """Wait for the device."""

    def seconds(self, calls: Sequence[Call], repeats: int = 1) -> float:
        """Return the time of one call."""
        start = time.perf_counter()
        for call in calls:
            call()
        return (time.perf_counter() - start) / len(calls)

    def capture(self, calls: Sequence[Call]) -> Call:
        """Return one call that does them all."""

        def replay() -> None:
            for call in calls:
                call()

        return replay

    def about(self) -> dict[str, str]:
        """Return what the figures were taken on."""
        return {"device": "emulation on a CPU (dry run: no figure here means anything)"}


class Gpu:
    """The first NVIDIA GPU. Timed calls are captured into a CUDA graph and replayed between events."""

    dry = False

    def __init__(self) -> None:
        import torch

        self.torch = torch
        if not torch.cuda.is_available():
            raise SystemExit("no NVIDIA GPU that PyTorch can use; --dry-run shows the script on a CPU")
        torch.cuda.init()
        self.name = torch.cuda.get_device_name()
        self.capability = "".join(map(str, torch.cuda.get_device_capability()))
        self.l2 = torch.cuda.get_device_properties(0).L2_cache_size

    @property
    def stream(self) -> ctypes.c_void_p:
        """Return the stream that is current: a capture's own inside `capture`."""
        return ctypes.c_void_p(self.torch.cuda.current_stream().cuda_stream)

    def put(self, array: Array) -> Buffer:
        """Copy an array to the device."""
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8).copy()
        return self._of(self.torch.from_numpy(flat).cuda())

    def new(self, nbytes: int) -> Buffer:
        """Return memory full of ones in every bit: NaN, whatever the float type."""
        return self._of(self.torch.full((nbytes,), 0xFF, dtype=self.torch.uint8, device="cuda"))

    def write(self, buffer: Buffer, array: Array) -> None:
        """Overwrite what the device holds, in place."""
        flat = self.torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8).copy())
        buffer.owner.view(self.torch.uint8).reshape(-1).copy_(flat)

    def get(self, buffer: Buffer, dtype: str, shape: Sequence[int]) -> Array:
        """Return a copy of what the device holds."""
        host = buffer.owner.contiguous().view(self.torch.uint8).reshape(-1).cpu().numpy()
        return host.view(dtype).reshape(shape)

    def normal(self, shape: Sequence[int], scale: float, seed: int) -> Buffer:
        """Return random float16 numbers."""
        source = self.torch.Generator("cuda").manual_seed(seed)
        return self._of(self.torch.randn(*shape, generator=source, device="cuda", dtype=self.torch.float16).mul_(scale))

    def bytes(self, shape: Sequence[int], seed: int) -> Buffer:
        """Return random bytes from -127 to 127."""
        source = self.torch.Generator("cuda").manual_seed(seed)
        return self._of(
            self.torch.randint(-127, 128, tuple(shape), generator=source, device="cuda", dtype=self.torch.int8)
        )

    def synchronize(self) -> None:
        """Wait for the device."""
        self.torch.cuda.synchronize()

    def capture(self, calls: Sequence[Call]) -> Call:
        """Return the replay of a CUDA graph of all calls."""
        side = self.torch.cuda.Stream()
        with self.torch.cuda.stream(side):
            calls[0]()  # what is loaded on first use must not be part of the capture
        side.synchronize()
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph):
            for call in calls:
                call()
        replay: Call = graph.replay
        return replay

    def seconds(self, calls: Sequence[Call], repeats: int = 25) -> float:
        """Return the median time of one call, out of `repeats` replays of all of them."""
        return self.replayed(self.capture(calls), len(calls), repeats)

    def replayed(self, replay: Call, count: int, repeats: int = 25) -> float:
        """Return the median time of a replay, over `count`."""
        times = []
        for _ in range(3):
            replay()
        for _ in range(repeats):
            start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3 / count)
        return statistics.median(times)

    def about(self) -> dict[str, str]:
        """Return what the figures were taken on."""
        try:
            driver = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0]
        except OSError:
            driver = "unknown"
        return {
            "device": self.name,
            "capability": self.capability,
            "torch": self.torch.__version__,
            "cuda": str(self.torch.version.cuda),
            "driver": driver,
        }

    def _of(self, tensor: Any) -> Buffer:
        return Buffer(tensor, tensor.data_ptr(), tensor.numel() * tensor.element_size())


Device = Emulation | Gpu
