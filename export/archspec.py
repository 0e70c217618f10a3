"""What a checkpoint turned out to be: every size and option the modules and the bundle need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from runtime.spec import ImagePosition, Padding, ScanOrder

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
class ClipSpec:
    """CLIP's vision transformer (Hugging Face `CLIPVisionModel`): class token, quick-gelu, no final norm."""

    prefix: str
    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp: int

    @property
    def side(self) -> int:
        """Patches along one edge."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class TowerSpec:
    """What turns a picture into [cells, width] features.

    kinds: "fused" DINOv2 + SigLIP + SAM; "pair" DINOv2 + SigLIP (v6.11); "siglip" alone; "clip"; "features" none.
    """

    kind: Literal["fused", "pair", "siglip", "clip", "features"]
    cells: int
    width: int
    dino: ViTSpec | None = None
    siglip: ViTSpec | None = None
    sam: SamSpec | None = None
    clip: ClipSpec | None = None
    tiles: int = 1  # 2: the whole picture and its 2 x 2 tiles (UHD); `width` counts both


@dataclass(frozen=True)
class StateEncoderSpec:
    """HM's encoder of image states: RWKV-6 blocks over packed image tokens."""

    n_layer: int
    strategy: Literal["single", "fold"]
    max_feature_len: int | None
    tokens_per_image: int | None


Projector = Literal["linear", "mlp", "mlp-hd", "mlp-uhd"]
"""linear: one matrix; mlp: gate on the features, ln_v (v7); mlp-hd: gate on the projected; mlp-uhd: relu (v6.13)."""


@dataclass(frozen=True)
class ArchSpec:
    """A whole model: sizes from tensors, options from the configuration or the released models' defaults."""

    family: Literal["rwkv6", "rwkv7"]
    version: str  # a key of `export.variants.VARIANTS`: "6.00" ... "7.04", or "text"
    prefix: str  # of the language model's keys: "rwkv." or ""
    n_layer: int
    n_embd: int
    n_head: int
    head_size: int
    dim_ffn: int
    vocab_size: int
    ranks: dict[str, int]  # rwkv7: w a v g (v is 0 for a one-layer model); rwkv6: maa decay
    tower: TowerSpec | None
    projector: Projector | None
    num_token_per_image: int
    image_token_id: int | None
    stop_token_id: int
    padding: Padding
    image_position: ImagePosition = "first"
    grid_size: int | None = None  # CLIP's pooling (v6.0): -1 none, 0 class token only, 1 mean, n to about n x n
    scan: tuple[ScanOrder, ...] | None = None  # by layer, repeated; None: layers read images as they read text
    state_encoder: StateEncoderSpec | None = None
    sigmoid_gate: bool = False  # HM of before November 2024: its memory gate is a sigmoid with a bias
    compressor_layers: int = 0  # blocks of the visual token compressor (v7.03, v7.04)

    @property
    def has_vision(self) -> bool:
        """Whether the model sees images (or features of images)."""
        return self.tower is not None
