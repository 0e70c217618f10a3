"""Rows for a step: single questions, conversations of several turns, questions about several frames."""

from __future__ import annotations

import random
from collections.abc import Sequence

from torch import Tensor

from apps.demo.dataset import Row, Words, draw_items, row_of
from apps.demo.scenes import Scene


def conversations(
    words: Words,
    scenes: Sequence[Scene],
    count: int,
    rng: random.Random,
    weights: dict[str, float],
    turns: float,
    many: bool,
) -> tuple[list[Row], list[Scene], list[Tensor]]:
    """Rows about every scene: `count` questions each, some scenes in conversations of two or three turns."""
    rows = []
    for index, scene in enumerate(scenes):
        items = draw_items(scene, count, rng, weights)
        packed = rng.random() < turns
        while items:
            size = min(rng.randint(2, 3), len(items)) if packed else 1
            part, items = items[:size], items[size:]
            rows.append(row_of(words, index, part, ["\n"] + ["User: "] * (size - 1)))
    return rows, list(scenes), []
