"""The whole decode step: against float64, captured against uncaptured, and against the memory's limit."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from benchmarks.gpu.decode import FORMATS, SIZES, TINY, Decoder, Size, reference
from benchmarks.gpu.device import Device
from benchmarks.gpu.torch_step import torch_seconds

# Of the largest value, after four tokens: activations are float16 between the products.
LIMIT = 3e-2


def check_steps(device: Device, library: ctypes.CDLL) -> list[dict[str, Any]]:
    """Return, for every format, the error of logits and state after four tokens of a small model."""
    rows = []
    for form in FORMATS:
        decoder = Decoder(device, library, TINY if device.dry else Size(4, 256, (64, 64, 32, 128), 1024), form)
        for n in range(4):
            decoder.step(n % 2)()
        device.synchronize()
        got, (logits, state) = decoder.snapshot(0), reference(decoder, 4)
        pairs = [(got["logits"], logits), (got["wkv"], state["wkv"].ravel()), (got["att"], state["att"].ravel())]
        errors = [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs]
        rows.append({"case": f"decode step {form}", "errors": errors, "limits": [LIMIT] * 3,
                     "ok": all(np.isfinite(e) and e < LIMIT for e in errors)})  # fmt: skip
    return rows


def captured(device: Device, library: ctypes.CDLL, steps: int = 2048) -> dict[str, Any]:
    """Return whether the state after `steps` replayed steps is that of uncaptured ones, bit for bit."""
    size = TINY if device.dry else SIZES["0.1B"]
    decoder = Decoder(device, library, size, "int8")
    for n in range(steps):
        decoder.step(n % 2)()
    device.synchronize()
    plain = decoder.snapshot(0)
    decoder.reset()
    replay = device.capture([decoder.step(0), decoder.step(1)])
    _rewind(decoder, device)  # capturing runs a step
    for _ in range(steps // 2):
        replay()
    device.synchronize()
    replayed = decoder.snapshot(0)
    equal = all(np.array_equal(plain[name], replayed[name]) for name in plain)
    finite = all(np.isfinite(one.astype(np.float32)).all() for one in plain.values())
    return {
        "case": f"{steps} captured steps against uncaptured",
        "equal": equal,
        "finite": finite,
        "ok": equal and finite,
    }


def measure(device: Device, library: ctypes.CDLL, bandwidth: float) -> list[dict[str, Any]]:
    """Return microseconds per token and the share of the copy bandwidth, for every size and format, beside PyTorch."""
    rows = []
    for name, size in ({"tiny": TINY} if device.dry else SIZES).items():
        for form in FORMATS:
            decoder = Decoder(device, library, size, form)
            seconds = device.seconds([decoder.step(0), decoder.step(1)])
            row: dict[str, Any] = {
                "case": f"decode {name} {form}", "microseconds": seconds * 1e6, "tokens_per_second": 1 / seconds,
                "bytes": decoder.bytes_per_token, "of_copy": decoder.bytes_per_token / seconds / 1e9 / bandwidth,
            }  # fmt: skip
            if form == "fp16" and not device.dry:
                row["pytorch_microseconds"] = {k: v * 1e6 for k, v in torch_seconds(device, decoder).items()}
            rows.append(row)
            del decoder
    return rows


def _rewind(decoder: Decoder, device: Device) -> None:
    """Empty the state where it lies: a captured graph knows addresses, so new memory would not do."""
    for two in decoder.state.values():
        for one in two:
            device.write(one, np.zeros(one.nbytes, np.uint8))
    device.write(decoder.working["token"], np.array([1], np.int32))
