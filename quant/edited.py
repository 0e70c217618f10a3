"""Running a float bundle whose graph was edited on the way into onnxruntime; its weights stay in the bundle's files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from runtime.backends.base import Buffer
from runtime.backends.ort import OrtBackend, OrtRunner
from runtime.bundle import Bundle
from runtime.engine import Engine
from runtime.spec import GraphSpec
from runtime.tokenizer import Tokenizer

GRAPHS = ("step", "vision", "context", "compressor")
_LARGE = 4 << 30  # bytes of float weights: more are used where they lie in the file


def is_large(bundle: Bundle) -> bool:
    """Whether a float bundle is better not copied into memory."""
    return bundle.manifest.precision == "fp32" and bundle.manifest.budget.weights > _LARGE


def open_engine(bundle: Bundle, threads: int | None) -> tuple[Engine, Tokenizer]:
    """Load a bundle into onnxruntime, whatever its size; the caller closes the engine."""
    backend = OrtBackend(threads, keep_mapped=GRAPHS if is_large(bundle) else ())
    return Engine(bundle, backend), Tokenizer(bundle.file(bundle.manifest.tokenizer.file))


class EditedBackend(OrtBackend):
    """onnxruntime with one graph edited before it is loaded.

    Args:
        graph: name of the graph.
        edit: changes the model in place; may add outputs and inputs.
        threads: compute threads.
        mapped: use all weights where they lie in the files: slower, but a model larger than the memory runs.

    Attributes:
        inputs: arrays for the inputs that `edit` added, by name.
        hear: called with name and array of every output that `edit` added, after every run.
    """

    def __init__(
        self, graph: str, edit: Callable[[ir.Model], None], *, threads: int | None = None, mapped: bool = False
    ) -> None:
        super().__init__(threads, keep_mapped=GRAPHS if mapped else ())
        self._edited, self._edit, self._all_mapped = graph, edit, mapped
        self.inputs: dict[str, np.ndarray] = {}
        self.hear: Callable[[str, np.ndarray], None] = lambda name, array: None

    def load(self, graph: GraphSpec, path: Path) -> OrtRunner:
        """Load one graph."""
        if graph.name != self._edited:
            return super().load(graph, path)
        model = ir.load(path)
        self._edit(model)
        declared = {spec.name for spec in graph.outputs}
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = self.threads, 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        if self._all_mapped:
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        proto = ir.serde.serialize_model(model).SerializeToString()
        session = ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
        runner = _EditedRunner(session, self, [o.name for o in session.get_outputs() if o.name not in declared])
        self._runners.append(runner)
        return runner


class _EditedRunner(OrtRunner):
    """Runs without bindings: the sizes of added outputs change with every segment."""

    def __init__(self, session: ort.InferenceSession, backend: EditedBackend, added: list[str]) -> None:
        super().__init__(session)
        self._backend, self._added = backend, added

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        names = [*outputs, *self._added]
        feeds = {name: buffer.read() for name, buffer in inputs.items()}
        found = self._session.run(names, {**feeds, **self._backend.inputs})
        for name, array in zip(names, found, strict=True):
            if name in outputs:
                outputs[name].write(array)
            else:
                self._backend.hear(name, array)
