"""onnxruntime on the CPU: the embedded default, x86-64 and aarch64."""

from __future__ import annotations

import functools
import os
import weakref
from collections import OrderedDict
from collections.abc import Container, Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort

from runtime.backends.base import Buffer
from runtime.errors import BundleError
from runtime.spec import GraphSpec

_BINDINGS = 32  # cached bindings per graph: two per live state and segment length; older ones are rebuilt when needed


def default_threads() -> int:
    """Return how many threads to use unless told: all usable cores but one (at least 1, at most 8).

    A camera, a controller and a planner want a core too; one busy neighbour costs more than one thread less does.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, usable - 1))


class HostBuffer:
    """A NumPy array."""

    def __init__(self, array: np.ndarray) -> None:
        """Wrap a C-contiguous array."""
        self.array = array

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        """Element type."""
        return self.array.dtype

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return self.array.nbytes

    def read(self) -> np.ndarray:
        """Return the array itself, valid until the buffer is written."""
        return self.array

    def write(self, array: np.ndarray, index: tuple[int | slice, ...] = ()) -> None:
        """Copy `array` in, or into the part that `index` selects."""
        np.copyto(self.array[(*index, ...)], array, casting="no")


class OrtRunner:
    """One onnxruntime session whose inputs and outputs are bound to our buffers, so a run copies nothing."""

    def __init__(self, session: ort.InferenceSession) -> None:
        """Take over a loaded session."""
        self._session = session
        self._bindings: OrderedDict[tuple[int, ...], tuple[ort.IOBinding, list[weakref.ref[Buffer]]]] = OrderedDict()

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Run from `inputs` into `outputs`; a pair of buffer sets seen before costs no new binding."""
        buffers = (*inputs.values(), *outputs.values())
        key = tuple(map(id, buffers))
        if key not in self._bindings:
            # Weak references: a binding must not keep the state of a closed session alive. When one of its buffers
            # goes, so does the binding, and with it the chance that the same id comes back as another buffer.
            alive = [weakref.ref(buffer, functools.partial(self._forget, key)) for buffer in buffers]
            self._bindings[key] = self._bind(inputs, outputs), alive
            if len(self._bindings) > _BINDINGS:
                self._bindings.popitem(last=False)
        self._bindings.move_to_end(key)
        self._session.run_with_iobinding(self._bindings[key][0])

    def _forget(self, key: tuple[int, ...], _: object) -> None:
        self._bindings.pop(key, None)

    def _bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> ort.IOBinding:
        binding = self._session.io_binding()
        for bind, named in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, buffer in named.items():
                array = buffer.read()
                bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return binding


class OrtBackend:
    """Loads graphs into onnxruntime's CPU execution provider."""

    name = "onnxruntime-cpu"

    def __init__(self, threads: int | None = None, *, keep_mapped: Container[str] = ()) -> None:
        """Choose the number of threads of each graph (default: `default_threads()`).

        The float weights of the graphs named in `keep_mapped` are used where they lie in the file, neither packed nor
        widened at load: slower, but a model larger than the memory runs (the exporter's verification does).
        """
        self.threads = threads or default_threads()
        self._mapped = keep_mapped
        self._runners: list[OrtRunner] = []

    def allocate(self, shape: tuple[int, ...], dtype: str) -> HostBuffer:
        """Return a zero-filled buffer."""
        return HostBuffer(np.zeros(shape, dtype))

    def load(self, graph: GraphSpec, path: Path) -> OrtRunner:
        """Load one ONNX file; raises `BundleError` if onnxruntime refuses it or its inputs are not those declared."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # an idle model burns no core
        if graph.name in self._mapped:
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises several unrelated types
            raise BundleError(f"onnxruntime {ort.__version__} cannot load {path}: {error}") from error
        found = {value.name for value in (*session.get_inputs(), *session.get_outputs())}
        wanted = {spec.name for spec in (*graph.inputs, *graph.outputs)}
        if found != wanted:
            raise BundleError(f"{path} has inputs and outputs {sorted(found)}", wanted=f"{sorted(wanted)}")
        runner = OrtRunner(session)
        self._runners.append(runner)
        return runner

    def close(self) -> None:
        """Drop every session."""
        for runner in self._runners:
            runner._bindings.clear()
            del runner._session
        self._runners.clear()
