"""Training material: pools of drawn scenes, dense labels, and batches of tokenised questions.

A batch holds several questions per scene. They share the picture's state and do not see each other, so every
answer has to be read from the picture.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from pyrwkv_tokenizer import RWKVTokenizer
from torch import Tensor

from apps.demo.questions import KINDS, Item, ask
from apps.demo.scenes import (
    CELL,
    COLOUR_NAMES,
    FORMS,
    GRID,
    QUALITIES,
    SIDE,
    WORDS,
    Scene,
    Thing,
    draw,
    scene_of,
)

PATCHES = 8  # patches on a side
FORM_ID = {f: i + 1 for i, f in enumerate(FORMS)}  # 0 is "nothing here"
COLOUR_ID = {c: i for i, c in enumerate(COLOUR_NAMES)}
TEXT_ID = {str(d): d for d in range(10)} | {w: 10 + i for i, w in enumerate(WORDS)}
CELL_WIDTHS = (len(FORMS) + 1, len(COLOUR_NAMES), 2, len(TEXT_ID))  # form, colour, size, text
SET_WIDTHS = (5, 8, 8, 2, len(COLOUR_NAMES), len(FORMS))  # how many, and if one: x, y, size, colour, form
GATHER_WIDTHS = (*SET_WIDTHS, *SET_WIDTHS, 2, len(QUALITIES))  # two phrases, then night and quality
IGNORE = -100
EXTRA_TEXTS = (
    "Hello! Hi! What can you do? Please describe the picture. I don't know. What is this? What do you see?",
    "What changed? What is different? Did anything change? What was in the earlier picture? the first picture",
    "the last picture, second third fourth image. What was there before? moved appeared disappeared nothing color",
    "was were now before after same other object picture image previous earlier colour one two three four",
    "有什么变化？什么变了？第一张图里有什么？上一张图，之前的图，现在，第二张第三张第四张，最后一张",
    "出现 消失 移动 颜色 没有 变化 之前 图片 请描述这张图 你好 这是什么 你看到了什么 一二三四",
)


def picture_of(scene: Scene, scale: int) -> np.ndarray:
    """RGB uint8 [64, 64, 3], drawn at `scale` and reduced as the runtime reduces pictures."""
    image = Image.fromarray(cv2.cvtColor(draw(scene, scale), cv2.COLOR_BGR2RGB))
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def make_pool(first: int, count: int) -> tuple[list[Scene], np.ndarray]:
    """The scenes of seeds first ... first + count - 1 and their pictures [count, 64, 64, 3], RGB uint8."""
    cv2.setNumThreads(1)
    scenes = [scene_of(seed) for seed in range(first, first + count)]
    scales = (random.Random(first + i).choice((1, 1, 2, 4)) for i in range(count))
    return scenes, np.stack([picture_of(s, k) for s, k in zip(scenes, scales, strict=True)])


@dataclass(frozen=True)
class Labels:
    """Dense labels of many scenes; -100 means no loss.

    cells [S, 16, 4] and patches [S, 64, 4]: form, colour, size, text. offsets [S, 16, 2]: the centre within its cell,
    -0.5 ... 0.5. globals [S, 2]: night, quality.
    """

    cells: Tensor
    offsets: Tensor
    patches: Tensor
    globals: Tensor

    def to(self, device: torch.device) -> Labels:
        """The same on another device."""
        return Labels(*(x.to(device) for x in (self.cells, self.offsets, self.patches, self.globals)))


def labels_of(scenes: Sequence[Scene]) -> Labels:
    """Label every pooled cell that holds an object's centre and every patch that an object covers."""
    n = len(scenes)
    cells, patches = np.full((n, GRID**2, 4), IGNORE), np.full((n, PATCHES**2, 4), IGNORE)
    cells[..., 0] = patches[..., 0] = 0
    offsets, rest = np.zeros((n, GRID**2, 2), np.float32), np.zeros((n, 2), np.int64)
    centre = (np.arange(PATCHES) + 0.5) * SIDE / PATCHES
    px, py = np.tile(centre, PATCHES), np.repeat(centre, PATCHES)
    for i, scene in enumerate(scenes):
        rest[i] = scene.night, QUALITIES.index(scene.quality)
        for t in scene.things:
            label = FORM_ID[t.form], COLOUR_ID[t.colour], int(t.big), TEXT_ID.get(t.text, IGNORE)
            cells[i, t.cell] = label
            offsets[i, t.cell] = t.x / CELL % 1 - 0.5, t.y / CELL % 1 - 0.5
            hx, hy = t.half
            far = np.maximum(abs(px - t.x) / max(hx, 4), abs(py - t.y) / max(hy, 4))
            patches[i, (far < 1.6) & (patches[i, :, 0] == 0), 0] = IGNORE
            patches[i, (far < 0.95) | (far == far.min())] = label
    return Labels(*(torch.from_numpy(x) for x in (cells, offsets, patches, rest)))


class Words:
    """The trimmed vocabulary: text to row numbers, and the length of every token in bytes."""

    def __init__(self, path: Path) -> None:
        self._tokenizer = RWKVTokenizer(vocab_filepath=str(path))
        lines = path.read_text(encoding="utf-8").splitlines()
        self.lengths = [0] + [int(line.rsplit(" ", 1)[1]) for line in lines]
        self.image = len(lines) + 1
        self.rows = self.image + 1
        self.ids = functools.lru_cache(500_000)(lambda text: tuple(self._tokenizer.encode(text)))


