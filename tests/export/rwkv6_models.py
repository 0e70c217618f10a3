"""Helpers of the RWKV-6 tests: golden and random models, and their segments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from export.arch.language import LanguageModel, embedding_sources, embedding_table
from export.archspec import ArchSpec, StateEncoderSpec
from export.checkpoint import Checkpoint
from export.weights import Loadable, load_weight, materialise
from runtime.spec import ScanOrder

TOLERANCE = 1e-4
EXACT = 1e-9  # float64 against float64
BIDIRECTIONAL: tuple[ScanOrder, ...] = ("natural", "reversed") * 2
MULTIDIRECTIONAL: tuple[ScanOrder, ...] = ("natural", "reversed", "transposed", "transposed_reversed")

Module = TypeVar("Module", bound=Loadable)


@dataclass
class Model:
    """A language model with what its tests feed it."""

    module: LanguageModel
    spec: ArchSpec
    table: torch.Tensor  # [V, C], ln0 applied
    ln0_weights: tuple[torch.Tensor, torch.Tensor]

    def ln0(self, x: np.ndarray) -> torch.Tensor:
        """Golden vectors are from before ln0; ours from after it."""
        return F.layer_norm(torch.from_numpy(x), (self.spec.n_embd,), *self.ln0_weights, 1e-5)

    def zeros(self, batch: int = 1) -> list[torch.Tensor]:
        """What is carried, before the first position."""
        carried = [slot.resolve(batch) for slot in self.module.slots if slot.role == "carried"]
        return [torch.zeros(shape, dtype=self.table.dtype) for shape in carried]

    def double(self) -> Model:
        """The same weights and equations in float64, to be held against NumPy without rounding in between."""
        weight, bias = (x.double() for x in self.ln0_weights)
        return Model(self.module.double(), self.spec, self.table.double(), (weight, bias))

    def hidden_logits(self, x: torch.Tensor, slots: Sequence[torch.Tensor], *scan: torch.Tensor) -> torch.Tensor:
        """Logits of every position [T, V] of one call with x [T, C]."""
        with torch.no_grad():
            hidden, *_ = self.module.hidden(x[None], *slots, *scan)
            return self.module.head(hidden)[0]


def spec_of(golden: Path, name: str, **changes: Any) -> ArchSpec:
    """The language model of a golden checkpoint, by the golden set's configuration."""
    config = json.loads((golden / "configs.json").read_text())[name]
    sizes = config["lm"]
    options = {
        "family": "rwkv6",
        "version": "text",
        "prefix": "" if config["family"] == "text" else "rwkv.",
        **{key: sizes[key] for key in ("n_layer", "n_embd", "n_head", "head_size", "dim_ffn", "vocab_size")},
        "ranks": sizes["lora"],
        "tower": None,
        "projector": None,
        "num_token_per_image": 0,
        "image_token_id": None,
        "stop_token_id": config["stop_token_id"],
        "padding": "none",
    }
    return ArchSpec(**{**options, **changes})


def encoder_spec(strategy: str, layers: int = 2) -> StateEncoderSpec:
    """A state encoder; how pictures are packed is the runtime's business."""
    return StateEncoderSpec(layers, strategy, None, None)  # type: ignore[arg-type]


def built(kind: type[Module], checkpoint: Checkpoint, spec: ArchSpec, **options: Any) -> Module:
    """A module with its weights."""
    with torch.device("meta"):
        module = kind(spec, **options)  # type: ignore[call-arg]
    materialise(module, checkpoint)
    return module


def open_model(kind: type[LanguageModel], path: Path, spec: ArchSpec, **options: Any) -> Model:
    """A language model of a checkpoint."""
    with Checkpoint.open(path) as checkpoint:
        sources = embedding_sources(spec)
        weight, bias = (load_weight(checkpoint, sources[f"ln0_{name}"]) for name in ("weight", "bias"))
        table = torch.cat(list(embedding_table(checkpoint, spec, rows=100)))
        return Model(built(kind, checkpoint, spec, **options), spec, table, (weight, bias))


def random_checkpoint(path: Path, modules: Sequence[Loadable], spec: ArchSpec, seed: int) -> dict[str, np.ndarray]:
    """Write a checkpoint of random weights for some modules and the embedding table.

    Returns:
        the stored tensors as float64, for the NumPy reference.
    """
    rng = np.random.default_rng(seed)
    sources = [source for module in modules for source in module.sources().values()]
    tensors: dict[str, np.ndarray] = {}
    for source in [*sources, *embedding_sources(spec).values()]:
        shape = (*source.shape[:-1], source.shape[-1] // len(source.keys))
        for key in source.keys:
            stored = shape[::-1] if source.layout == "transpose" else shape
            scale = 1 / np.sqrt(stored[-1]) if len(stored) > 1 else 0.5
            is_norm = key.split(".")[-2].startswith("ln") and key.endswith("weight")
            tensors[key] = (rng.standard_normal(stored) * scale + is_norm).astype(np.float32)
    torch.save({key: torch.from_numpy(value) for key, value in tensors.items()}, path)
    return {key: value.astype(np.float64) for key, value in tensors.items()}


def assert_logits(found: torch.Tensor, wanted: np.ndarray, tolerance: float = TOLERANCE) -> None:
    """The same logits [..., V], and the same best token everywhere."""
    expected = torch.from_numpy(wanted)
    assert (found - expected).abs().max() <= tolerance
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


def assert_state(found: Sequence[torch.Tensor], data: Any) -> None:
    """The golden state of a sequence."""
    for slot, name in zip(found, ("state_att_shift", "state_ffn_shift", "state_wkv"), strict=True):
        assert (slot[:, 0] - torch.from_numpy(data[name])).abs().max() <= TOLERANCE
