"""The vision graph: views of pictures -> image embeddings ready for the recurrent graph."""

from __future__ import annotations

from torch import Tensor

from export.archspec import ArchSpec
from export.towers.features import FeatureTower
from export.towers.fused import FusedTower
from export.towers.projector import Projector
from export.towers.siglip import SiglipTower
from export.weights import Loadable
from runtime.errors import ExportError
from runtime.spec import ViewSpec

Tower = FusedTower | SiglipTower | FeatureTower
_TOWERS: dict[str, type[Tower]] = {"fused": FusedTower, "siglip": SiglipTower, "features": FeatureTower}


class VisionModel(Loadable):
    """Tower, pooling, projector and ln0."""

    def __init__(self, spec: ArchSpec) -> None:
        super().__init__()
        if spec.tower is None:
            raise ExportError(f"a model of version {spec.version!r} sees no images", wanted="a model with a projector")
        self.tower: Tower = _TOWERS[spec.tower.kind](spec.tower)
        self.projector = Projector(spec)

    def view_specs(self) -> tuple[ViewSpec, ...]:
        """Return the views `forward` takes, in order."""
        return self.tower.view_specs()

    def forward(self, view: Tensor, second: Tensor | None = None, third: Tensor | None = None) -> Tensor:
        """Return image embeddings [I, tokens, C] float32, ln0 applied.

        Args:
            view, second, third: as many as there are view specs, in their order: normalised pixels [I, 3,
                height, width], or features [I, cells, width]; float32. (Not `*views`: torch.export wants one
                argument per graph input.)
        """
        embeddings: Tensor = self.projector(self.tower(*(x for x in (view, second, third) if x is not None)))
        return embeddings
