"""Frozen features of drawn scenes, and transcripts in which the picture stands first, last or in the middle."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from apps.demo.dataset import Words, set_labels
from apps.demo.model import DemoModel, Shape
from apps.demo.pool import Pool
from apps.demo.questions import Item, ask
from apps.demo.scenes import Scene
from runtime.prompt import ImageSlot, answer_piece, turn_pieces
from runtime.spec import ImagePosition, PromptSpec

TOWER = Path(__file__).parent.parent / "demo.safetensors"
VOCABULARY = TOWER.with_name("vocab.txt")
KINDS = {"colour": 1.0, "shape": 1.0, "count": 1.0, "exist": 1.0}
LANGUAGE = "en"
WORDINGS = re.compile(
    r"What color is the |What shape is the |How many .* are there\?|Is there an? (?!.* in the picture)"
)


@dataclass
class Features:
    """Scenes with the frozen tower's pooled features [n, 16, 128], bf16."""

    scenes: list[Scene]
    tokens: Tensor


def frozen_tower(words: Words) -> DemoModel:
    """The committed demo model; only its tower is used."""
    net = DemoModel(Shape(words.rows)).eval()
    tower = {k: x.float() for k, x in load_file(TOWER).items() if k.startswith("vit.")}
    net.load_state_dict(tower, strict=False)
    return net


@torch.no_grad()
def features(net: DemoModel, scenes: Sequence[Scene], pictures: Tensor) -> Features:
    """What the tower says of RGB uint8 pictures [n, 64, 64, 3]."""
    device = next(net.parameters()).device
    half = torch.autocast(device.type, torch.bfloat16)
    with half:
        parts = [net.features(p.to(device))[1].bfloat16() for p in pictures.split(256)]
    return Features(list(scenes), torch.cat(parts))


def training_features(folder: Path, shards: int, words: Words) -> Features:
    """Features of the first training shards, kept in `folder` beside the drawn scenes."""
    pool, net = Pool(folder, shards), frozen_tower(words)
    scenes: list[Scene] = []
    tokens = []
    for i in range(shards):
        path, shard = folder / f"features-{i}.pt", pool.training(i)
        if not path.exists():
            torch.save(features(net, [], shard.pictures).tokens, path)
        scenes += shard.scenes
        tokens.append(torch.load(path, weights_only=True))
    return Features(scenes, torch.cat(tokens))


def prompt_of(position: ImagePosition) -> PromptSpec:
    """The official template, with the picture at `position`."""
    return PromptSpec("User: ", "Assistant:", "\n\n", position, "\n")


@dataclass
class Row:
    """One question about one scene as token ids, the picture's ids included."""

    scene: int
    ids: list[int]
    image_at: int
    answer_at: int
    item: Item


def row_of(words: Words, prompt: PromptSpec, scene: int, item: Item, tokens: int) -> Row:
    """The transcript that the runtime would feed: `turn_pieces`, then the answer, every piece tokenised by itself."""
    ids: list[int] = []
    image_at = 0
    for piece in turn_pieces(prompt, item.question, 1):
        if isinstance(piece, ImageSlot):
            image_at = len(ids)
            ids += [words.image] * tokens
        else:
            ids += words.ids(piece)
    reply = words.ids(answer_piece(prompt, item.answer))
    opening = len(words.ids(prompt.assistant))
    return Row(scene, ids + list(reply[opening:]), image_at, len(ids), item)


def draw_rows(
    words: Words, prompt: PromptSpec, scenes: Sequence[Scene], each: int, rng: random.Random, tokens: int
) -> list[Row]:
    """Up to `each` different questions about every scene, one wording a kind, so that little has to be learnt.

    What is drawn does not depend on the template.
    """
    rows = []
    for index, scene in enumerate(scenes):
        items: list[Item] = []
        for kind in rng.choices(list(KINDS), list(KINDS.values()), k=16 * each):
            item = ask(scene, kind, rng, LANGUAGE) if len(items) < each else None
            if item and WORDINGS.match(item.question) and all(item.question != other.question for other in items):
                items.append(item)
        rows += [row_of(words, prompt, index, item, tokens) for item in items]
    return rows


@dataclass
class Batch:
    """Rows as tensors; places are positions in the flattened [R T].

    `image_at` [R, P], `backwards` [R T] (every picture reversed), `learn_at` with the ids `learn` to be predicted
    there, `gather_at` where answers begin, with `gather_labels` of the question's phrase.
    """

    rows: list[Row]
    ids: Tensor
    features: Tensor
    image_at: Tensor
    backwards: Tensor
    learn_at: Tensor
    learn: Tensor
    gather_at: Tensor
    gather_labels: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        moved: dict[str, Any] = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        return Batch(**moved)


def collate(rows: list[Row], tokens: Tensor) -> Batch:
    """Pad rows on the right (causal, so harmless) to their longest; `tokens` [scenes, P, D] are the features."""
    length, count, size = max(len(r.ids) for r in rows), len(rows), tokens.shape[1]
    ids, backwards = np.zeros((count, length), np.int64), np.arange(count * length).reshape(count, length)
    image_at = np.zeros((count, size), np.int64)
    learn_at: list[int] = []
    learn: list[int] = []
    labels = []
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = row.ids
        span = slice(row.image_at, row.image_at + size)
        image_at[i] = backwards[i, span]
        backwards[i, span] = image_at[i, ::-1]
        learn_at += range(i * length + row.answer_at - 1, i * length + len(row.ids) - 1)
        learn += row.ids[row.answer_at :]
        labels.append(set_labels(row.item.mentions[0].things))
    gather_at = [i * length + row.answer_at - 1 for i, row in enumerate(rows)]
    seen = tokens[[row.scene for row in rows]]
    numbers = (learn_at, learn, gather_at, labels)
    return Batch(rows, torch.from_numpy(ids), seen, torch.from_numpy(image_at), torch.from_numpy(backwards).flatten(),
                 *(torch.tensor(x) for x in numbers))  # fmt: skip


def by_length(rows: list[Row], parts: int, tokens: Tensor) -> list[Batch]:
    """Batches of equal numbers of rows, short rows first, so that little is padded."""
    rows = sorted(rows, key=lambda r: len(r.ids))
    size = -(-len(rows) // parts)
    return [collate(rows[i : i + size], tokens) for i in range(0, len(rows), size)]
