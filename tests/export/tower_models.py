"""Tiny random checkpoints of every vision design, and their specifications, without a whole language model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from export.archspec import ArchSpec, StateEncoderSpec
from export.checkpoint import Checkpoint
from export.config import ExportConfig, VisionConfig
from export.infer_towers import find_projector, find_tower
from export.weights import Loadable, materialise

Shapes = dict[str, tuple[int, ...]]
WIDTH, HEAD = 32, 16  # of the language model
TIMM = {"dino.num_heads": 3, "siglip.num_heads": 2}  # head counts of the towers below
HF = {"num_attention_heads": 2}


def affine(name: str, outputs: int, inputs: int | None = None) -> Shapes:
    weight = (outputs,) if inputs is None else (outputs, inputs)
    return {f"{name}.weight": weight, f"{name}.bias": (outputs,)}


def language(family: str) -> Shapes:
    """What tells the family, and the ln0 that images go through."""
    mark = {"rwkv6": ("att.time_maa_w1", (WIDTH, 160)), "rwkv7": ("att.r_k", (WIDTH // HEAD, HEAD))}[family]
    return {f"rwkv.blocks.0.{mark[0]}": mark[1]} | affine("rwkv.blocks.0.ln0", WIDTH)


def hugging_face(width: int, side: int, patch: int, layers: int, *, clip: bool) -> Shapes:
    """CLIP or SigLIP."""
    shapes: Shapes = {
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.position_embedding.weight": (side * side + clip, width),
    } | affine("post_layernorm", width)
    if clip:
        shapes |= {"embeddings.class_embedding": (width,)} | affine("pre_layrnorm", width)
    else:
        shapes["embeddings.patch_embedding.bias"] = (width,)
    for layer in range(layers):
        prefix = f"encoder.layers.{layer}."
        shapes |= affine(f"{prefix}layer_norm1", width) | affine(f"{prefix}layer_norm2", width)
        for name in ("q", "k", "v", "out"):
            shapes |= affine(f"{prefix}self_attn.{name}_proj", width, width)
        shapes |= affine(f"{prefix}mlp.fc1", 40, width) | affine(f"{prefix}mlp.fc2", width, 40)
    return {f"vit.vision_model.{key}": shape for key, shape in shapes.items()}


def timm(name: str, width: int, side: int, patch: int, layers: int) -> Shapes:
    """DINOv2 with registers, or SigLIP."""
    shapes: Shapes = {"pos_embed": (1, side * side, width)} | affine("norm", width)
    shapes |= {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    if name == "dino":
        shapes |= {"cls_token": (1, 1, width), "reg_token": (1, 4, width)}
        shapes |= {f"blocks.{layer}.ls{i}.gamma": (width,) for layer in range(layers) for i in (1, 2)}
    for layer in range(layers):
        prefix = f"blocks.{layer}."
        shapes |= affine(f"{prefix}norm1", width) | affine(f"{prefix}norm2", width)
        shapes |= affine(f"{prefix}attn.qkv", 3 * width, width) | affine(f"{prefix}attn.proj", width, width)
        shapes |= affine(f"{prefix}mlp.fc1", 40, width) | affine(f"{prefix}mlp.fc2", width, 40)
    return {f"vit.{name}_featurizer.{key}": shape for key, shape in shapes.items()}


def sam(width: int, side: int, patch: int, windows: list[int], neck: int, heads: int = 2) -> Shapes:
    shapes: Shapes = {"pos_embed": (1, side, side, width), "neck.0.weight": (neck, width, 1, 1)}
    shapes |= {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    shapes |= {"neck.2.weight": (neck, neck, 3, 3)} | affine("neck.1", neck) | affine("neck.3", neck)
    for layer, window in enumerate(windows):
        prefix = f"blocks.{layer}."
        shapes |= affine(f"{prefix}norm1", width) | affine(f"{prefix}norm2", width)
        shapes |= affine(f"{prefix}attn.qkv", 3 * width, width) | affine(f"{prefix}attn.proj", width, width)
        shapes |= affine(f"{prefix}mlp.lin1", 24, width) | affine(f"{prefix}mlp.lin2", width, 24)
        shapes |= {f"{prefix}attn.rel_pos_{axis}": (2 * (window or side) - 1, width // heads) for axis in "hw"}
    return {f"vit.sam_featurizer.{key}": shape for key, shape in shapes.items()}


def fused() -> Shapes:
    """4 x 4 cells of 24 + 16 + 12 features; pixels of 8, 12 and 16."""
    return timm("dino", 24, 4, 2, 2) | timm("siglip", 16, 4, 3, 2) | sam(12, 8, 2, [3, 0], 3)


def projector(form: str, inputs: int) -> Shapes:
    if form == "linear":
        return {"proj.weight": (WIDTH, inputs)}
    if form == "mlp":
        return {"proj.gate.weight": (inputs, inputs), "proj.o_proj.weight": (WIDTH, inputs)} | affine(
            "proj.ln_v", WIDTH
        )
    square = (WIDTH, WIDTH)
    return {"proj.proj.weight": (WIDTH, inputs), "proj.gate.weight": square, "proj.o_proj.weight": square}


def compressor(layers: int) -> Shapes:
    shapes = affine("vtc.ln_out", WIDTH) | affine("vtc.blocks.0.ln0", WIDTH)
    for layer in range(layers):
        prefix = f"vtc.blocks.{layer}."
        shapes |= affine(f"{prefix}ln1", WIDTH) | affine(f"{prefix}ln2", WIDTH) | affine(f"{prefix}att.ln_x", WIDTH)
        ranks = {"w": 4, "a": 5, "g": 6} | ({"v": 3} if layer else {})
        vectors = [f"x_{s}" for s in "rwkvag"] + ["k_k", "k_a"] + [f"{s}0" for s in ranks if s != "g"]
        shapes |= {f"{prefix}att.{name}": (1, 1, WIDTH) for name in vectors}
        for name, rank in ranks.items():
            shapes |= {f"{prefix}att.{name}1": (WIDTH, rank), f"{prefix}att.{name}2": (rank, WIDTH)}
        for name in ("receptance", "key", "value", "output"):
            shapes[f"{prefix}att.{name}.weight"] = (WIDTH, WIDTH)
        shapes |= {f"{prefix}att.r_k": (WIDTH // HEAD, HEAD), f"{prefix}ffn.x_k": (1, 1, WIDTH)}
        shapes |= {f"{prefix}ffn.key.weight": (4 * WIDTH, WIDTH), f"{prefix}ffn.value.weight": (WIDTH, 4 * WIDTH)}
    return shapes


def saved(shapes: Shapes, folder: Path, seed: int = 0) -> Checkpoint:
    """A float32 checkpoint of random weights, none of them degenerate."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, shape in shapes.items():
        x = torch.randn(shape, generator=generator)
        fan = int(np.prod(shape[1:])) if len(shape) > 1 and not key.endswith(("pos_embed", "_token")) else 16
        tensors[key] = 1 + 0.3 * x if key.endswith(("norm.weight", "norm1.weight", "norm2.weight")) else x * fan**-0.5
    path = folder / "m.pth"
    torch.save(tensors, path)
    return Checkpoint.open(path)


