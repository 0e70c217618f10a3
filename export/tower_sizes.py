"""Reading the sizes of one vision tower from the shapes of its tensors, held against the configuration."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from export.archspec import ClipSpec, Naming, SamSpec, ViTSpec
from export.checkpoint import Checkpoint
from export.config import VisionConfig
from runtime.errors import CheckpointError, ConfigError

# Head counts are in no tensor; these are the public towers', by width.
DINO_HEADS = {1024: 16, 768: 12, 384: 6, 1536: 24}
SIGLIP_HEADS = {1152: 16, 1024: 16, 768: 12}
CLIP_HEADS = {1024: 16}
_PUBLIC_SIZES = {(14, 27): 384}  # (patch, side) -> image size, where that is no multiple of the patch
SIZE_KEYS = {
    "timm": {"width": "embed_dim", "depth": "depth", "heads": "num_heads", "mlp": "mlp_hidden"},
    "siglip": {
        "width": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads",
        "mlp": "intermediate_size",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Section:
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

    def agree_text(self, key: str, wanted: str) -> None:
        """Raise `ConfigError` where the configuration gives `key` another value than this tower's."""
        said = self.config.sizes.get(self.path + key) if self.config else None
        if said not in (None, wanted):
            raise ConfigError(f"vision.{self.path}{key} is {said!r}", wanted=repr(wanted))

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


def read_vit(
    checkpoint: Checkpoint,
    prefix: str,
    section: Section,
    known_heads: Mapping[int, int],
    grid: int | None = None,
    *,
    gelu: Literal["none", "tanh"] = "none",
    final: bool = False,
) -> ViTSpec:
    """Read a plain transformer; `grid` is the side it must have, else its position table's."""
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
    width, _, _, patch_size = stored_shape(checkpoint, prefix + patch, 4)
    registers = next(
        (
            s[-2]
            for name in ("reg_token", "register_tokens", "embeddings.register_tokens")
            if (s := shapes.get(prefix + name))
        ),
        None,
    )
    rows = math.prod(stored_shape(checkpoint, prefix + position)[:-1])
    class_row = registers is not None and math.isqrt(rows) ** 2 != rows
    own_side = math.isqrt(rows - class_row)
    image_size = section.config.number(f"{section.path}image_size") if section.config else None
    side = grid or (image_size // patch_size if image_size else own_side)
    if image_size is None or image_size // patch_size != side:  # a rest of pixels is left out by the convolution
        image_size = section.agree("image_size", _PUBLIC_SIZES.get((patch_size, side), side * patch_size))
    if registers is not None:
        section.agree("reg_tokens", registers)
    depth = count_blocks(checkpoint, f"{prefix}{block}.")
    return ViTSpec(
        prefix=prefix,
        naming=naming,
        image_size=image_size,
        patch_size=section.agree("patch_size", patch_size),
        width=section.agree("width", width),
        depth=section.agree("depth", depth),
        heads=section.heads(width, known_heads),
        mlp=section.agree("mlp", stored_shape(checkpoint, f"{prefix}{block}.0.{fc1}", 2)[0]),
        registers=registers,
        position_keys="with_class" if registers is not None and f"{prefix}reg_token" not in shapes else "pos_embed",
        gelu=gelu,
        final=final,
    )


def read_clip(checkpoint: Checkpoint, prefix: str, section: Section) -> ClipSpec:
    """Read CLIP's vision transformer."""
    embeddings = f"{prefix}embeddings."
    width, _, _, patch_size = stored_shape(checkpoint, f"{embeddings}patch_embedding.weight", 4)
    rows = stored_shape(checkpoint, f"{embeddings}position_embedding.weight", 2)[0]
    side = math.isqrt(rows - 1)
    if side * side != rows - 1:
        raise CheckpointError(
            f"{embeddings}position_embedding.weight has {rows} rows", wanted="one more than a square number"
        )
    section.agree_text("hidden_act", "quick_gelu")
    return ClipSpec(
        prefix=prefix,
        image_size=section.agree("image_size", side * patch_size),
        patch_size=section.agree("patch_size", patch_size),
        width=section.agree("width", width),
        depth=section.agree("depth", count_blocks(checkpoint, f"{prefix}encoder.layers.")),
        heads=section.heads(width, CLIP_HEADS),
        mlp=section.agree("mlp", stored_shape(checkpoint, f"{prefix}encoder.layers.0.mlp.fc1.weight", 2)[0]),
    )


def read_sam(checkpoint: Checkpoint, vision: VisionConfig | None) -> SamSpec:
    """Read SAM's image encoder."""
    prefix = "vit.sam_featurizer."
    section = Section(vision, "sam.", SIZE_KEYS["timm"])
    width, _, _, patch_size = stored_shape(checkpoint, f"{prefix}patch_embed.proj.weight", 4)
    side = stored_shape(checkpoint, f"{prefix}pos_embed", 4)[1]
    depth = count_blocks(checkpoint, f"{prefix}blocks.")
    windows: list[int] = []
    for index in range(depth):
        rows, head_size = stored_shape(checkpoint, f"{prefix}blocks.{index}.attn.rel_pos_h", 2)
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
        mlp=section.agree("mlp", stored_shape(checkpoint, f"{prefix}blocks.0.mlp.lin1.weight", 2)[0]),
        neck=section.agree("out_chans", stored_shape(checkpoint, f"{prefix}neck.2.weight", 4)[0]),
        windows=tuple(windows),
    )


def stored_shape(checkpoint: Checkpoint, key: str, axes: int | None = None) -> tuple[int, ...]:
    """Return a tensor's shape; raises `CheckpointError` where it is missing or has another number of axes."""
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
