"""The tower of a checkpoint without one: precomputed features come in as they are."""

from __future__ import annotations

from torch import Tensor

from export.archspec import TowerSpec
from export.weights import Loadable
from runtime.spec import ViewSpec


class FeatureTower(Loadable):
    """Takes [I, cells, width] and returns it."""

    def __init__(self, spec: TowerSpec) -> None:
        super().__init__()
        self.spec = spec

    def view_specs(self) -> tuple[ViewSpec, ...]:
        """Return the one input; height is the number of cells and width the feature width."""
        cells, width = self.spec.cells, self.spec.width
        return (ViewSpec("features", cells, width, (), (), "bicubic", "stretch", "features"),)

    def forward(self, features: Tensor) -> Tensor:
        """Return the features."""
        return features
