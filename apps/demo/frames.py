"""Rows for a step: single questions, conversations of several turns, and questions about several frames."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from apps.demo.dataset import Row, Words, draw_items, row_of
from apps.demo.questions import Item, about_frame, ask_change, ask_earlier
from apps.demo.scenes import Scene

# Questions with which a conversation can go on from one picture to the next, and their answers in one token.
BETWEEN: tuple[tuple[str, Callable[[Scene], str]], ...] = (
    ("Is it day or night?", lambda s: "night" if s.night else "day"),
    ("How many shapes are there?", lambda s: str(len(s.shapes))),
    ("Is there a star?", lambda s: "yes" if any(t.form == "star" for t in s.things) else "no"),
)


def conversations(
    words: Words,
    scenes: Sequence[Scene],
    count: int,
    rng: random.Random,
    weights: dict[str, float],
    turns: float,
) -> list[Row]:
    """Rows about every scene: `count` questions each, some scenes in conversations of two or three turns."""
    rows = []
    for index, scene in enumerate(scenes):
        items = draw_items(scene, count, rng, weights)
        packed = rng.random() < turns
        while items:
            size = min(rng.randint(2, 3), len(items)) if packed else 1
            part, items = items[:size], items[size:]
            rows.append(row_of(words, index, part, ["\n"] + ["User: "] * (size - 1), scene))
    return rows


def frame_rows(
    words: Words,
    groups: Sequence[Sequence[Scene]],
    changes: Sequence[str | None],
    count: int,
    rng: random.Random,
    weights: dict[str, float],
) -> list[Row]:
    """Rows about groups of frames; `changes` says what differs in the last frame where it is a later frame."""
    rows = []
    for index, (group, change) in enumerate(zip(groups, changes, strict=True)):
        items: list[tuple[Item, Scene | None]] = []
        if change is not None and len(group) == 2:
            items.append((ask_change(change, rng), None))
        if earlier := ask_earlier(group[0], rng):
            items.append((earlier, group[0]))
        for _ in range(count - len(items)):
            frame = rng.randrange(len(group))
            for item in draw_items(group[frame], 1, rng, weights):
                items.append((about_frame(item, frame, len(group), rng), group[frame]))
        rows += [row_of(words, index, [item], ["\n"], about) for item, about in items]
    return rows


def bridges(words: Words, groups: Sequence[Sequence[Scene]], rng: random.Random) -> list[Tensor]:
    """Token ids [B, n] between one frame and the next: a line end, or a whole turn of the conversation."""
    out = []
    for i in range(len(groups[0]) - 1):
        texts = ["\n"] * len(groups)
        if rng.random() < 0.3:
            question, answer = rng.choice(BETWEEN)
            texts = [f"\n{question}\n\n|Assistant: {answer(g[i])}\n\n|User: " for g in groups]
        out.append(torch.tensor([[t for piece in x.split("|") for t in words.ids(piece)] for x in texts]))
    return out
