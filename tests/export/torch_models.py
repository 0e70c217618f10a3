"""Helpers of the exporter's torch tests: opening golden checkpoints, and writing changed copies of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from export.arch.language import embedding_sources, embedding_table
from export.arch.rwkv7 import RWKV7
from export.archspec import ArchSpec
from export.checkpoint import Checkpoint
from export.config import ExportConfig, VisionConfig
from export.infer import infer
from export.towers.vision import VisionModel
from export.weights import load_weight, materialise

Tensors = dict[str, torch.Tensor]
DINO, SIGLIP, SAM = (f"vit.{name}_featurizer." for name in ("dino", "siglip", "sam"))
State = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def config_of(golden: Path, name: str, **changes: Any) -> ExportConfig:
    """The golden set's configuration of a checkpoint, with some options replaced."""
    config = ExportConfig.load(golden / "configs.json", name)
    if config.towerless:  # it comes without a tower; its arrays hold features of 64 cells
        config = replace(config, towerless=False, vision=VisionConfig("features", {"cells": 64}))
    return replace(config, **changes)


def read(path: Path) -> Tensors:
    """A golden checkpoint as a dictionary."""
    tensors: Tensors = torch.load(path, weights_only=True)
    return tensors


def write(tensors: Any, path: Path) -> Path:
    """Save anything as a torch zip; copied, so that views don't drag their whole storage along."""
    if isinstance(tensors, dict):
        tensors = {key: x.clone() if isinstance(x, torch.Tensor) else x for key, x in tensors.items()}
    torch.save(tensors, path)
    return path


def language_model(checkpoint: Checkpoint, spec: ArchSpec) -> tuple[RWKV7, torch.Tensor]:
    """The recurrent module with its weights, and the whole embedding table."""
    with torch.device("meta"):
        module = RWKV7(spec)
    materialise(module, checkpoint)
    return module, torch.cat(list(embedding_table(checkpoint, spec, rows=100)))


def open_model(path: Path, config: ExportConfig) -> tuple[Checkpoint, ArchSpec]:
    """Open and infer."""
    checkpoint = Checkpoint.open(path)
    return checkpoint, infer(checkpoint, config)


def vision_model(checkpoint: Checkpoint, spec: ArchSpec) -> VisionModel:
    """The vision module with its weights."""
    with torch.device("meta"):
        module = VisionModel(spec)
    materialise(module, checkpoint)
    return module


def zero_state(spec: ArchSpec, batch: int = 1) -> State:
    """The state before the first token."""
    shift = torch.zeros(spec.n_layer, batch, spec.n_embd)
    wkv = torch.zeros(spec.n_layer, batch, spec.n_head, spec.head_size, spec.head_size)
    return shift, shift.clone(), wkv


def ln0(checkpoint: Checkpoint, spec: ArchSpec, x: np.ndarray) -> torch.Tensor:
    """Golden vectors are from before ln0; ours from after it."""
    sources = embedding_sources(spec)
    weight, bias = (load_weight(checkpoint, sources[f"ln0_{name}"]) for name in ("weight", "bias"))
    return F.layer_norm(torch.from_numpy(x), (spec.n_embd,), weight, bias, 1e-5)
