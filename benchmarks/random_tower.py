"""Vision graphs of the released towers' sizes with random weights, without a checkpoint or a language model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch

from export.archspec import ArchSpec, ClipSpec, SamSpec, TowerSpec, ViTSpec
from export.graphs import Graph
from export.towers.vision import VisionModel
from export.trace import fill, finish
from quant.fused import fuse
from runtime.spec import GraphSpec, TensorSpec

WIDTH = 768  # of the language model, 0.1B
SAM_GLOBAL = (2, 5, 8, 11)  # blocks of SAM ViT-B whose attention is not in windows


@dataclass(frozen=True)
class Choice:
    """One tower at one size, and how many image tokens it is pooled to."""

    name: str
    tower: TowerSpec
    tokens: int


def dino(size: int) -> ViTSpec:
    """DINOv2 ViT-L with 4 registers."""
    return ViTSpec("dino.", "timm", size, 14, 1024, 24, 16, 4096, 4, "pos_embed", "none", False)


def siglip(size: int, *, final: bool) -> ViTSpec:
    """SigLIP SO400M."""
    return ViTSpec("siglip.", "timm", size, 14, 1152, 27, 16, 4304, None, "pos_embed", "none", final)


def sam(size: int) -> SamSpec:
    """SAM ViT-B."""
    windows = tuple(0 if block in SAM_GLOBAL else 14 for block in range(12))
    return SamSpec("sam.", size, 16, 768, 12, 3072, 256, windows)


def fused(size: int) -> TowerSpec:
    """All three, as v7.00 has them at 448 pixels; SAM's picture is as many patches more as its down-sampler takes."""
    cells = (size // 14) ** 2
    return TowerSpec("fused", cells, 1024 + 1152 + 1024, dino(size), siglip(size, final=False), sam(size // 14 * 32))


def pair(size: int) -> TowerSpec:
    """DINOv2 and SigLIP, as v6.11."""
    return TowerSpec("pair", (size // 14) ** 2, 1024 + 1152, dino(size), siglip(size, final=False))


def alone(size: int) -> TowerSpec:
    """SigLIP alone, as v7.01 to v7.04."""
    return TowerSpec("siglip", (size // 14) ** 2, 1152, siglip=siglip(size, final=True))


def clip(size: int = 336) -> TowerSpec:
    """CLIP ViT-L, as v6.0; its class token is one more."""
    return TowerSpec("clip", (size // 14) ** 2 + 1, 1024, clip=ClipSpec("clip.", size, 14, 1024, 24, 16, 4096))


def graph_of(choice: Choice) -> Graph:
    """Return the vision graph of a choice, on the meta device."""
    spec = ArchSpec(
        family="rwkv7",
        version="7.00",
        prefix="",
        n_layer=1,
        n_embd=WIDTH,
        n_head=WIDTH // 64,
        head_size=64,
        dim_ffn=4 * WIDTH,
        vocab_size=65536,
        ranks={},
        tower=choice.tower,
        projector="mlp",
        num_token_per_image=choice.tokens,
        image_token_id=None,
        stop_token_id=0,
        padding="none",
    )
    with torch.device("meta"):
        module = VisionModel(spec)
    views = [TensorSpec(v.name, "float32", ("I", 3, v.height, v.width)) for v in module.view_specs()]
    return Graph("vision", module, tuple(views), module.outputs)


def write(choice: Choice, folder: Path) -> dict[str, GraphSpec]:
    """Write the graph twice over the same weights: "plain", as torch traces it, and "fused", as a CPU gets it."""
    folder.mkdir(parents=True, exist_ok=True)
    graph = graph_of(choice)
    specs = {form: GraphSpec("vision", f"{form}.onnx", graph.inputs, graph.outputs, ()) for form in ("plain", "fused")}
    if all((folder / spec.file).exists() for spec in specs.values()):
        return specs
    model, shapes = graph.trace(), {name: tuple(p.shape) for name, p in graph.module.named_parameters()}
    rng = np.random.default_rng(0)
    fill(model, lambda name: _random(name, shapes[name], rng))
    finish(model)
    ir.save(model, folder / "plain.onnx", external_data="weights.data", alignment=4096)
    model = ir.load(folder / "plain.onnx")
    fuse(model)
    onnx.save(ir.to_proto(model), folder / "fused.onnx")
    return specs


def _random(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Gains of 1, no biases, and matrices that keep the size of what they multiply."""
    if len(shape) == 1:
        return np.full(shape, float(name.endswith("_weight")), np.float32)
    fan = math.prod(shape[1:]) if len(shape) == 4 else shape[-2]
    return rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(fan))
