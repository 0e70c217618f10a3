"""Drawn scenes on disk. The files are pickles that this program wrote itself; never open others' files with it."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apps.demo.dataset import make_pool, picture_of
from apps.demo.scenes import Scene, changed

HELD_OUT = 0  # seeds of held-out scenes start here, those of training scenes at TRAINING
TRAINING = 1_000_000
SHARD = 4000
AGAIN = 0.25  # share of frames that show the scene of the frame before
SINGLE = 0.25  # share of groups that begin with a single object at least


@dataclass
class Shard:
    """Scenes and their pictures, RGB uint8 [n, 64, 64, 3]; of later frames also what changed."""

    first: int
    scenes: list[Scene]
    pictures: Tensor
    changes: list[str] = field(default_factory=list)


@dataclass
class Material:
    """What a step is about: scenes with features [n, 16, D] (tower frozen) or pictures [n, 64, 64, 3]."""

    scenes: list[Scene]
    source: Tensor
    changes: list[str]  # the second half of `scenes` are later frames of the first, changed like this

    def frames(self, count: int, groups: int, rng: random.Random) -> tuple[list[list[int]], list[str | None]]:
        """Groups of `count` indices, and what changed in the second frame where it is a later one of the first.

        Some frames show the scene of the frame before, changed a little or not at all; some groups begin with a
        single object.
        """
        half, out, changes = len(self.changes), [], []
        single = [i for i, s in enumerate(self.scenes) if len(s.things) == 1]
        for _ in range(groups):
            pick = rng.sample(range(len(self.scenes)), count)
            if single and rng.random() < SINGLE:
                pick[0] = rng.choice(single)
            for i in range(1, count):
                if half and rng.random() < AGAIN:
                    pick[i] = pick[i - 1] + (half if pick[i - 1] < half else -half)
            pair = half > 0 and pick[1] == pick[0] + half
            out.append(pick)
            changes.append(self.changes[pick[0]] if pair else None)
        return out, changes


class Pool:
    """Shards in a folder, drawn where they are missing."""

    def __init__(self, folder: Path, shards: int) -> None:
        self.folder, self.shards = folder, shards
        folder.mkdir(parents=True, exist_ok=True)

    def _kept(self, name: str, make: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
        path = self.folder / f"{name}.pkl"
        if not path.exists():
            partial = path.with_suffix(f".{random.randrange(10**9)}")
            partial.write_bytes(pickle.dumps(make(), protocol=4))
            partial.rename(path)
        kept: tuple[Any, ...] = pickle.loads(path.read_bytes())
        return kept

    def shard(self, first: int, count: int) -> Shard:
        """The scenes of `count` seeds from `first` on."""
        scenes, pictures = self._kept(f"{first}-{count}", lambda: make_pool(first, count))
        return Shard(first, list(scenes), torch.from_numpy(pictures))

    def training(self, index: int) -> Shard:
        """A training shard."""
        return self.shard(TRAINING + SHARD * index, SHARD)

    def features(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """A tensor kept under a name that says what it was made of."""
        path = self.folder / f"{name}.pt"
        if not path.exists():
            partial = path.with_suffix(f".{random.randrange(10**9)}")
            torch.save(make(), partial)
            partial.rename(path)
        kept: Tensor = torch.load(path, weights_only=True)
        return kept

    def later(self, shard: Shard, count: int) -> Shard:
        """A later frame of each of the first `count` scenes of a shard."""

        def make() -> tuple[list[Scene], np.ndarray, list[str]]:
            rng = random.Random(shard.first + 1)
            pairs = [changed(rng, s) for s in shard.scenes[:count]]
            pictures = np.stack([picture_of(s, rng.choice((1, 1, 2, 4))) for s, _ in pairs])
            return [s for s, _ in pairs], pictures, [c for _, c in pairs]

        scenes, pictures, changes = self._kept(f"{shard.first}-{count}-later", make)
        return Shard(shard.first, scenes, torch.from_numpy(pictures), changes)
