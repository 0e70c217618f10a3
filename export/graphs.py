"""The ONNX graphs of a model: what goes in, what comes out, and the module between."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
import torch

from export.arch.language import LanguageModel
from export.archspec import ArchSpec
from export.models import graph_modules
from export.repeat import trace_repeated
from export.towers.vision import VisionModel
from export.weights import Loadable
from runtime.spec import TensorSpec

# Two examples of a dynamic axis, and its largest size. No two axes, or products of them, are alike in both.
_LETTERS = {"B": (2, 3, 64), "T": (17, 23, 1 << 16), "I": (2, 5, 64), "P": (7, 11, 1 << 16)}


@dataclass(frozen=True)
class Graph:
    """One graph before it is traced."""

    name: str
    module: Loadable
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def trace(self) -> ir.Model:
        """Trace the module without any data."""
        return trace_repeated(
            self.module,
            {spec.name: spec.shape for spec in self.inputs},
            {spec.name: getattr(torch, spec.dtype) for spec in self.inputs},
            [spec.name for spec in self.outputs],
            _LETTERS,
        )


def graphs(spec: ArchSpec) -> list[Graph]:
    """Return the graphs of a model, "step" first; their modules are on the meta device."""
    return [_BUILD[name](spec, module) for name, module in graph_modules(spec).items()]


def _step(spec: ArchSpec, module: Loadable) -> Graph:
    assert isinstance(module, LanguageModel)
    slots = module.slots
    scan = (TensorSpec("scan", "int64", (len(spec.scan), "T")),) if spec.scan else ()
    return Graph(
        "step",
        module,
        (
            TensorSpec("embeddings", "float32", ("B", "T", spec.n_embd)),
            *(TensorSpec(slot.name, slot.dtype, slot.shape) for slot in slots),
            *scan,
        ),
        (
            TensorSpec("logits", "float32", ("B", spec.vocab_size)),
            *(TensorSpec(f"{s.name}_out", s.dtype, s.shape) for s in slots if s.role == "carried"),
        ),
    )


def _vision(spec: ArchSpec, module: Loadable) -> Graph:
    assert isinstance(module, VisionModel)
    shapes = {
        view.name: (3, view.height, view.width) if view.kind == "pixels" else (view.height, view.width)
        for view in module.view_specs()
    }
    inputs = tuple(TensorSpec(name, "float32", ("I", *shape)) for name, shape in shapes.items())
    return Graph("vision", module, inputs, module.outputs)


def _context(spec: ArchSpec, module: Loadable) -> Graph:
    state = TensorSpec("image_state", "float32", ("B", spec.n_head, spec.head_size, spec.head_size))
    return Graph("context", module, (TensorSpec("features", "float32", ("B", "T", spec.n_embd)),), (state,))


def _compressor(spec: ArchSpec, module: Loadable) -> Graph:
    return Graph(
        "compressor",
        module,
        (TensorSpec("tokens", "float32", (1, "T", spec.n_embd)), TensorSpec("pooling", "float32", ("P", "T"))),
        (TensorSpec("embeddings", "float32", (1, "P", spec.n_embd)),),
    )


_BUILD = {"step": _step, "vision": _vision, "context": _context, "compressor": _compressor}
