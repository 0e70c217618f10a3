"""Other engines on the same GPU, with a bundle that was brought along: onnxruntime's CUDA provider, and TensorRT.

Answers are compared with onnxruntime's CPU first. What is not installed, or refuses this GPU, is skipped with a reason.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.device import Device
from runtime import tensorrt
from runtime.backends.base import Backend
from runtime.backends.ort import OrtBackend
from runtime.bundle import Bundle
from runtime.engine import Engine
from runtime.errors import BundleError, TargetUnavailable

PROMPT, STEPS, PREFILL = 33, 64, 256
# Of the largest logit and the largest number of the state. Between engines products are rounded in another order, and
# onnxruntime's CPU rounds activations to 8 bits before codes, which the GPU does not.
LIMITS = {"fp32": 1e-3, "fp16": 1e-2, "int8": 5e-2, "int4": 5e-2}


class Skipped(Exception):
    """Why something was not tried."""


def onnxruntime(device: Device, folder: Path | None, steps: int) -> list[dict[str, Any]]:
    """Return checks and rates of the step on the CUDA provider: launched one by one, and replayed from a CUDA graph.

    Raises `Skipped` where there is no bundle, no onnxruntime-gpu, or no GPU that it can use.
    """
    bundle = _bundle(folder)

    def open_backend(record: bool) -> Callable[[], Backend]:
        def opened() -> Backend:
            if device.dry:
                return OrtBackend(1)
            from runtime.backends.cuda import CudaBackend

            return CudaBackend(record=record)

        return opened

    try:
        wanted = _answers(bundle, lambda: OrtBackend(1), STEPS)
        rows = [
            _row(f"onnxruntime CUDA, {label}", bundle, open_backend(record), wanted)
            for label, record in (("launched", False), ("recorded", True))
        ]
        plain, replayed = (_answers(bundle, open_backend(record), steps)[1] for record in (False, True))
    except TargetUnavailable as error:
        raise Skipped(error.found) from error
    equal = all(np.array_equal(plain[name], replayed[name]) for name in plain)
    rows.append(
        {"case": f"onnxruntime CUDA, {steps} recorded steps against launched ones", "equal": equal, "ok": equal}
    )
    return rows


def rtx(device: Device, folder: Path | None, library: Path) -> list[dict[str, Any]]:
    """Return what TensorRT-RTX does on this GPU: whether engines of the bundle load, and the step if one can be had.

    Raises `Skipped` where it is not installed, there is no bundle for it, or it has no engine for this GPU.
    """
    bundle = _bundle(folder)
    if bundle.manifest.target not in tensorrt.TARGETS:
        raise Skipped(f"the bundle was exported for target {bundle.manifest.target!r}, not for TensorRT")
    try:
        found = tensorrt.find("tensorrt_rtx")
        found.load_plugins(library)
        runtime = found.module.Runtime(found.module.Logger())
        rows: list[dict[str, Any]] = []
        for file in sorted(bundle.path.glob("*.engine")):
            loaded = runtime.deserialize_cuda_engine(file.read_bytes()) is not None
            rows.append({"case": f"{found.name} loads {file.name}", "loaded": loaded, "ok": True})

        def opened() -> Backend:
            from runtime.backends.trt import TrtBackend

            return TrtBackend(kind="tensorrt_rtx", library=library)

        return [*rows, _row(found.name, bundle, opened, _answers(bundle, lambda: OrtBackend(1), STEPS))]
    except (TargetUnavailable, BundleError) as error:
        raise Skipped(error.found) from error


def flash_linear_attention(device: Device) -> str:
    """Return "" where the package's kernels can be measured (`benchmarks.gpu.speed` does), else why not."""
    if device.dry:
        return "a dry run has no GPU"
    for name in ("triton", "fla.ops.rwkv7"):
        try:
            __import__(name)
        except ImportError as error:
            return f"{name}: {error}"
    return ""


def _bundle(folder: Path | None) -> Bundle:
    if folder is None:
        raise Skipped("no bundle was given (--bundle DIR, from python -m export --target cuda or rtx)")
    return Bundle.open(folder)


def _row(
    case: str, bundle: Bundle, opened: Callable[[], Backend], wanted: tuple[np.ndarray, dict[str, np.ndarray]]
) -> dict[str, Any]:
    """Compare with `wanted`, and time single tokens and a segment."""
    logits, state = _answers(bundle, opened, STEPS)
    pairs = [(logits, wanted[0]), *((state[name], wanted[1][name]) for name in state)]
    worst = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
    limit = LIMITS[bundle.manifest.precision]
    engine = Engine(bundle, opened())
    try:
        carried = engine.new_state()
        tokens = _tokens(bundle, PREFILL)
        engine.advance(tokens, carried), engine.advance(tokens[:1], carried), engine.advance(tokens[:1], carried)
        one = [_seconds(lambda: engine.advance(tokens[:1], carried)) for _ in range(50)]
        many = [_seconds(lambda: engine.advance(tokens, carried)) for _ in range(5)]
    finally:
        engine.close()
    return {
        "case": f"{case}: {bundle.manifest.name}", "error": worst, "limit": limit, "ok": bool(worst < limit),
        "tokens_per_second": 1 / statistics.median(one),
        "prefill_tokens_per_second": PREFILL / statistics.median(many),
    }  # fmt: skip


def _answers(bundle: Bundle, opened: Callable[[], Backend], steps: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return logits and state after a prompt and so many single tokens."""
    engine = Engine(bundle, opened())
    try:
        state = engine.new_state()
        engine.advance(_tokens(bundle, PROMPT), state)
        for token in _tokens(bundle, steps):
            logits = engine.advance([int(token)], state)
        return logits.copy(), {name: array.copy() for name, array in state.snapshot().arrays.items()}
    finally:
        engine.close()


def _tokens(bundle: Bundle, count: int) -> np.ndarray:
    return np.random.default_rng(5).integers(1, min(bundle.manifest.vocab_size, 500), count)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
