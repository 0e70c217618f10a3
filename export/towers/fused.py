"""Towers side by side, each with a view of its own: DINOv2 + SigLIP (v6.11), + SAM (HD, HM, v7.00), + tiles (UHD).

With tiles the whole picture and its 2 x 2 tiles each go through every tower. A tile's grid is averaged to half its side
and the four are put together to one grid, whose features stand beside those of the whole picture.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from export.archspec import TowerSpec
from export.towers.sam import Sam
from export.towers.vit import ViT
from export.weights import Loadable
from runtime.spec import ViewSpec

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
_NORMALISE = {"dino": (IMAGENET_MEAN, IMAGENET_STD), "siglip": (HALF, HALF), "sam": (IMAGENET_MEAN, IMAGENET_STD)}
_TILES = {"tl": (2, 0, 0), "tr": (2, 0, 1), "bl": (2, 1, 0), "br": (2, 1, 1)}


class FusedTower(Loadable):
    """Views of a picture -> [I, cells, dino width + siglip width (+ sam width)], twice the width with tiles."""

    def __init__(self, spec: TowerSpec) -> None:
        super().__init__()
        assert spec.dino is not None
        assert spec.siglip is not None
        self.tiled = spec.tiles > 1
        self.dino, self.siglip = ViT(spec.dino), ViT(spec.siglip)
        self.sizes = {"dino": spec.dino.image_size, "siglip": spec.siglip.image_size}
        if spec.sam is not None:
            self.sam = Sam(spec.sam, pictures=1 + len(_TILES) if self.tiled else 1)
            self.sizes["sam"] = spec.sam.image_size

    def view_specs(self) -> tuple[ViewSpec, ...]:
        """Return the views in the order of `forward`: every tower's of the whole picture, then tile by tile."""
        whole = tuple(
            ViewSpec(name, size, size, *_NORMALISE[name], "bicubic", "stretch", "pixels")
            for name, size in self.sizes.items()
        )
        if not self.tiled:
            return whole
        tiles = (
            replace(view, name=f"{view.name}_{where}", tile=tile) for where, tile in _TILES.items() for view in whole
        )
        return (*whole, *tiles)

    def forward(self, *views: Tensor) -> Tensor:
        """Return fused features of normalised pixels [I, 3, S, S] float32, S being each view's own."""
        towers = [getattr(self, name) for name in self.sizes]
        if not self.tiled:
            return torch.cat([tower(view) for tower, view in zip(towers, views, strict=True)], -1)
        # A tower reads all its five views as one batch, so that the graph holds it once.
        features = [tower(torch.cat(views[index :: len(towers)])) for index, tower in enumerate(towers)]
        features = [x.reshape(1 + len(_TILES), -1, *x.shape[1:]) for x in features]
        return torch.cat([x[0] for x in features] + [_stitched(x[1:]) for x in features], -1)


def _stitched(tiles: Tensor) -> Tensor:
    """[4, I, cells, C], row by row -> [I, cells, C]: every tile at half its side, in its place."""
    cells, width = tiles.shape[2:]
    side = math.isqrt(cells)
    half = side // 2
    x = tiles.reshape(-1, half, 2, half, 2, width).mean((2, 4))
    x = x.reshape(2, 2, -1, half, half, width).permute(2, 0, 3, 1, 4, 5)  # [I, row, y, column, x, C]
    return x.reshape(-1, cells, width)
