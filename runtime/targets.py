"""Which backend runs on this machine."""

from __future__ import annotations

from collections.abc import Callable

from runtime.backends.base import Backend
from runtime.errors import ConfigError, TargetUnavailable

DEVICES = ("auto", "cpu")


def open_backend(device: str, target: str, threads: int | None) -> Backend:
    """Return a backend for `device` ("auto" picks one for the bundle's `target`).

    Raises:
        ConfigError: no such device, or fewer than one thread.
        TargetUnavailable: the bundle was exported for a target that this version or machine cannot run.
    """
    if device not in DEVICES:
        raise ConfigError(f"device {device!r}", wanted=" or ".join(DEVICES))
    if threads is not None and threads < 1:
        raise ConfigError(f"threads = {threads}", wanted="at least 1")
    openers: dict[str, Callable[[int | None], Backend]] = {"cpu": _cpu}
    if target not in openers:
        raise TargetUnavailable(
            f"the bundle was exported for target {target!r}",
            wanted=f"one of {', '.join(openers)}",
            hint="python -m export --target cpu",
        )
    return openers[target](threads)


def _cpu(threads: int | None) -> Backend:
    try:
        from runtime.backends.ort import OrtBackend
    except ImportError as error:
        raise TargetUnavailable(f"onnxruntime is not installed: {error}", hint="pip install onnxruntime") from error
    return OrtBackend(threads)
