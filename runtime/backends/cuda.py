"""onnxruntime on an NVIDIA GPU: state stays on the device, and the one-token step is replayed from a CUDA graph.

A graph's main session takes every shape. It cannot be recorded: onnxruntime records no control flow, and segments run
through a Scan. For one token there is a second session, one for each number of sequences, in which every size is fixed:
that folds the branch for segments away when it is loaded. All sessions of a graph use the same weights in memory.

To record a run, onnxruntime makes it several times (to allocate, then to record). That does no harm because a step
never writes what it reads: the two buffer sets of `runtime.state`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.backends.base import Buffer
from runtime.backends.cuda_memory import DeviceBuffer, DeviceMemory
from runtime.backends.cuda_provider import DEVICE, provider, session_options, usable
from runtime.errors import BundleError, StateError
from runtime.logs import event
from runtime.native.graph import read_graph
from runtime.spec import GraphSpec

_log = logging.getLogger(__name__)
_SHARED = 1 << 16  # bytes of the smallest weight that sessions share
_SHAREABLE = ("float32", "float16", "uint8")  # sizes and axes, which are int64, onnxruntime wants on the host
_RECORDINGS = 64  # per session: two for each live state; onnxruntime forgets none, so past this it begins anew

Shape = tuple[tuple[str, int], ...]
"""The size of every axis of a call, by letter."""


class CudaRunner:
    """One graph: its main session, and those that are recorded."""

    def __init__(self, backend: CudaBackend, graph: GraphSpec, path: Path) -> None:
        """Load the main session."""
        self._backend, self._graph, self._path = backend, graph, path
        self._axes = {spec.name: spec.shape for spec in graph.inputs}
        self._steps: dict[Shape, _Recorded | None] = {}  # None: onnxruntime refused to record
        weights = _on_the_device(backend.ort, path) if backend.record and graph.name == "step" else None
        self._records, self._weights = weights is not None, weights or {}
        try:
            self._main = self.session({}, record=False)
        except BundleError as error:
            if not self._weights:
                raise
            self._records, self._weights = False, {}
            self._main = self.session({}, record=False)  # raises again where the file was the reason
            _unrecorded(error.found)

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Run from `inputs` into `outputs`, and wait.

        Raises:
            StateError: onnxruntime or the GPU failed; what is in `outputs` is worth nothing.
        """
        sizes = {
            axis: size
            for name, buffer in inputs.items()
            for axis, size in zip(self._axes[name], buffer.shape, strict=True)
            if isinstance(axis, str)
        }
        try:
            step = self._step(sizes)
            if step is not None:
                step.run(inputs, outputs)
            else:
                self._main.run_with_iobinding(bind(self._main, inputs, outputs))
        except Exception as error:  # onnxruntime raises several unrelated types
            raise StateError(
                f"onnxruntime could not run graph {self._graph.name!r} on the GPU: {error}",
                hint="reset() the session; if it happens again, the GPU or its memory is the trouble (dmesg tells)",
            ) from error

    def session(self, sizes: Mapping[str, int], *, record: bool) -> Any:
        """Load the file once more, with the axes in `sizes` fixed."""
        ort = self._backend.ort
        options = session_options(ort)
        for axis, size in sizes.items():
            options.add_free_dimension_override_by_name(axis, size)
        for name, value in self._weights.items():
            options.add_initializer(name, value)
        try:
            session = ort.InferenceSession(str(self._path), options, providers=[provider(record=record)])
        except Exception as error:  # onnxruntime raises several unrelated types
            raise BundleError(f"onnxruntime {ort.__version__} cannot load {self._path} on the GPU: {error}") from error
        found = {value.name for value in (*session.get_inputs(), *session.get_outputs())}
        wanted = {spec.name for spec in (*self._graph.inputs, *self._graph.outputs)}
        if found != wanted:
            raise BundleError(f"{self._path} has inputs and outputs {sorted(found)}", wanted=f"{sorted(wanted)}")
        return session

    def forget(self, block: int) -> None:
        """Drop what names a block of memory that is being released."""
        for step in list(self._steps.values()):
            if step is not None:
                step.forget(block)

    def close(self) -> None:
        """Release the sessions, then the weights they use."""
        self._steps.clear()
        self._main = None
        self._weights.clear()

    def _step(self, sizes: Mapping[str, int]) -> _Recorded | None:
        """Return the recorded session for one token of each sequence; None for every other call."""
        if not self._records or sizes.get("T") != 1:
            return None
        shape = tuple(sorted(sizes.items()))
        step = self._steps.get(shape)
        if shape not in self._steps or (step is not None and step.count >= _RECORDINGS):
            step = self._steps[shape] = None
            try:
                step = self._steps[shape] = _Recorded(self, sizes)
            except BundleError as error:
                _unrecorded(error.found)
        return step


