"""The CPU kernel of the time mix (mixer.cpp) as a torch function; built with the C++ compiler at first use."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("mixer.cpp")
FLAGS = (
    "-O3",
    "-march=native",
    "-ffast-math",
    "-mprefer-vector-width=512",
    "-fopenmp",
    "-shared",
    "-fPIC",
    "-std=c++17",
)
ACTIVATIONS = ("r", "k", "v", "zw", "za", "zv", "gate", "first")
PARAMETERS = ("w0", "a0", "v0", "k_k", "k_a", "r_k", "ln_w", "ln_b", "start")


class _Args(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ACTIVATIONS + PARAMETERS] + [
        (name, ctypes.c_int64) for name in ("batch", "length", "heads", "stride")
    ]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel, or None where there is no C++ compiler or it fails."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        return None
    tag = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:16]
    target = Path(tempfile.gettempdir()) / f"visualrwkv-mixer-{os.getuid()}-{tag}.so"
    if not target.exists():
        building = target.with_suffix(f".{os.getpid()}")
        result = subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(building)], capture_output=True)
        if result.returncode:
            return None
        building.rename(target)
    return ctypes.CDLL(str(target))


def _args(tensors: dict[str, Tensor | None], batch: int, length: int, heads: int, stride: int) -> _Args:
    pointers = {name: None if t is None else t.data_ptr() for name, t in tensors.items()}
    return _Args(**pointers, batch=batch, length=length, heads=heads, stride=stride)


class Mixer(torch.autograd.Function):
    """(rkv bf16 [B, T, 3C], zw, za, zv, gate, first bf16 [B, T, C], parameters, state fp32 [B, H, N, N]) ->
    (bf16 [B, T, C], state). `zv` and `first`, layer 0's values, are None in layer 0; `rkv` may be a slice."""

    @staticmethod
    def forward(ctx: Any, rkv: Tensor, zw: Tensor, za: Tensor, zv: Tensor | None, gate: Tensor,
                first: Tensor | None, *parameters: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
        kernel = library()
        assert kernel is not None
        batch, length, triple = rkv.shape
        width = triple // 3
        start = parameters[-1].contiguous()
        saved: list[Tensor | None] = [rkv, *(None if t is None else t.contiguous() for t in (zw, za, zv, gate, first))]
        saved += [*(None if p is None else p.detach().contiguous() for p in parameters[:-1]), start]
        ctx.save_for_backward(*saved)
        ctx.shape = (batch, length, start.shape[1], rkv.stride(1))
        out = torch.empty(batch, length, width, dtype=torch.bfloat16)
        last = torch.empty_like(start)
        args = Mixer._pack(saved, ctx.shape)
        kernel.mixer_forward(ctypes.byref(args), ctypes.c_void_p(out.data_ptr()), ctypes.c_void_p(last.data_ptr()),
                             torch.get_num_threads())  # fmt: skip
        return out, last

    @staticmethod
    def _pack(saved: Sequence[Tensor | None], shape: tuple[int, int, int, int]) -> _Args:
        rkv, zw, za, zv, gate, first, *rest = saved
        assert rkv is not None
        batch, length, heads, stride = shape
        step = heads * 64 * rkv.element_size()
        tensors: dict[str, Tensor | None] = dict(zip(PARAMETERS, rest, strict=True))
        tensors |= {"zw": zw, "za": za, "zv": zv, "gate": gate, "first": first}
        args = _args(tensors, batch, length, heads, stride)
        args.r, args.k, args.v = (rkv.data_ptr() + i * step for i in range(3))
        return args

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kernel = library()
        assert kernel is not None
        d_out, d_last = grads
        saved = list(ctx.saved_tensors)
        batch, length, heads, _ = ctx.shape
        width, threads = heads * 64, torch.get_num_threads()
        bf16 = torch.bfloat16
        d_rkv = torch.empty(batch, length, 3 * width, dtype=bf16)
        d_z = torch.empty(4, batch, length, width, dtype=bf16)
        d_first = torch.empty(batch, length, width, dtype=bf16)
        d_start, d_params = torch.empty_like(saved[-1]), torch.zeros(threads, 8, width)
        d_out = d_out.to(bf16).contiguous()
        d_last = None if d_last is None else d_last.contiguous()
        tensors = (d_out, d_last, d_rkv, d_z, d_first, d_start, d_params)
        pointers = [ctypes.c_void_p(None if t is None else t.data_ptr()) for t in tensors]
        kernel.mixer_backward(ctypes.byref(Mixer._pack(saved, ctx.shape)), *pointers, threads)
        params = d_params.sum(0)
        shaped = [None if p is None else g.view(p.shape) for p, g in zip(saved[6:-1], params, strict=True)]
        return (d_rkv, d_z[0], d_z[1], None if saved[3] is None else d_z[2], d_z[3],
                None if saved[5] is None else d_first, *shaped, d_start)  # fmt: skip
