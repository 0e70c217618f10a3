"""Every kernel against float64, on fresh random inputs; outputs are NaN before."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.device import Buffer, Device
from benchmarks.gpu.kernels import CHUNKED, RECURRENT, Kernels
from plugins_trt.matmul_w8.reference import matmul_w8, quantize
from plugins_trt.read_state.reference import read_state
from plugins_trt.wkv6.reference import wkv6
from plugins_trt.wkv7.reference import wkv7

Array = NDArray[Any]
TYPES = ("float32", "float16", "bfloat16")
# Of the largest value, by input type: y is rounded to it. The state: float32, or two bfloat16 terms in long series.
Y_LIMIT = {"float32": 4e-6, "float16": 6e-4, "bfloat16": 4e-3}
STATE_LIMIT = {RECURRENT: 2e-6, CHUNKED: 2e-5}


def rounded(x: Array, kind: str) -> tuple[Array, Array]:
    """Return `x` in a type, bfloat16 as its bits, and the float64 values of that."""
    if kind != "bfloat16":
        typed = np.ascontiguousarray(x, kind)
        return typed, typed.astype(np.float64)
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    short = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return short, widened(short, kind)


def widened(x: Array, kind: str) -> Array:
    """Return the float64 values of a typed array."""
    return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64) if kind == "bfloat16" else x.astype(float)


def series(g: np.random.Generator, name: str, batch: int, length: int, heads: int, repeat: bool) -> list[Array]:
    """Return plausible inputs of a recurrence; `repeat`: one key over and over, hardly any decay."""
    shape = (batch, length, heads, 64)
    r, k, v, w, key = (g.standard_normal(shape) for _ in range(5))
    state = g.standard_normal((batch, heads, 64, 64))
    flat = lambda x: x.reshape(batch, length, -1)  # noqa: E731
    if name == "wkv6":
        decay = np.full(shape, -1e-4) if repeat else -np.exp(2 * w - 1)
        return [flat(r), flat(k), flat(v), flat(decay), g.standard_normal((heads, 64)), state]
    if repeat:
        key = np.broadcast_to(key[:, :1], shape)
    kappa = key / np.linalg.norm(key, axis=-1, keepdims=True)
    decay = -0.6065 / (1 + np.exp(-(2 * w - (4 if repeat else 0))))
    rate = 1 / (1 + np.exp(-(g.standard_normal(shape) + (3 if repeat else 0))))
    return [flat(x) for x in (r, decay, k, v, -kappa, kappa * rate)] + [state]


def check_all(device: Device, kernels: Kernels, seed: int, quick: bool) -> list[dict[str, Any]]:
    """Return one row per case: what, the errors, their limits, whether within."""
    g = np.random.default_rng(seed)
    lengths = (1, 17, 40) if quick else (1, 2, 16, 17, 63, 256, 1000, 2048)
    rows = []
    for name in ("wkv6", "wkv7"):
        for kind in ("float16",) if quick else TYPES:
            for length in lengths:
                for path in (RECURRENT, CHUNKED):
                    rows.append(_recurrence(device, kernels, g, name, kind, length, path, 1 if quick else 2))
    sizes = (
        [(1, 64, 24), (20, 64, 24)] if quick else [(1, 2048, 2048), (3, 768, 3072), (8, 2048, 65), (577, 1024, 4096)]
    )
    for kind in ("float16",) if quick else TYPES:
        for tokens, inputs, outputs in sizes:
            for group in (0, 32, 64):
                rows.append(_product(device, kernels, g, kind, tokens, inputs, outputs, group))
        rows.append(_read_out(device, kernels, g, kind, 40 if quick else 577))
    return rows


def _read_out(device: Device, kernels: Kernels, g: np.random.Generator, kind: str, length: int) -> dict[str, Any]:
    shape, state = (2, length, 128), g.standard_normal((2, 2, 64, 64)).astype(np.float32)
    q, gate, y = (g.standard_normal(shape) for _ in range(3))
    typed, exact = zip(*(rounded(x, kind) for x in (q, np.maximum(gate, 0), y)), strict=True)
    out = device.new(typed[0].nbytes)
    kernels.read_state(TYPES.index(kind), (2, length, 2), [device.put(x) for x in (*typed, state)], out)()
    device.synchronize()
    error = _error(_read(device, out, kind, shape), read_state(*exact, state))
    case = f"read_state {kind} T={length}"
    return {"case": case, "errors": [error], "limits": [Y_LIMIT[kind]], "ok": error < Y_LIMIT[kind]}


def _recurrence(
    device: Device, kernels: Kernels, g: np.random.Generator, name: str, kind: str, length: int, path: int, batch: int
) -> dict[str, Any]:
    heads, repeat = (1, False) if device.dry else (3, bool(g.integers(2)))
    inputs = series(g, name, batch, length, heads, repeat)
    decays = (1,) if name == "wkv7" else (3, 4)
    kinds = ["float32" if i in decays or i == len(inputs) - 1 else kind for i in range(len(inputs))]
    typed, exact = zip(*(rounded(x, one) for x, one in zip(inputs, kinds, strict=True)), strict=True)
    buffers = [device.put(x) for x in typed]
    y, state = device.new(typed[0].nbytes), device.new(typed[-1].nbytes)
    kernels.recurrence(name, (TYPES.index(kind), 0), (batch, length, heads), buffers, [y, state], path)()
    device.synchronize()
    wanted = (wkv6 if name == "wkv6" else wkv7)(*exact)
    got = (_read(device, y, kind, wanted[0].shape), device.get(state, "float32", wanted[1].shape))
    errors = [_error(a, b) for a, b in zip(got, wanted, strict=True)]
    limits = [Y_LIMIT[kind], STATE_LIMIT[CHUNKED if path == CHUNKED and kind != "float32" else RECURRENT]]
    what = (
        f"{name} {kind} T={length} {'chunked' if path == CHUNKED else 'recurrent'}{' repeated key' if repeat else ''}"
    )
    return {
        "case": what,
        "errors": errors,
        "limits": limits,
        "ok": all(e < m for e, m in zip(errors, limits, strict=True)),
    }


def _product(
    device: Device,
    kernels: Kernels,
    g: np.random.Generator,
    kind: str,
    tokens: int,
    inputs: int,
    outputs: int,
    group: int,
) -> dict[str, Any]:
    codes, scales = quantize(g.standard_normal((outputs, inputs)), group)
    typed, exact = rounded(g.standard_normal((tokens, inputs)), kind)
    y = device.new(tokens * outputs * typed.itemsize)
    buffers = [device.put(typed), device.put(codes), device.put(scales), y]
    kernels.matmul_w8((TYPES.index(kind), 0), (tokens, inputs, outputs), group, buffers)()
    device.synchronize()
    error = _error(_read(device, y, kind, (tokens, outputs)), matmul_w8(exact, codes, scales))
    what = f"matmul_w8 {kind} {tokens}x{inputs}x{outputs} group {group or 'none'}"
    return {"case": what, "errors": [error], "limits": [Y_LIMIT[kind]], "ok": error < Y_LIMIT[kind]}


def _read(device: Device, buffer: Buffer, kind: str, shape: tuple[int, ...]) -> Array:
    return widened(device.get(buffer, "uint16" if kind == "bfloat16" else kind, shape), kind)


def _error(got: Array, wanted: Array) -> float:
    """Return the largest error over the largest value; NaN counts as infinite."""
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    return float(error) if np.isfinite(error) else float("inf")
