"""From an `ArchSpec` to the modules a bundle is made of, one for each of its graphs."""

from __future__ import annotations

import torch

from export.arch.hybrid import CrossState, Hybrid
from export.arch.language import LanguageModel, embedding_sources
from export.arch.rwkv6 import RWKV6
from export.arch.rwkv7 import RWKV7
from export.arch.state_encoder import StateEncoder
from export.archspec import ArchSpec
from export.towers.compressor import Compressor
from export.towers.vision import VisionModel
from export.weights import Loadable, WeightSource


def language_model(spec: ArchSpec) -> LanguageModel:
    """Return the recurrent model, its parameters on the meta device."""
    with torch.device("meta"):
        if spec.family == "rwkv7":
            return RWKV7(spec)
        if not spec.state_encoder:
            return RWKV6(spec)
        return CrossState(spec) if spec.version == "6.22" else Hybrid(spec, sigmoid_gate=spec.sigmoid_gate)


def graph_modules(spec: ArchSpec) -> dict[str, Loadable]:
    """Return the modules of all graphs by graph name, on the meta device."""
    modules: dict[str, Loadable] = {"step": language_model(spec)}
    with torch.device("meta"):
        if spec.has_vision:
            modules["vision"] = VisionModel(spec)
        if spec.state_encoder:
            modules["context"] = StateEncoder(spec)
        if spec.compressor_layers:
            modules["compressor"] = Compressor(spec)
    return modules


def model_sources(spec: ArchSpec) -> dict[str, WeightSource]:
    """Return every weight the model needs: "step.*", "vision.*", ... and "embedding.*"."""
    sources = {
        f"{graph}.{name}": source
        for graph, module in graph_modules(spec).items()
        for name, source in module.sources().items()
    }
    return {**sources, **{f"embedding.{name}": source for name, source in embedding_sources(spec).items()}}