def config(kind: str | None, sizes: dict[str, Any], **options: Any) -> ExportConfig:
    vision = None if kind is None else VisionConfig(cast(Any, kind), sizes)
    return ExportConfig(vision=vision, **options)


def specification(checkpoint: Checkpoint, options: ExportConfig, version: str, **changes: Any) -> ArchSpec:
    """The vision half of `export.infer.infer`, for a checkpoint whose language model is left out."""
    tower = find_tower(checkpoint, options)
    spec = ArchSpec(
        family="rwkv7" if version.startswith("7") else "rwkv6",
        version=version,
        prefix="rwkv.",
        n_layer=4,
        n_embd=WIDTH,
        n_head=WIDTH // HEAD,
        head_size=HEAD,
        dim_ffn=4 * WIDTH,
        vocab_size=512,
        ranks={"w": 4, "a": 5, "v": 3, "g": 6},
        tower=tower,
        projector=find_projector(checkpoint.shapes),
        num_token_per_image=tower.cells,
        image_token_id=None,
        stop_token_id=261,
        padding="none",
    )
    return replace(spec, **changes)


HM = StateEncoderSpec(2, "single", 1024, None)


def loaded(module: type[Loadable], spec: ArchSpec, checkpoint: Checkpoint) -> Any:
    """A module with its weights, made as the exporter makes it."""
    with torch.device("meta"):
        made = module(spec)  # type: ignore[call-arg]
    materialise(made, checkpoint)
    return made.eval()


def weights(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """The checkpoint for the NumPy reference."""
    return {key: checkpoint.tensor(key).double().numpy() for key in checkpoint.shapes}
