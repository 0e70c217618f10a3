"""Held-out accuracy of the model in training; the exported bundle is measured by evaluate.py."""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from apps.demo.dataset import CELL_WIDTHS, Row, Words, labels_of, split_by_length
from apps.demo.frames import bridges, conversations, frame_rows
from apps.demo.model import DemoModel
from apps.demo.pool import HELD_OUT, Material, Pool
from apps.demo.questions import WEIGHTS, Item

QUICK = 200  # scenes of a measurement during training
AFTER = (1, 2, 4, 8, 12, 16)  # numbers of frames after which questions are asked
Hits = dict[str, list[bool]]
Namer = Callable[[Row, Item], str]


def kind_and_language(row: Row, item: Item) -> str:
    """The name under which answers about one picture are counted."""
    return f"{item.kind} {item.language}"


def precision(device: torch.device) -> torch.autocast:
    """bf16 matrix products; weights, norms and the recurrence stay fp32."""
    return torch.autocast(device.type, torch.bfloat16)


@torch.no_grad()
def embed(net: DemoModel, pictures: Tensor) -> Tensor:
    """Pooled features of many pictures, RGB uint8 [n, 64, 64, 3] -> bf16 [n, 16, D]."""
    device = next(net.parameters()).device
    with precision(device):
        parts = [net.features(p.to(device))[1].bfloat16() for p in pictures.split(256)]
    return torch.cat(parts)


class Meter:
    """Measures one model on the scenes of the held-out seeds."""

    def __init__(self, net: DemoModel, words: Words, pool: Pool) -> None:
        self.net, self.words, self.pool = net, words, pool
        self.held = pool.shard(HELD_OUT, 2000)
        self.device = next(net.parameters()).device

    @torch.no_grad()
    def scores(self, options: argparse.Namespace, scenes: int = QUICK, seed: int = 1) -> dict[str, float]:
        """Right cells of the tower, and exact match of answers per kind and language of question.

        Answers are judged under teacher forcing, which is right for all tokens exactly when greedy decoding is.
        """
        hits: Hits = defaultdict(list)
        if options.phase != "language":
            self._cells(scenes, hits)
        if options.phase != "tower":
            rng, even = random.Random(seed), dict.fromkeys(WEIGHTS, 1.0)
            for i in range(0, scenes, 50):
                rows = conversations(self.words, self.held.scenes[i : i + 50], 8, rng, even, options.turns)
                self._answers(rows, [embed(self.net, self.held.pictures[i : i + 50]).float()], [], hits)
            if options.frames:
                self._frames(3 if scenes == QUICK else 20, rng, hits)
        return {name: float(np.mean(values)) for name, values in sorted(hits.items())}

    def _cells(self, scenes: int, hits: Hits) -> None:
        with precision(self.device):
            cells = self.net.features(self.held.pictures[:scenes].to(self.device))[1]
            out = self.net.heads.cell(cells)[..., : sum(CELL_WIDTHS)]
        target = labels_of(self.held.scenes[:scenes]).cells.to(self.device)
        for j, (name, part) in enumerate(
            zip(("form", "colour", "size", "text"), out.split(CELL_WIDTHS, -1), strict=True)
        ):
            counts = target[..., j] > 0 if j == 0 else target[..., j] >= 0
            hits[f"cell {name}"] += (part.argmax(-1) == target[..., j])[counts].tolist()

    def _frames(self, rounds: int, rng: random.Random, hits: Hits) -> None:
        """`rounds` times 20 sequences of frames: "first frame after 8" ... ; all languages together."""
        later = self.pool.later(self.held, 500)
        features = embed(self.net, torch.cat([self.held.pictures[:500], later.pictures])).float()
        both, size = self.held.scenes[:500] + later.scenes, 20
        material, even = Material(both, features, later.changes), dict.fromkeys(WEIGHTS, 1.0)

        def name(row: Row, item: Item) -> str:
            seen = row.scene // size + 1
            return f"{item.kind if seen > 1 else 'current frame'} after {seen}"

        for _ in range(rounds):
            picks, changes = material.frames(AFTER[-1], size, rng)
            groups = [[both[k] for k in pick] for pick in picks]
            rows = frame_rows(self.words, groups, changes, 8, rng, even, AFTER)
            frames = [features[list(part)] for part in zip(*picks, strict=True)]
            between = [b.to(self.device) for b in bridges(self.words, groups, rng)]
            self._answers(rows, frames, between, hits, name)

    def _answers(
        self, rows: list[Row], frames: list[Tensor], between: list[Tensor], hits: Hits, name: Namer = kind_and_language
    ) -> None:
        with precision(self.device):
            state, _ = self.net.look(frames, self.words.ids("User: "), between)
            for batch in (b.to(self.device) for b in split_by_length(rows, 2)):
                best = self.net.logits(self.net.read(batch.ids, state, batch.scene)[-1]).argmax(-1)
                right = (best[:, :-1] == batch.ids[:, 1:]).cpu()
                for i, row in enumerate(batch.rows):
                    for turn, (start, end, item) in enumerate(row.answers):
                        said = bool(right[i, start - 1 : end - 1].all())
                        hits["later turns" if turn else name(row, item)].append(said)
