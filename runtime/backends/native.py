"""The step in native code, every other graph on onnxruntime: the fastest that a CPU does."""

from __future__ import annotations

import logging
from pathlib import Path

from runtime.backends.base import GraphRunner
from runtime.backends.ort import HostBuffer, OrtBackend
from runtime.errors import TargetUnavailable
from runtime.logs import event
from runtime.native.library import library
from runtime.native.step import NativeStep
from runtime.spec import GraphSpec

_log = logging.getLogger(__name__)


class NativeBackend:
    """Loads the graph "step" natively where it can, and says why where it cannot."""

    def __init__(self, threads: int | None = None, *, required: bool = False) -> None:
        """Choose the number of threads (default: `runtime.backends.ort.default_threads()`).

        Args:
            threads: of the step, and of each other graph.
            required: refuse a step that cannot run natively, instead of running it on onnxruntime.

        Raises:
            TargetUnavailable: the library was not built, and `required`.
        """
        self._other, self._required = OrtBackend(threads), required
        self.threads, self.reason = self._other.threads, ""  # reason: why onnxruntime runs the step, if it does
        self.step: NativeStep | None = None
        self.name = "native-cpu"  # what computes the step; saved states name it
        if required:
            library()

    def allocate(self, shape: tuple[int, ...], dtype: str) -> HostBuffer:
        """Return a zero-filled buffer."""
        return self._other.allocate(shape, dtype)

    def load(self, graph: GraphSpec, path: Path) -> GraphRunner:
        """Load one ONNX file.

        Raises:
            BundleError: the file is damaged, or onnxruntime refuses it.
            TargetUnavailable: a step that cannot run natively, where that is required.
        """
        if graph.name != "step":
            return self._other.load(graph, path)
        try:
            self.step = NativeStep(graph, path, self.threads)
        except TargetUnavailable as error:
            if self._required:
                raise
            self.reason, self.name = error.found, self._other.name
            event(_log, logging.INFO, "step_on_onnxruntime", f"onnxruntime runs the step: {self.reason}")
            return self._other.load(graph, path)
        event(_log, logging.INFO, "step_native", f"the step runs natively on {self.step.isa}", threads=self.threads)
        return self.step

    def close(self) -> None:
        """Release every graph. Safe to call twice."""
        if self.step is not None:
            self.step.close()
        self._other.close()
