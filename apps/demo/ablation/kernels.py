"""What RWKV-6 does between its matrix products: a CPU kernel each (kernels.cpp), or plain torch anywhere else.

The kernels take bf16 activations on a CPU; they halve a training step there.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 64  # channels per head
SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-O3", "-march=native", "-ffast-math", "-mprefer-vector-width=512", "-shared", "-fPIC",
         "-std=c++17")  # fmt: skip
CHUNK = 16
NORM_EPS = 64e-5


def wkv6(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Run the recurrence from a zero state (RWKV-6, "Finch"; `export.ops.wkv6` has the formula).

    Args:
        r, k, v: [B, T, C], C = 64 H.
        w: [B, T, C] fp32, the logarithm of the decay, negative and of any size.
        u: [H, 64], the bonus of the current token.

    Returns:
        y [B, T, C] and the last state [B, H, key, value] fp32. bf16 inputs on a CPU give a bf16 y.
    """
    if _on_kernel(r):
        result: tuple[Tensor, Tensor] = _Recurrence.apply(r, k, v, w, u)
        return result
    return in_chunks(r.float(), k.float(), v.float(), w, u)


def in_chunks(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor, chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
    """The same in torch; decays between two positions of a chunk are formed pair by pair, so nothing overflows."""
    batch, length, width = r.shape
    heads = width // SIZE
    r, k, v, w = (x.view(batch, length, heads, SIZE).transpose(1, 2) for x in (r, k, v, w))
    state, out = r.new_zeros(batch, heads, SIZE, SIZE), []
    for start in range(0, length, chunk):
        rc, kc, vc, wc = (x[:, :, start : start + chunk] for x in (r, k, v, w))
        total = wc.cumsum(2)
        before = total - wc
        row = torch.arange(rc.shape[2], device=r.device)
        earlier = (row[:, None] > row)[..., None]
        gap = (before[:, :, :, None] - total[:, :, None]).masked_fill(~earlier, -torch.inf)
        scores = torch.einsum("bhtk,bhsk,bhtsk->bhts", rc, kc, gap.exp())
        bonus = (rc * kc * u[:, None]).sum(-1, keepdim=True)
        out.append(scores @ vc + bonus * vc + (rc * before.exp()) @ state)
        left = (total[:, :, -1:] - total).exp()
        state = total[:, :, -1].exp()[..., None] * state + (kc * left).mT @ vc
    return torch.cat(out, 2).transpose(1, 2).reshape(batch, length, width), state


def lerp(h: Tensor, fixed: Tensor, moved: Tensor | None = None) -> Tensor:
    """Token shift of every slot: h + (previous h - h) * (fixed + moved).

    Args:
        h: [B, T, C]; before its first position it is zero.
        fixed: [S, C].
        moved: [S, B T, C], or nothing.

    Returns:
        [S, B T, C] in the dtype of h.
    """
    if _on_kernel(h):
        result: Tensor = _Lerp.apply(h, fixed, moved)
        return result
    gap = (F.pad(h, (0, 0, 1, -1)) - h).flatten(0, 1)
    return torch.addcmul(h.flatten(0, 1), gap, fixed[:, None].to(h.dtype) + (0 if moved is None else moved))


def finish(y: Tensor, gate: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Group norm of [..., C] by head, times silu(gate)."""
    if _on_kernel(y) and gate.dtype == y.dtype:
        result: Tensor = _Finish.apply(y, gate, weight, bias)
        return result
    normed = F.layer_norm(y.float().unflatten(-1, (-1, SIZE)), (SIZE,), eps=NORM_EPS).flatten(-2)
    return ((normed * weight + bias) * F.silu(gate)).to(gate.dtype)


def _on_kernel(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and library() is not None


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel, or None where there is no C++ compiler or it fails."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        return None
    tag = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:16]
    target = Path(tempfile.gettempdir()) / f"visualrwkv-kernels-{os.getuid()}-{tag}.so"
    if not target.exists():
        building = target.with_suffix(f".{os.getpid()}")
        result = subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(building)], capture_output=True)
        if result.returncode:
            return None
        building.rename(target)
    return ctypes.CDLL(str(target))


def _pointers(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(None if t is None else t.data_ptr()) for t in tensors]


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        kernel = library()
        assert kernel is not None
        given = [x.detach().contiguous() for x in inputs]
        given[3:] = [x.float() for x in given[3:]]
        ctx.save_for_backward(*given)
        batch, length, width = given[0].shape
        ctx.sizes = [ctypes.c_int64(n) for n in (batch, length, width // SIZE)]
        y, last = torch.empty_like(given[0]), torch.empty(batch, width // SIZE, SIZE, SIZE)
        kernel.wkv6_forward(*_pointers(*given), *ctx.sizes, *_pointers(y, last))
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, ...]:
        kernel = library()
        assert kernel is not None
        given = list(ctx.saved_tensors)
        d_y, d_last = grads
        d_y = torch.zeros_like(given[0]) if d_y is None else d_y.to(torch.bfloat16).contiguous()
        d_last = None if d_last is None else d_last.float().contiguous()
        out = [torch.empty_like(x) for x in given[:4]] + [torch.zeros_like(given[4])]
        kernel.wkv6_backward(*_pointers(*given, d_y, d_last), *ctx.sizes, *_pointers(*out))
        return tuple(out)


class _Lerp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, fixed: Tensor, moved: Tensor | None) -> Tensor:
        kernel = library()
        assert kernel is not None
        h, fixed = h.detach().contiguous(), fixed.detach().float().contiguous()
        moved = None if moved is None else moved.detach().to(torch.bfloat16).contiguous()
        ctx.save_for_backward(h, fixed, moved)
        ctx.sizes = [ctypes.c_int64(n) for n in (*h.shape, len(fixed))]
        out = torch.empty(len(fixed), h.shape[0] * h.shape[1], h.shape[2], dtype=torch.bfloat16)
        kernel.lerp_forward(*_pointers(h, fixed, moved), *ctx.sizes, *_pointers(out))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kernel = library()
        assert kernel is not None
        h, fixed, moved = ctx.saved_tensors
        d_out = grads[0].to(torch.bfloat16).contiguous()
        d_h, d_fixed = torch.empty_like(h), torch.zeros_like(fixed)
        d_moved = None if moved is None else torch.empty_like(moved)
        kernel.lerp_backward(*_pointers(h, fixed, moved, d_out), *ctx.sizes, *_pointers(d_h, d_fixed, d_moved))
        return d_h, d_fixed, d_moved


class _Finish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        kernel = library()
        assert kernel is not None
        given = [x.detach().contiguous() for x in inputs]
        ctx.save_for_backward(*given)
        heads = given[0].shape[-1] // SIZE
        ctx.sizes = (ctypes.c_int64(given[0].numel() // SIZE // heads), ctypes.c_int64(heads), ctypes.c_float(NORM_EPS))
        out = torch.empty_like(given[0])
        kernel.finish_forward(*_pointers(*given), *ctx.sizes, *_pointers(out))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        kernel = library()
        assert kernel is not None
        y, gate, weight, bias = ctx.saved_tensors
        d_out = grads[0].to(torch.bfloat16).contiguous()
        out = [torch.empty_like(y), torch.empty_like(gate), torch.zeros_like(weight), torch.zeros_like(bias)]
        kernel.finish_backward(*_pointers(y, gate, weight, bias, d_out), *ctx.sizes, *_pointers(*out))
        return tuple(out)
