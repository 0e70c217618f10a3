"""The vision tower of a checkpoint, from the shapes of its `vit.*` and `proj.*` tensors and the config."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from export.archspec import Naming, SamSpec, TowerSpec, ViTSpec
from export.checkpoint import Checkpoint
from export.config import ExportConfig, VisionConfig
from runtime.errors import CheckpointError, ConfigError

# Head counts are in no tensor; these are the public towers', by width.
_DINO_HEADS = {1024: 16, 768: 12, 384: 6, 1536: 24}
_SIGLIP_HEADS = {1152: 16, 1024: 16, 768: 12}
_RELEASED_CELLS = {3200: 1024, 768: 256}  # by the projector's input
_FUSED_GRID = 32
_HF_KEYS = {
    "timm": {"width": "embed_dim", "depth": "depth", "heads": "num_heads", "mlp": "mlp_hidden"},
    "siglip": {
        "width": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads",
        "mlp": "intermediate_size",
    },
}  # fmt: skip


@dataclass(frozen=True)
class _Section:
    """A tower's part of the configuration: `names` maps a size to its key, `path` is what comes before it."""

    config: VisionConfig | None
    path: str
    names: Mapping[str, str]

    def agree(self, size: str, found: int) -> int:
        """Return `found`, or raise `ConfigError` where the configuration says something else."""
        key = self.path + self.names.get(size, size)
        said = self.config.number(key) if self.config else None
        if said is not None and said != found:
            raise ConfigError(
                f"vision.{key} is {said} in the configuration and {found} in the checkpoint",
                hint="pass the configuration of this checkpoint, or leave the key out",
            )
        return found

    def heads(self, width: int, known: Mapping[int, int]) -> int:
        """Return the head count from the configuration, or the public tower's of this width."""
        key = self.path + self.names["heads"]
        said = self.config.number(key) if self.config else None
        heads = said or known.get(width)
        if heads is None:
            raise ConfigError(
                f"a tower of width {width} has a head count that its tensors do not tell",
                wanted=f"vision.{key} in --config",
            )
        if width % heads:
            raise ConfigError(f"vision.{key} is {heads}", wanted=f"a divisor of the tower's width {width}")
        return heads