def write_vocabulary(full: Path, path: Path) -> None:
    """Keep the tokens that the questions and answers need, and all 256 single bytes, renumbered from 1."""
    lines = full.read_text(encoding="utf-8").splitlines()
    tokenizer = RWKVTokenizer(vocab_filepath=str(full))
    rng, used = random.Random(5), set(range(1, 257)) | {261}
    texts = {"User: ", "Assistant:", "\n", *EXTRA_TEXTS, *(w for t in EXTRA_TEXTS for w in t.split())}
    for seed in range(1500):
        scene = scene_of(seed)
        for kind in KINDS:
            for language in ("en", "zh", "en", "zh"):
                if item := ask(scene, kind, rng, language):
                    texts |= {f"\n{item.question}\n\n", f"User: {item.question}\n\n", f"Assistant: {item.answer}\n\n"}
    for text in texts | {f" {w}\n\n" for t in EXTRA_TEXTS for w in t.split()}:
        used |= set(tokenizer.encode(text))
    kept = [line.split(" ", 1)[1] for line in lines if int(line.split(" ", 1)[0]) in used]
    path.write_text("".join(f"{i} {rest}\n" for i, rest in enumerate(kept, 1)), encoding="utf-8")


def set_labels(things: Sequence[Thing]) -> list[int]:
    """What a phrase refers to, as targets for the widths SET_WIDTHS."""
    if len(things) != 1:
        return [min(4, len(things))] + [IGNORE] * 5
    t = things[0]
    return [1, int(t.x // 8), int(t.y // 8), int(t.big), COLOUR_ID[t.colour], FORM_ID[t.form] - 1]


@dataclass
class Row:
    """One conversation about one scene, after the picture."""

    scene: int
    ids: list[int]
    answers: list[tuple[int, int, Item]]  # first and last + 1 position of an answer with its end
    mentions: list[tuple[int, list[int]]]
    gathered: list[tuple[int, list[int]]]  # where the answer begins, with GATHER_WIDTHS labels


@dataclass
class Batch:
    """Rows of similar length as tensors: ids [R, T], scene of each row [R], flat positions and targets."""

    rows: list[Row]
    ids: Tensor
    scene: Tensor
    learn: Tensor  # bool [R, T]: this token is to be predicted from the one before
    mention_at: Tensor
    mention_labels: Tensor
    gather_at: Tensor
    gather_labels: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        moved: dict[str, Any] = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        return Batch(**moved)


def row_of(words: Words, scene: int, items: Sequence[Item], heads: Sequence[str], about: Scene | None = None) -> Row:
    """Tokenise turns; `heads[i]` is the text before question i ("\\n" after a picture, else "User: ").

    `about` is the picture that the questions are about, if there is one such.
    """
    whole = [int(about.night), QUALITIES.index(about.quality)] if about else [IGNORE] * 2
    row = Row(scene, [], [], [], [])
    for item, head in zip(items, heads, strict=True):
        asked = words.ids(head + item.question + "\n\n")
        ends = np.cumsum([words.lengths[i] for i in asked])
        labels = [set_labels(m.things) for m in item.mentions]
        for mention, label in zip(item.mentions, labels, strict=True):
            end = len((head + item.question[: mention.end]).encode())
            row.mentions.append((len(row.ids) + int(np.searchsorted(ends, end)), label))
        row.ids += asked
        role, reply = words.ids("Assistant:"), words.ids(f" {item.answer}\n\n")
        row.ids += role
        both = labels[:2] + [[IGNORE] * len(SET_WIDTHS)] * (2 - len(labels[:2]))
        row.gathered.append((len(row.ids) - 1, both[0] + both[1] + whole))
        row.answers.append((len(row.ids), len(row.ids) + len(reply), item))
        row.ids += reply
    return row


def collate(rows: list[Row]) -> Batch:
    """Pad rows on the right (causal, so harmless) to their longest."""
    length = max(len(r.ids) for r in rows)
    ids, learn = np.zeros((len(rows), length), np.int64), np.zeros((len(rows), length), bool)
    mentions, gathered = [], []
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = row.ids
        for start, end, _ in row.answers:
            learn[i, start:end] = True
        mentions += [(i * length + at, label) for at, label in row.mentions]
        gathered += [(i * length + at, label) for at, label in row.gathered]
    places = [torch.tensor([at for at, _ in part], dtype=torch.long) for part in (mentions, gathered)]
    widths = len(SET_WIDTHS), len(GATHER_WIDTHS)
    targets = [
        torch.tensor([label for _, label in part], dtype=torch.long).view(-1, w)
        for part, w in zip((mentions, gathered), widths, strict=True)
    ]
    scene = torch.tensor([r.scene for r in rows])
    return Batch(
        rows, torch.from_numpy(ids), scene, torch.from_numpy(learn), places[0], targets[0], places[1], targets[1]
    )


def draw_items(scene: Scene, count: int, rng: random.Random, weights: dict[str, float]) -> list[Item]:
    """Up to `count` different questions about a scene, kinds drawn by weight."""
    items: list[Item] = []
    kinds, mass = list(weights), list(weights.values())
    for kind in rng.choices(kinds, mass, k=3 * count):
        item = ask(scene, kind, rng)
        if item and all(item.question != other.question for other in items):
            items.append(item)
            if len(items) == count:
                break
    return items


def split_by_length(rows: list[Row], parts: int) -> list[Batch]:
    """Batches of equal numbers of rows, short rows first, so that little is padded."""
    rows = sorted(rows, key=lambda r: len(r.ids))
    size = -(-len(rows) // parts)
    return [collate(rows[i : i + size]) for i in range(0, len(rows), size)]
