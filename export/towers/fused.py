"""DINOv2, SigLIP and SAM side by side (v7.00), each from its own view of the picture."""

from __future__ import annotations

import torch
from torch import Tensor

from export.archspec import TowerSpec
from export.towers.sam import Sam
from export.towers.vit import ViT
from export.weights import Loadable
from runtime.spec import ViewSpec

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


class FusedTower(Loadable):
    """Three views -> [I, cells, dino width + siglip width + sam width]."""

    def __init__(self, spec: TowerSpec) -> None:
        super().__init__()
        assert spec.dino is not None
        assert spec.siglip is not None
        assert spec.sam is not None
        self.sizes = (spec.dino.image_size, spec.siglip.image_size, spec.sam.image_size)
        self.dino, self.siglip, self.sam = ViT(spec.dino), ViT(spec.siglip), Sam(spec.sam)

    def view_specs(self) -> tuple[ViewSpec, ...]:
        """Return the three views in the order of `forward`."""
        dino, siglip, sam = self.sizes
        return (
            ViewSpec("dino", dino, dino, IMAGENET_MEAN, IMAGENET_STD, "bicubic", "stretch", "pixels"),
            ViewSpec("siglip", siglip, siglip, HALF, HALF, "bicubic", "stretch", "pixels"),
            ViewSpec("sam", sam, sam, IMAGENET_MEAN, IMAGENET_STD, "bicubic", "stretch", "pixels"),
        )

    def forward(self, dino: Tensor, siglip: Tensor, sam: Tensor) -> Tensor:
        """Return fused features of normalised pixels [I, 3, S, S] float32, S being each view's own."""
        return torch.cat([self.dino(dino), self.siglip(siglip), self.sam(sam)], -1)