class _Recorded:
    """A session of fixed sizes. Every combination of buffers is recorded when it is first met, and replayed then."""

    def __init__(self, runner: CudaRunner, sizes: Mapping[str, int]) -> None:
        self._session = runner.session(sizes, record=True)
        self._ort = runner._backend.ort
        self.count = 0  # recordings made; a number is never given twice, whatever became of its buffers
        self._bound: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Record or replay. A replay reads and writes the buffers that were recorded, whatever it is given."""
        key = tuple(_device(buffer).block.number for buffer in (*inputs.values(), *outputs.values()))
        if key not in self._bound:
            self.count += 1
            options = self._ort.RunOptions()
            options.add_run_config_entry("gpu_graph_id", str(self.count))
            self._bound[key] = bind(self._session, inputs, outputs), options
        binding, options = self._bound[key]
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception:
            self._bound.pop(key, None)  # half a recording is none
            raise

    def forget(self, block: int) -> None:
        """Never again replay what was recorded with that block."""
        for key in list(self._bound):
            if block in key:
                self._bound.pop(key, None)


class CudaBackend:
    """Loads graphs into onnxruntime's CUDA provider."""

    name = "onnxruntime-cuda"

    def __init__(self, *, record: bool = True) -> None:
        """Open the GPU; without `record`, steps are launched one by one.

        Raises:
            TargetUnavailable: no GPU, or an onnxruntime that cannot use it.
        """
        self.ort, self.record = usable(), record
        self._memory = DeviceMemory(self.ort, DEVICE, self._forget)
        self._runners: list[CudaRunner] = []

    def allocate(self, shape: tuple[int, ...], dtype: str) -> DeviceBuffer:
        """Return a zero-filled buffer."""
        return self._memory.allocate(shape, dtype)

    def load(self, graph: GraphSpec, path: Path) -> CudaRunner:
        """Load one ONNX file; raises `BundleError` if onnxruntime refuses it or its inputs are not those declared."""
        runner = CudaRunner(self, graph, path)
        self._runners.append(runner)
        return runner

    def close(self) -> None:
        """Drop every session. Safe to call twice."""
        for runner in self._runners:
            runner.close()
        self._runners.clear()
        self._memory.close()

    def _forget(self, block: int) -> None:
        for runner in self._runners:
            runner.forget(block)


def bind(session: Any, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Any:
    """Return a binding of device buffers, so that a run copies nothing to or from the host."""
    binding = session.io_binding()
    for name, buffer in inputs.items():
        binding.bind_ortvalue_input(name, _device(buffer).block.value)
    for name, buffer in outputs.items():
        binding.bind_ortvalue_output(name, _device(buffer).block.value)
    return binding


def _device(buffer: Buffer) -> DeviceBuffer:
    assert isinstance(buffer, DeviceBuffer)
    return buffer


def _on_the_device(ort: Any, path: Path) -> dict[str, Any] | None:
    """Copy a graph's weights to the device once, in the form in which sessions share them.

    A session takes only values that do not own their memory: aliases (DLPack) of those that do. None where this
    onnxruntime has no aliases; then nothing is recorded, since the weights would be in memory twice.
    """
    if not hasattr(ort.OrtValue, "from_dlpack"):
        _unrecorded(f"onnxruntime {ort.__version__} cannot share weights between sessions")
        return None
    graph = read_graph(path)
    try:
        return {
            name: ort.OrtValue.from_dlpack(ort.OrtValue.ortvalue_from_numpy(graph.read(name), *DEVICE))
            for name, tensor in graph.tensors.items()
            if tensor.file and tensor.nbytes >= _SHARED and tensor.dtype in _SHAREABLE
        }
    finally:
        graph.close()


def _unrecorded(reason: str) -> None:
    event(_log, logging.WARNING, "no_cuda_graph", f"steps are launched one by one: {reason}", reason=reason)
