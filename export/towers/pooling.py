"""From what a tower makes to the tokens that the projector takes: each family pools in its own way."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from export.archspec import ArchSpec
from export.weights import Loadable
from runtime.errors import ConfigError

NO_GRID = -1  # the released models' grid_size


class ClassTokenPooling(nn.Module):
    """CLIP's tokens [I, 1 + cells, C] -> [I, tokens, C]: the patches pooled to a grid, then the class token.

    `grid_size`: -1 every patch, 0 none of them, 1 their mean, n squares of floor(side / n) patches (a rest at the right
    and bottom is left out). `mirrored` (v6.01) puts the reversed list of tokens beside it: [I, tokens, 2 C].
    """

    def __init__(self, side: int, grid_size: int, *, mirrored: bool) -> None:
        super().__init__()
        self.side, self.grid_size, self.mirrored = side, grid_size, mirrored
        self.tokens = clip_tokens(side, grid_size)

    def forward(self, x: Tensor) -> Tensor:
        """Pool tokens [I, 1 + cells, C], class token first."""
        first, patches = x[:, :1], x[:, 1:]
        if self.grid_size == 0:
            x = first
        else:
            x = torch.cat([patches if self.grid_size == NO_GRID else self._pooled(patches), first], 1)
        return torch.cat([x, x.flip(1)], -1) if self.mirrored else x

    def _pooled(self, patches: Tensor) -> Tensor:
        size = self.side // self.grid_size
        count, width = self.side // size, patches.shape[-1]
        kept = patches.reshape(-1, self.side, self.side, width)[:, : count * size, : count * size]
        return kept.reshape(-1, count, size, count, size, width).mean((2, 4)).reshape(-1, count * count, width)


class MeanToken(nn.Module):
    """[I, cells, C] -> [I, cells + 1, C]: the mean of all cells comes last (v6.10)."""

    def forward(self, x: Tensor) -> Tensor:
        """Append the mean to x [I, cells, C]."""
        return torch.cat([x, x.mean(1, keepdim=True)], 1)


class AdaptivePooling(Loadable):
    """[I, side², C] -> [I, n², C]: adaptive average pooling of a square grid, as torch's."""

    pool: Tensor  # [n, side]: averages rows, then columns

    def __init__(self, side: int, pooled: int) -> None:
        super().__init__()
        self.side, self.pooled = side, pooled
        self.declare("pool", (pooled, side), layout="pooling")

    def forward(self, x: Tensor) -> Tensor:
        """Pool x [I, side², C]."""
        side, pooled, width = self.side, self.pooled, x.shape[-1]
        x = self.pool @ x.reshape(-1, side, side * width)  # rows
        x = self.pool @ x.reshape(-1, side, width)  # columns
        return x.reshape(-1, pooled * pooled, width)


def clip_tokens(side: int, grid_size: int) -> int:
    """Return how many tokens `ClassTokenPooling` makes; raises `ConfigError` for a grid finer than the patches."""
    if not NO_GRID <= grid_size <= side:
        raise ConfigError(
            f"grid_size is {grid_size}",
            wanted=f"-1 (every patch), 0 (class token), 1 (mean), or 2 to {side}",
            hint="set grid_size in --config; the released models have -1",
        )
    patches = {NO_GRID: side * side, 0: 0, 1: 1}
    return 1 + (patches[grid_size] if grid_size in patches else (side // (side // grid_size)) ** 2)


def pooling(spec: ArchSpec) -> nn.Module:
    """Return the pooling of a model, [I, tower's tokens, C] -> [I, tokens, projector's inputs]."""
    tower = spec.tower
    assert tower is not None
    if tower.clip is not None:
        grid_size = NO_GRID if spec.grid_size is None else spec.grid_size
        return ClassTokenPooling(tower.clip.side, grid_size, mirrored=spec.version == "6.01")
    if spec.version == "6.10" and tower.kind == "siglip":
        return MeanToken()
    if spec.compressor_layers or spec.num_token_per_image == tower.cells:
        return nn.Identity()
    return AdaptivePooling(math.isqrt(tower.cells), math.isqrt(spec.num_token_per_image))
