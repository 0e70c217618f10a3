"""The vision graph: views of pictures -> image embeddings ready for the recurrent graph."""

from __future__ import annotations

from inspect import Parameter, Signature

import torch.nn.functional as F
from torch import Tensor

from export.arch.language import LN_EPS
from export.archspec import ArchSpec
from export.towers.clip import ClipTower
from export.towers.features import FeatureTower
from export.towers.fused import FusedTower
from export.towers.pooling import pooling
from export.towers.projector import Projector
from export.towers.siglip import SiglipTower
from export.weights import Loadable
from runtime.errors import ExportError
from runtime.spec import TensorSpec, ViewSpec

Tower = ClipTower | FusedTower | SiglipTower | FeatureTower
_MOST_VIEWS = 15  # three towers, five views each (UHD)


class VisionModel(Loadable):
    """Tower, pooling, projector and ln0 (the language model's, which token embeddings go through as well)."""

    ln0_weight: Tensor  # [C]
    ln0_bias: Tensor

    def __init__(self, spec: ArchSpec) -> None:
        super().__init__()
        self.width = spec.n_embd
        self.compressed = spec.compressor_layers > 0  # ln0 comes after the compressor then
        self.with_features = spec.state_encoder is not None
        self.tower: Tower = _tower(spec)
        self.pooling = pooling(spec)
        self.projector = Projector(spec)
        if not self.compressed:
            self.declare_norm("ln0", spec.n_embd, f"{spec.prefix}blocks.0.ln0.")
        assert spec.tower is not None
        self.cells = spec.tower.cells
        self.tokens = self.cells if self.compressed else spec.num_token_per_image

    def view_specs(self) -> tuple[ViewSpec, ...]:
        """Return the views `forward` takes, in order."""
        return self.tower.view_specs()

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `forward` returns: "embeddings", and for a model with a state encoder "context_features"."""
        embeddings = TensorSpec("embeddings", "float32", ("I", self.tokens, self.width))
        features = TensorSpec("context_features", "float32", ("I", self.cells, self.width))
        return (embeddings, features) if self.with_features else (embeddings,)

    def forward(self, *views: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return image embeddings [I, tokens, C] float32 and, with a state encoder, features [I, cells, C].

        Embeddings have ln0 applied, except where a compressor takes them. Features are projected without being pooled,
        and without ln0.

        Args:
            views: one for each of `view_specs`: normalised pixels [I, 3, height, width], or features [I, cells,
                width]; float32.
        """
        found = self.tower(*views)
        embeddings: Tensor = self.projector(self.pooling(found))
        if not self.compressed:
            embeddings = F.layer_norm(embeddings, (self.width,), self.ln0_weight, self.ln0_bias, LN_EPS)
        return (embeddings, self.projector(found)) if self.with_features else embeddings


# torch.export wants one named argument for each graph input; those that are not given stay away.
VisionModel.forward.__signature__ = Signature(  # type: ignore[attr-defined]
    [
        Parameter("self", Parameter.POSITIONAL_OR_KEYWORD),
        *(Parameter(f"view{index}", Parameter.POSITIONAL_OR_KEYWORD, default=None) for index in range(_MOST_VIEWS)),
    ]
)


def _tower(spec: ArchSpec) -> Tower:
    if spec.tower is None:
        raise ExportError(f"a model of version {spec.version!r} sees no images", wanted="a model with a projector")
    kind = spec.tower.kind
    if kind == "clip":
        return ClipTower(spec.tower)
    if kind == "siglip":
        return SiglipTower(spec.tower, "bicubic" if spec.family == "rwkv6" else "bilinear")
    return FeatureTower(spec.tower) if kind == "features" else FusedTower(spec.tower)
