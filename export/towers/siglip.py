"""SigLIP2 alone (v7.01, v7.02): every block and the final norm of one Hugging Face `SiglipVisionModel`."""

from __future__ import annotations

from torch import Tensor

from export.archspec import TowerSpec
from export.towers.vit import ViT
from export.weights import Loadable
from runtime.spec import ViewSpec


class SiglipTower(Loadable):
    """Pixels [I, 3, S, S] -> [I, cells, width]."""

    def __init__(self, spec: TowerSpec) -> None:
        super().__init__()
        assert spec.siglip is not None
        self.image_size = spec.siglip.image_size
        self.vit = ViT(spec.siglip)

    def view_specs(self) -> tuple[ViewSpec, ...]:
        """Return the processor's settings of SigLIP2."""
        half = (0.5, 0.5, 0.5)
        return (ViewSpec("siglip", self.image_size, self.image_size, half, half, "bilinear", "stretch", "pixels"),)

    def forward(self, siglip: Tensor) -> Tensor:
        """Return features of normalised pixels [I, 3, S, S] float32."""
        features: Tensor = self.vit(siglip)
        return features
