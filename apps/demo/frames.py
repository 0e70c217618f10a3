"""Rows for a step: single questions, conversations of several turns, and questions about several frames."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from apps.demo.dataset import Row, Words, draw_items, row_of
from apps.demo.questions import Item, about_frame, ask_change, ask_earlier, ask_seen
from apps.demo.scenes import Scene

CURRENT = 0.55  # share of questions about the newest of several frames
SEEN = 0.2  # share of questions whether something was in view before
CHANGE = 0.1  # share of "What changed?" after the second frame, where it applies
MIDDLE = 0.25  # share of questions about a frame between the first and the last, of those about earlier ones
NAMED = range(4)  # frames with a name of their own: the first to the fourth
APART = 0.12  # share of gaps between frames that are a turn of the conversation

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
    count: float,
    rng: random.Random,
    weights: dict[str, float],
    after: Sequence[int] = (),
) -> list[Row]:
    """Rows about groups of frames seen one by one; every row continues the state after some of the frames.

    Args:
        words: the vocabulary.
        groups: the frames of every group, equally many.
        changes: what differs in the second frame where it is a later one of the first.
        count: questions a state, on average.
        rng: draws.
        weights: of the kinds.
        after: how many frames have been seen when questions are asked; by default every number.

    Returns:
        Rows whose `scene` is the number of their state in `DemoModel.look`: frame * len(groups) + group.
    """
    rows = []
    for seen in after or range(1, len(groups[0]) + 1):
        for index, (group, change) in enumerate(zip(groups, changes, strict=True)):
            for _ in range(int(count + rng.random())):
                item, about = _question(group[:seen], change if seen == 2 else None, rng, weights)
                if item:
                    rows.append(row_of(words, (seen - 1) * len(groups) + index, [item], ["\n"], about))
    return rows


def _question(
    group: Sequence[Scene], change: str | None, rng: random.Random, weights: dict[str, float]
) -> tuple[Item | None, Scene | None]:
    """A question after the last frame of `group`, and the frame that it is about if it is about one."""
    seen, roll = len(group), rng.random()
    frame = seen - 1
    if seen > 1 and roll > CURRENT:
        if change is not None and roll > 1 - CHANGE:
            return ask_change(change, rng), None
        if roll > 1 - SEEN:
            return ask_seen(group, rng), None
        middle = 2 < seen <= len(NAMED) and rng.random() < MIDDLE
        frame = rng.randrange(1, seen - 1) if middle else 0
        earlier = None if frame or rng.random() < 0.5 else ask_earlier(group[0], rng)
        if earlier:
            return earlier, group[0]
    for item in draw_items(group[frame], 1, rng, weights):
        return (about_frame(item, frame, seen, rng) if seen > 1 else item), group[frame]
    return None, None


def bridges(words: Words, groups: Sequence[Sequence[Scene]], rng: random.Random) -> list[Tensor]:
    """Token ids [B, n] between one frame and the next: a line end, or a whole turn of the conversation."""
    out = []
    for i in range(len(groups[0]) - 1):
        texts = ["\n"] * len(groups)
        if rng.random() < APART:
            question, answer = rng.choice(BETWEEN)
            texts = [f"\n{question}\n\n|Assistant: {answer(g[i])}\n\n|User: " for g in groups]
        out.append(torch.tensor([[t for piece in x.split("|") for t in words.ids(piece)] for x in texts]))
    return out
