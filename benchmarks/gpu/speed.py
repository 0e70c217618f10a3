"""How near the kernels are to the memory's limit, and prefill by length beside another implementation."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.gpu.correctness import rounded, series
from benchmarks.gpu.device import Buffer, Device
from benchmarks.gpu.kernels import CHUNKED, HALF, RECURRENT, Kernels

SIZES = {"0.1B": (12, 768), "0.4B": (24, 1024), "1.5B": (24, 2048)}


def copy_bandwidth(device: Device) -> float:
    """Return GB/s of a large device-to-device copy, read and written bytes counted: the limit of all below."""
    if device.dry:
        return 1.0
    torch = device.torch
    a = torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    a.random_()
    return 2 * a.numel() / device.seconds([lambda: b.copy_(a)]) / 1e9


def _sets(device: Device, nbytes: int) -> int:
    """Return how many input sets to rotate, so that what was read last time has left the cache."""
    return 2 if device.dry else max(2, int(4 * device.l2 / nbytes) + 1)


def products(device: Device, kernels: Kernels, bandwidth: float) -> list[dict[str, Any]]:
    """Return GB/s of the 8-bit product for the matrices of each size, at 1, 4 and 8 tokens."""
    shapes = (
        [(64, 32)] if device.dry else [(768, 768), (768, 3072), (1024, 4096), (2048, 2048), (2048, 8192), (8192, 2048)]
    )
    shapes += [] if device.dry else [(2048, 65536)]
    rows = []
    for inputs, outputs in shapes:
        for group in (0, 32):
            for tokens in (1,) if device.dry else (1, 4, 8):
                bytes_read = inputs * outputs + (4 * outputs * inputs // group if group else 4 * outputs)
                calls = []
                for n in range(_sets(device, bytes_read)):
                    scales = np.full(outputs * (inputs // group if group else 1), 0.01, np.float32)
                    buffers = [
                        device.normal((tokens, inputs), 1.0, n), device.bytes((outputs, inputs), n), device.put(scales),
                        device.new(2 * tokens * outputs),
                    ]  # fmt: skip
                    calls.append(kernels.matmul_w8((HALF, 0), (tokens, inputs, outputs), group, buffers))
                moved = bytes_read + 2 * tokens * (inputs + outputs)
                rows.append(_rate(f"matmul_w8 {inputs}->{outputs} group {group or 'none'} M={tokens}", moved,
                                  device.seconds(calls), bandwidth))  # fmt: skip
    return rows


def _inputs(
    device: Device, name: str, batch: int, length: int, heads: int, seed: int
) -> tuple[list[Buffer], list[Buffer]]:
    g = np.random.default_rng(seed)
    made = series(g, name, batch, length, heads, False)
    decays = (1,) if name == "wkv7" else (3, 4)
    kinds = ["float32" if i in decays or i == len(made) - 1 else "float16" for i in range(len(made))]
    buffers = [device.put(rounded(x, kind)[0]) for x, kind in zip(made, kinds, strict=True)]
    return buffers, [device.new(buffers[0].nbytes), device.new(buffers[-1].nbytes)]


def steps(device: Device, kernels: Kernels, bandwidth: float) -> list[dict[str, Any]]:
    """Return GB/s of one token of the recurrences, state read and written; large batches show the kernel itself."""
    rows = []
    for name in ("wkv7", "wkv6"):
        for heads, batch in [(1, 1)] if device.dry else [(12, 1), (32, 1), (32, 32), (32, 256)]:
            state = 4 * batch * heads * 64 * 64
            calls = []
            for n in range(min(_sets(device, 2 * state), 64)):
                buffers, outputs = _inputs(device, name, batch, 1, heads, n)
                calls.append(kernels.recurrence(name, (HALF, 0), (batch, 1, heads), buffers, outputs))
            moved = 2 * state + sum(one.nbytes for one in buffers[:-1]) + outputs[0].nbytes
            rows.append(_rate(f"{name} step B={batch} H={heads}", moved, device.seconds(calls), bandwidth))
    return rows


def prefill(device: Device, kernels: Kernels) -> list[dict[str, Any]]:
    """Return tokens/s of WKV-7 over a series, per layer: both kernels, and flash-linear-attention's where installed."""
    rows = []
    for heads in (1,) if device.dry else (12, 16, 32):
        for length in (40,) if device.dry else (64, 256, 1024, 4096):
            row: dict[str, Any] = {"case": f"wkv7 prefill H={heads} T={length}", "tokens_per_second": {}}
            for label, path in (("recurrent", RECURRENT), ("chunked", CHUNKED)):
                buffers, outputs = _inputs(device, "wkv7", 1, length, heads, 0)
                calls = [kernels.recurrence("wkv7", (HALF, 0), (1, length, heads), buffers, outputs, path)]
                row["tokens_per_second"][label] = length / device.seconds(calls)
            other = _flash_linear_attention(device, length, heads)
            if other is not None:
                row["tokens_per_second"]["flash-linear-attention"] = length / other
            rows.append(row)
    return rows


def _flash_linear_attention(device: Device, length: int, heads: int) -> float | None:
    """Return the seconds of the package's chunked Triton kernels on the same sizes, if it is installed."""
    if device.dry:
        return None
    try:
        from fla.ops.rwkv7 import chunk_rwkv7
    except ImportError:
        return None
    torch = device.torch
    made = series(np.random.default_rng(0), "wkv7", 1, length, heads, False)
    as_tensor = lambda x: torch.from_numpy(x).cuda().bfloat16()  # noqa: E731
    r, w, k, v, a, b = (as_tensor(x.reshape(1, length, heads, 64)) for x in made[:-1])
    state = torch.from_numpy(made[-1]).cuda().float()

    def call() -> None:
        chunk_rwkv7(r, w, k, v, a, b, scale=1.0, initial_state=state, output_final_state=True)

    with torch.no_grad():
        for _ in range(3):
            call()  # compiles and tunes
        return float(device.seconds([call]))


def _rate(case: str, moved: int, seconds: float, bandwidth: float) -> dict[str, Any]:
    rate = moved / seconds / 1e9
    return {"case": case, "microseconds": seconds * 1e6, "gb_per_second": rate, "of_copy": rate / bandwidth}