def find_tower(checkpoint: Checkpoint, config: ExportConfig) -> TowerSpec:
    """Return the tower of a checkpoint with a projector.

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
        return _features(config, width)
    fused = {"dino_featurizer", "siglip_featurizer", "sam_featurizer"}
    if not parts:
        raise CheckpointError(
            f"{checkpoint.name} has a projector of {width} inputs but no vision tower (vit.*)",
            wanted="a tower in the checkpoint or in --vision files",
            hint='pass --vision FILE, or set "vision": null in --config to feed precomputed features',
        )
    if parts == {"vision_model"}:
        _agree_type(vision, "siglip")
        section = _Section(vision, "", _HF_KEYS["siglip"])
        siglip = _vit(checkpoint, "vit.vision_model.", section, _SIGLIP_HEADS, None, "tanh", final=True)
        tower = TowerSpec("siglip", siglip.side**2, siglip.width, siglip=siglip)
    elif parts == fused:
        _agree_type(vision, "sam+dino+siglip")
        sam = _sam(checkpoint, vision)
        cells = (sam.side // 2) ** 2
        dino, siglip = (
            _vit(
                checkpoint, f"vit.{name}_featurizer.", _Section(vision, f"{name}.", _HF_KEYS["timm"]), heads,
                sam.side // 2, "none", final=False,
            )
            for name, heads in (("dino", _DINO_HEADS), ("siglip", _SIGLIP_HEADS))
        )  # fmt: skip
        if dino.registers is None:
            raise CheckpointError("the DINOv2 tower has no register tokens", wanted="DINOv2 with 4 registers (reg4)")
        tower = TowerSpec("fused", cells, dino.width + siglip.width + 4 * sam.neck, dino, siglip, sam)
    else:
        lacking = ", ".join(sorted(fused - parts)) or "nothing"
        raise CheckpointError(
            f"the vision tower is incomplete: it has {', '.join(sorted(parts))} and lacks {lacking}",
            wanted="dino + siglip + sam (v7.00), or one SigLIP2 (v7.01, v7.02)",
            hint="pass each missing tower with --vision",
        )
    if tower.width != width:
        raise CheckpointError(
            f"the tower makes {tower.width} features per cell and the projector takes {width}",
            wanted="the tower this model was trained with",
        )
    return tower


def _projector_width(checkpoint: Checkpoint) -> int:
    for key in ("proj.weight", "proj.o_proj.weight"):
        shape = checkpoint.shapes.get(key)
        if shape and len(shape) == 2:
            return shape[1]
    raise CheckpointError(
        f"{checkpoint.name} has a projector of no known form",
        wanted="proj.weight, or proj.gate and proj.o_proj",
    )


def _features(config: ExportConfig, width: int) -> TowerSpec:
    section = _Section(config.vision, "", {})
    said = config.vision.number("cells") if config.vision else None
    cells = said or _RELEASED_CELLS.get(width) or config.num_token_per_image
    if cells is None:
        raise ConfigError(
            f"how many feature cells of {width} numbers an image has is in no tensor",
            wanted='"vision": {"type": "features", "cells": N} in --config',
        )
    return TowerSpec("features", cells, section.agree("width", width))


def _agree_type(vision: VisionConfig | None, found: str) -> None:
    if vision and vision.type != found:
        raise ConfigError(f"vision.type is {vision.type!r}, but the checkpoint's tower is {found!r}")


def _vit(
    checkpoint: Checkpoint,
    prefix: str,
    section: _Section,
    known_heads: Mapping[int, int],
    grid: int | None,
    gelu: str,
    *,
    final: bool,
) -> ViTSpec:
    """Read one transformer; `grid` is the side it must have, else its position table's."""
    shapes = checkpoint.shapes
    naming: Naming = "timm"
    if f"{prefix}embeddings.patch_embedding.weight" in shapes:
        naming = "siglip"
    elif f"{prefix}embeddings.patch_embeddings.projection.weight" in shapes:
        naming = "dinov2"
    patch, position, block, fc1 = {
        "timm": ("patch_embed.proj.weight", "pos_embed", "blocks", "mlp.fc1.weight"),
        "siglip": (
            "embeddings.patch_embedding.weight", "embeddings.position_embedding.weight", "encoder.layers",
            "mlp.fc1.weight",
        ),
        "dinov2": (
            "embeddings.patch_embeddings.projection.weight", "embeddings.position_embeddings",
            "encoder.layer", "mlp.fc1.weight",
        ),
    }[naming]  # fmt: skip
    width, _, _, patch_size = _shape(checkpoint, prefix + patch, 4)
    registers = next(
        (
            s[-2]
            for name in ("reg_token", "register_tokens", "embeddings.register_tokens")
            if (s := shapes.get(prefix + name))
        ),
        None,
    )
    rows = math.prod(_shape(checkpoint, prefix + position)[:-1])
    class_row = registers is not None and math.isqrt(rows) ** 2 != rows
    own_side = math.isqrt(rows - class_row)
    image_size = section.config.number(f"{section.path}image_size") if section.config else None
    if image_size is not None and image_size % patch_size:
        raise ConfigError(f"vision.{section.path}image_size is {image_size}", wanted=f"a multiple of {patch_size}")
    side = grid or (image_size // patch_size if image_size else own_side)
    if registers is not None:
        section.agree("reg_tokens", registers)
    depth = count_blocks(checkpoint, f"{prefix}{block}.")
    return ViTSpec(
        prefix=prefix,
        naming=naming,
        image_size=section.agree("image_size", side * patch_size),
        patch_size=section.agree("patch_size", patch_size),
        width=section.agree("width", width),
        depth=section.agree("depth", depth),
        heads=section.heads(width, known_heads),
        mlp=section.agree("mlp", _shape(checkpoint, f"{prefix}{block}.0.{fc1}", 2)[0]),
        registers=registers,
        position_keys="with_class" if registers is not None and f"{prefix}reg_token" not in shapes else "pos_embed",
        gelu="tanh" if gelu == "tanh" else "none",
        final=final,
    )


def _sam(checkpoint: Checkpoint, vision: VisionConfig | None) -> SamSpec:
    prefix = "vit.sam_featurizer."
    section = _Section(vision, "sam.", _HF_KEYS["timm"])
    width, _, _, patch_size = _shape(checkpoint, f"{prefix}patch_embed.proj.weight", 4)
    side = _shape(checkpoint, f"{prefix}pos_embed", 4)[1]
    depth = count_blocks(checkpoint, f"{prefix}blocks.")
    windows: list[int] = []
    for index in range(depth):
        rows, head_size = _shape(checkpoint, f"{prefix}blocks.{index}.attn.rel_pos_h", 2)
        reach = (rows + 1) // 2
        windows.append(0 if reach == side else reach)
        if width % head_size:
            raise CheckpointError(
                f"{prefix}blocks.{index}.attn.rel_pos_h has {head_size} columns", wanted="a head's width"
            )
        section.agree("heads", width // head_size)
    for window in set(windows) - {0}:
        section.agree("window_size", window)
    where = [index for index, window in enumerate(windows) if not window]
    said = vision.sizes.get("sam.global_attn_indexes") if vision else None
    if said is not None and said != where:
        raise ConfigError(f"vision.sam.global_attn_indexes is {said}", wanted=f"{where}, as in the checkpoint")
    if side % 2:
        raise CheckpointError(f"{prefix}pos_embed has a grid of {side} x {side}", wanted="an even side")
    return SamSpec(
        prefix=prefix,
        image_size=section.agree("image_size", side * patch_size),
        patch_size=section.agree("patch_size", patch_size),
        width=section.agree("width", width),
        heads=width // head_size,
        mlp=section.agree("mlp", _shape(checkpoint, f"{prefix}blocks.0.mlp.lin1.weight", 2)[0]),
        neck=section.agree("out_chans", _shape(checkpoint, f"{prefix}neck.2.weight", 4)[0]),
        windows=tuple(windows),
    )


def _shape(checkpoint: Checkpoint, key: str, axes: int | None = None) -> tuple[int, ...]:
    shape = checkpoint.shapes.get(key)
    if not shape or (axes is not None and len(shape) != axes) or 0 in shape:
        found = f"{key} has shape {list(shape)}" if shape else f"{key} is missing"
        raise CheckpointError(f"{checkpoint.name}: {found}", wanted=f"{axes or 2} axes", hint="check the vision tower")
    return shape


def count_blocks(checkpoint: Checkpoint, prefix: str) -> int:
    """Return how many blocks `{prefix}{number}.` there are; `CheckpointError` where one is left out."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    found = {int(match.group(1)) for key in checkpoint.shapes if (match := pattern.match(key))}
    gaps = sorted(set(range(len(found))) - found)
    if gaps or not found:
        raise CheckpointError(
            f"{checkpoint.name} has {len(found)} blocks {prefix}*"
            + (f" numbered up to {max(found)}, without number {gaps[0]}" if gaps else ""),
            wanted="blocks numbered from 0 without a gap",
            hint="check that the file is the whole, unmodified state dict",
        )
    return len(found)
