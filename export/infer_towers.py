"""The vision tower and the projector of a checkpoint, from the shapes of its `vit.*` and `proj.*` tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from export.archspec import Projector, TowerSpec, ViTSpec
from export.checkpoint import Checkpoint
from export.config import ExportConfig, VisionConfig
from export.tower_sizes import (
    DINO_HEADS,
    SIGLIP_HEADS,
    SIZE_KEYS,
    Section,
    read_clip,
    read_sam,
    read_vit,
)
from export.tower_sizes import count_blocks as count_blocks
from runtime.errors import CheckpointError, ConfigError

_PAIR = {"dino_featurizer", "siglip_featurizer"}
_FUSED = _PAIR | {"sam_featurizer"}
_CLASS_TOKEN = "vit.vision_model.embeddings.class_embedding"
_UHD_WIDTH = 6400
# Feature cells (CLIP and v6.10: tokens, with the class or mean token) of the released towers, by the projector's input.
_RELEASED_CELLS = {3200: 1024, 768: 256}
_RELEASED_CELLS_RWKV6 = {3200: 1024, _UHD_WIDTH: 1024, 1024: 577, 2048: 577, 1152: 730, 2176: 729}

Shapes = Mapping[str, tuple[int, ...]]


def find_tower(checkpoint: Checkpoint, config: ExportConfig) -> TowerSpec:
    """Return the tower of a checkpoint with a projector; its width is what the projector takes.

    Raises:
        CheckpointError: there is no tower, only a part of one, or one that does not fit the projector.
        ConfigError: the configuration contradicts the tensors or leaves out what they cannot tell.
    """
    shapes, vision = checkpoint.shapes, config.vision
    width = _projector_width(checkpoint)
    parts = {key.split(".")[1] for key in shapes if key.startswith("vit.")}
    if config.towerless or (vision and vision.type == "features"):
        if config.towerless and parts:
            raise ConfigError(
                f'"vision" is null, but {checkpoint.name} has a tower ({", ".join(sorted(parts))})',
                hint='leave "vision" out, or set it to {"type": "features"} to feed features in spite of it',
            )
        return _features(config, width, _RELEASED_CELLS_RWKV6 if _is_rwkv6(shapes) else _RELEASED_CELLS)
    if not parts:
        raise CheckpointError(
            f"{checkpoint.name} has a projector of {width} inputs but no vision tower (vit.*)",
            wanted="a tower in the checkpoint or in --vision files",
            hint='pass --vision FILE, or set "vision": null in --config to feed precomputed features',
        )
    multiples = [1]  # how often the projector may take what the tower makes
    if parts == {"vision_model"} and _CLASS_TOKEN in shapes:
        _agree_type(vision, "clip")
        clip = read_clip(checkpoint, "vit.vision_model.", Section(vision, "", SIZE_KEYS["siglip"]))
        tower = TowerSpec("clip", clip.side**2, clip.width, clip=clip)
        multiples = [1, 2]  # v6.01 mirrors the tokens
    elif parts == {"vision_model"}:
        _agree_type(vision, "siglip")
        section = Section(vision, "", SIZE_KEYS["siglip"])
        section.agree_text("hidden_act", "gelu_pytorch_tanh")
        siglip = read_vit(checkpoint, "vit.vision_model.", section, SIGLIP_HEADS, gelu="tanh", final=True)
        tower = TowerSpec("siglip", siglip.side**2, siglip.width, siglip=siglip)
    elif parts == _PAIR and _is_rwkv6(shapes) and not (vision and vision.type == "sam+dino+siglip"):
        _agree_type(vision, "dino+siglip")
        tower = _pair(checkpoint, vision)
    elif parts == _FUSED:
        _agree_type(vision, "sam+dino+siglip")
        tower = _fused(checkpoint, vision)
        if _is_rwkv6(shapes) and tower.cells % 4 == 0:
            multiples = [1, 2]  # UHD tiles the picture: whole and tiles side by side
    else:
        lacking = ", ".join(sorted(_FUSED - parts)) or "nothing"
        raise CheckpointError(
            f"the vision tower is incomplete: it has {', '.join(sorted(parts))} and lacks {lacking}",
            wanted="dino + siglip + sam (v7.00, HD, UHD, HM), dino + siglip (v6.11), CLIP (v6.0) or one SigLIP",
            hint="pass each missing tower with --vision",
        )
    if width not in [times * tower.width for times in multiples]:
        raise CheckpointError(
            f"the tower makes {tower.width} features per cell and the projector takes {width}",
            wanted="the tower this model was trained with",
        )
    return replace(tower, width=width, tiles=width // tower.width if tower.kind == "fused" else 1)


def find_projector(shapes: Shapes) -> Projector:
    """Return the form of the `proj.*` tensors; raises `CheckpointError` where they have none known here.

    UHD's is that of HD by name and told by its input, twice what the towers make (6400 in the released model).
    """
    keys = {key for key in shapes if key.startswith("proj.")}
    if keys == {"proj.weight"}:
        return "linear"
    if {"proj.proj.weight", "proj.gate.weight", "proj.o_proj.weight"} <= keys:
        inputs, made = shapes["proj.proj.weight"][-1], _fused_width(shapes)
        return "mlp-uhd" if inputs == (2 * made or _UHD_WIDTH) else "mlp-hd"
    if {"proj.gate.weight", "proj.o_proj.weight"} <= keys:
        return "mlp"
    raise CheckpointError(
        f"the projector has the tensors {', '.join(sorted(keys)) or '(none)'}",
        wanted="proj.weight; proj.gate and proj.o_proj; or these and proj.proj",
    )


def _pair(checkpoint: Checkpoint, vision: VisionConfig | None) -> TowerSpec:
    siglip = _featurizer(checkpoint, vision, "siglip", None)
    dino = _featurizer(checkpoint, vision, "dino", siglip.side)
    return TowerSpec("pair", siglip.side**2, dino.width + siglip.width, dino, siglip)


def _fused(checkpoint: Checkpoint, vision: VisionConfig | None) -> TowerSpec:
    sam = read_sam(checkpoint, vision)
    side = sam.side // 2
    dino, siglip = (_featurizer(checkpoint, vision, name, side) for name in ("dino", "siglip"))
    return TowerSpec("fused", side**2, dino.width + siglip.width + 4 * sam.neck, dino, siglip, sam)


def _featurizer(checkpoint: Checkpoint, vision: VisionConfig | None, name: str, side: int | None) -> ViTSpec:
    heads = DINO_HEADS if name == "dino" else SIGLIP_HEADS
    section = Section(vision, f"{name}.", SIZE_KEYS["timm"])
    found = read_vit(checkpoint, f"vit.{name}_featurizer.", section, heads, side)
    if name == "dino" and found.registers is None:
        raise CheckpointError("the DINOv2 tower has no register tokens", wanted="DINOv2 with 4 registers (reg4)")
    return found


def _fused_width(shapes: Shapes) -> int:
    """Return how many features the towers in `shapes` make, or 0 where one of the three is missing."""
    first = (
        "patch_embed.proj.weight",
        "embeddings.patch_embedding.weight",
        "embeddings.patch_embeddings.projection.weight",
    )
    dino, siglip = (
        next((shapes[key] for name in first if (key := f"vit.{tower}_featurizer.{name}") in shapes), None)
        for tower in ("dino", "siglip")
    )
    neck = shapes.get("vit.sam_featurizer.neck.2.weight")
    return dino[0] + siglip[0] + 4 * neck[0] if dino and siglip and neck else 0


def _projector_width(checkpoint: Checkpoint) -> int:
    for key in ("proj.weight", "proj.proj.weight", "proj.o_proj.weight"):
        shape = checkpoint.shapes.get(key)
        if shape and len(shape) == 2:
            return shape[1]
    raise CheckpointError(
        f"{checkpoint.name} has a projector of no known form",
        wanted="proj.weight, or proj.gate and proj.o_proj",
    )


def _features(config: ExportConfig, width: int, released: Mapping[int, int]) -> TowerSpec:
    section = Section(config.vision, "", {})
    said = config.vision.number("cells") if config.vision else None
    cells = said or released.get(width) or config.num_token_per_image
    if cells is None:
        raise ConfigError(
            f"how many feature cells of {width} numbers an image has is in no tensor",
            wanted='"vision": {"type": "features", "cells": N} in --config',
        )
    return TowerSpec("features", cells, section.agree("width", width))


def _agree_type(vision: VisionConfig | None, found: str) -> None:
    if vision and vision.type != found:
        raise ConfigError(f"vision.type is {vision.type!r}, but the checkpoint's tower is {found!r}")


def _is_rwkv6(shapes: Shapes) -> bool:
    return any(f"{prefix}blocks.0.att.time_maa_w1" in shapes for prefix in ("rwkv.", ""))
