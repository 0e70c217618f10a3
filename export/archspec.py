"""What a checkpoint turned out to be: every size and option the modules and the bundle need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from runtime.spec import Padding

Naming = Literal["timm", "siglip", "dinov2"]  # timm; Hugging Face SiglipVisionModel; Hugging Face Dinov2WithRegisters


@dataclass(frozen=True)
class ViTSpec:
    """One plain vision transformer (DINOv2 with registers, SigLIP or SigLIP2)."""

    prefix: str  # of its keys: "vit.dino_featurizer."
    naming: Naming
    image_size: int
    patch_size: int
    width: int
    depth: int  # blocks in the checkpoint
    heads: int
    mlp: int
    registers: int | None  # register tokens after a class token; None: neither
    position_keys: Literal["pos_embed", "with_class"]  # "with_class": the table's first row is the class token's
    gelu: Literal["none", "tanh"]  # approximation
    final: bool  # run every block and the final norm; else stop after the second to last block

    @property
    def side(self) -> int:
        """Patches along one edge."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class SamSpec:
    """SAM's image encoder."""

    prefix: str
    image_size: int
    patch_size: int
    width: int
    heads: int
    mlp: int
    neck: int  # channels after the neck
    windows: tuple[int, ...]  # per block: window side, or 0 for global attention

    @property
    def side(self) -> int:
        """Patches along one edge, before the down-sampler."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class TowerSpec:
    """What turns a picture into [cells, width] features."""

    kind: Literal["fused", "siglip", "features"]
    cells: int
    width: int
    dino: ViTSpec | None = None
    siglip: ViTSpec | None = None
    sam: SamSpec | None = None


@dataclass(frozen=True)
class ArchSpec:
    """A whole model: sizes from tensors, options from the configuration or the released models' defaults."""

    family: Literal["rwkv7"]
    version: str  # "7.00", "7.01", "7.02" or "text"
    prefix: str  # of the language model's keys: "rwkv." or ""
    n_layer: int
    n_embd: int
    n_head: int
    head_size: int
    dim_ffn: int
    vocab_size: int
    rank_w: int
    rank_a: int
    rank_v: int  # 0 for a one-layer model, whose only block has no value residual
    rank_g: int
    tower: TowerSpec | None
    projector: Literal["mlp", "linear"] | None
    num_token_per_image: int
    image_token_id: int | None
    stop_token_id: int
    padding: Padding

    @property
    def has_vision(self) -> bool:
        """Whether the model sees images (or features of images)."""
        return self.tower is not None
