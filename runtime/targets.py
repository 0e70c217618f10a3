"""Which backend runs on this machine."""

from __future__ import annotations

import logging

from runtime import tensorrt
from runtime.backends.base import Backend
from runtime.errors import ConfigError, TargetUnavailable
from runtime.logs import event

DEVICES = ("auto", "cpu", "native", "onnxruntime", "cuda", "tensorrt")
TARGETS = ("cpu", "cuda", *tensorrt.TARGETS)

_log = logging.getLogger(__name__)


def open_backend(device: str, target: str, threads: int | None) -> Backend:
    """Return a backend for `device`.

    Args:
        device: "auto" picks one for the bundle's `target`. "cpu" runs the step natively where the package was built
            with a compiler and knows the model, otherwise on onnxruntime. "native", "onnxruntime" (on the processor),
            "cuda" (onnxruntime on an NVIDIA GPU) and "tensorrt" insist. Bundles for a GPU run on the processor too,
            slowly, which "auto" does where there is none; the log says what was picked, and why not the others.
        target: what the bundle was exported for.
        threads: compute threads; None leaves one core free.

    Raises:
        ConfigError: no such device, or fewer than one thread.
        TargetUnavailable: the bundle was exported for a target that this version or machine cannot run, or what
            `device` insists on is not here.
    """
    if device not in DEVICES:
        raise ConfigError(f"device {device!r}", wanted=" or ".join(DEVICES))
    if threads is not None and threads < 1:
        raise ConfigError(f"threads = {threads}", wanted="at least 1")
    if target not in TARGETS:
        raise TargetUnavailable(
            f"the bundle was exported for target {target!r}",
            wanted=f"one of {', '.join(TARGETS)}",
            hint="python -m export --target cpu",
        )
    backend = _open(device, target, threads)
    event(_log, logging.INFO, "backend", f"{backend.name} runs the bundle", backend=backend.name, target=target)
    return backend


def _open(device: str, target: str, threads: int | None) -> Backend:
    if device == "tensorrt" or (device == "auto" and target in tensorrt.TARGETS):
        return _tensorrt(device, target, threads)
    if device == "cuda" or (device == "auto" and target == "cuda"):
        return _cuda(device, threads)
    return _cpu(device, threads)


def _cuda(device: str, threads: int | None) -> Backend:
    from runtime.backends.cuda import CudaBackend

    try:
        return CudaBackend()
    except TargetUnavailable as error:
        if device == "cuda":
            raise
        event(_log, logging.WARNING, "no_cuda", f"the processor runs the bundle: {error.found}", reason=error.found)
    return _cpu("cpu", threads)


def _tensorrt(device: str, target: str, threads: int | None) -> Backend:
    from runtime.backends.trt import TrtBackend

    if target not in tensorrt.TARGETS:
        raise TargetUnavailable(
            f"the bundle was exported for target {target!r}",
            wanted=f"one of {', '.join(tensorrt.TARGETS)}, for TensorRT",
            hint="python -m export --target tensorrt",
        )
    try:
        return TrtBackend(kind="tensorrt_rtx" if target == "rtx" else None)
    except TargetUnavailable as error:
        if device == "tensorrt":
            raise
        event(_log, logging.WARNING, "no_tensorrt", f"onnxruntime runs the bundle: {error.found}", reason=error.found)
    return _cpu("onnxruntime", threads)


def _cpu(device: str, threads: int | None) -> Backend:
    try:
        from runtime.backends.native import NativeBackend
        from runtime.backends.ort import OrtBackend
        from runtime.native.step import unavailable
    except ImportError as error:
        raise TargetUnavailable(f"onnxruntime is not installed: {error}", hint="pip install onnxruntime") from error
    if device == "native":
        return NativeBackend(threads, required=True)
    reason = "it was asked for" if device == "onnxruntime" else unavailable()
    if not reason:
        return NativeBackend(threads)
    event(_log, logging.INFO, "step_on_onnxruntime", f"onnxruntime runs the step: {reason}", reason=reason)
    return OrtBackend(threads)
