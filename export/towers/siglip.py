"""SigLIP alone: every block and the final norm of one Hugging Face `SiglipVisionModel` (v6.10, v7.01 to v7.04)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from export.archspec import TowerSpec
from export.towers.vit import ViT
from export.weights import Loadable
from runtime.spec import ViewSpec


class SiglipTower(Loadable):
    """Pixels [I, 3, S, S] -> [I, cells, width]."""

    def __init__(self, spec: TowerSpec, interpolation: Literal["bicubic", "bilinear"]) -> None:
        super().__init__()
        assert spec.siglip is not None
        self.image_size, self.interpolation = spec.siglip.image_size, interpolation
        self.vit = ViT(spec.siglip)

    def view_specs(self) -> tuple[ViewSpec, ...]:
        """Return the settings of the tower's processor: bicubic for SigLIP, bilinear for SigLIP2."""
        half, size = (0.5, 0.5, 0.5), self.image_size
        return (ViewSpec("siglip", size, size, half, half, self.interpolation, "stretch", "pixels"),)

    def forward(self, siglip: Tensor) -> Tensor:
        """Return features of normalised pixels [I, 3, S, S] float32."""
        features: Tensor = self.vit(siglip)
        return features
