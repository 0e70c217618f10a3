"""The trainable demo model: a small SigLIP-style tower, a gated projector and an RWKV-7 language model.

Parameter names are those of official checkpoints (`vit.vision_model.*`, `proj.*`, `rwkv.*`), so a trained
state dict goes through the ordinary exporter. `heads.*` exist during training only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.demo.dataset import CELL_WIDTHS, GATHER_WIDTHS, IGNORE, PATCHES, SET_WIDTHS, Batch, Labels
from apps.demo.language import RWKV7, LayerState, Projector
from apps.demo.scenes import GRID, QUALITIES, SIDE
from apps.demo.tower import Tower, normalise, pooled

ORDINALS = 4  # first, second, third, later: what image tokens are asked to say of their picture


@dataclass(frozen=True)
class Shape:
    """Sizes of the demo model."""

    rows: int  # of the embedding; the last one is the image token
    width: int = 128
    layers: int = 4
    vision: int = 128
    vision_layers: int = 5
    vision_heads: int = 4
    vision_inner: int = 512
    image: int = SIDE
    patch: int = SIDE // PATCHES
    grid: int = GRID


class TrainingHeads(nn.Module):
    """Linear read-outs that make the model say what it sees; never part of a checkpoint."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        cell = sum(CELL_WIDTHS)
        self.cell, self.patch = nn.Linear(shape.vision, cell + 2), nn.Linear(shape.vision, cell)
        self.scene = nn.Linear(shape.vision, 2 + len(QUALITIES))
        later = range(shape.layers - 1)  # after every layer but the first
        self.mention = nn.ModuleList(nn.Linear(shape.width, sum(SET_WIDTHS)) for _ in later)
        self.gather = nn.ModuleList(nn.Linear(shape.width, 2 * sum(SET_WIDTHS)) for _ in later)
        self.whole = nn.ModuleList(nn.Linear(shape.width, 2 + len(QUALITIES)) for _ in later)
        self.frame = nn.ModuleList(nn.Linear(shape.width, ORDINALS) for _ in later)  # which picture a token is of


class DemoModel(nn.Module):
    """Tower, projector and language model, with the training heads."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.vit = Tower(
            shape.image, shape.patch, shape.vision, shape.vision_layers, shape.vision_heads, shape.vision_inner
        )
        self.proj = Projector(shape.vision, shape.width)
        self.rwkv = RWKV7(shape.rows, shape.width, shape.layers)
        self.heads = TrainingHeads(shape)

    def features(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """RGB uint8 [B, 64, 64, 3] -> patch features [B, 64, D] and pooled features [B, 16, D]."""
        patches = self.vit(normalise(pictures))
        return patches, pooled(patches, self.shape.grid)

    def look(
        self, frames: Sequence[Tensor], before: Sequence[int], between: Sequence[Tensor]
    ) -> tuple[list[LayerState], Tensor]:
        """Read pictures: token ids `before`, features [B, 16, D] of each, ids [B, n] between them.

        Returns the states after every picture, [frames * B] with those after the first picture first, and the loss
        of saying at every image token whether its picture is the first, second, third or a later one.
        """
        batch, device = len(frames[0]), frames[0].device
        state, states = self.rwkv.start(batch), []
        loss = torch.zeros((), device=device)
        for i, features in enumerate(frames):
            text = between[i - 1] if i else torch.tensor(list(before), device=device)
            embedded = self.rwkv.emb(text).expand(batch, -1, -1)
            streams, state = self.rwkv(torch.cat([embedded, self.proj(features).float()], 1), state)
            states.append(state)
            if len(frames) > 1:
                target = torch.full((batch * features.shape[1],), min(i, ORDINALS - 1), device=device)
                for stream, head in zip(streams[1:], self.heads.frame, strict=True):
                    out = head(stream[:, -features.shape[1] :]).float().flatten(0, 1)
                    loss = loss + F.cross_entropy(out, target) / (len(self.heads.frame) * len(frames))
        if len(states) == 1:
            return state, loss
        return [(torch.cat(a), torch.cat(b), torch.cat(c)) for a, b, c in
                (zip(*layers, strict=True) for layers in zip(*states, strict=True))], loss  # fmt: skip

    def read(self, ids: Tensor, state: Sequence[LayerState], rows: Tensor) -> list[Tensor]:
        """Token ids [R, T], row i continuing state `rows[i]` -> the stream after every layer, each [R, T, C]."""
        chosen = [tuple(part.index_select(0, rows) for part in layer) for layer in state]
        return self.rwkv(self.rwkv.emb(ids), chosen)[0]

    def logits(self, stream: Tensor) -> Tensor:
        """Last layer's stream [..., C] -> logits [..., V]."""
        out: Tensor = self.rwkv.head(self.rwkv.ln_out(stream))
        return out

    def tower_loss(self, patches: Tensor, cells: Tensor, labels: Labels) -> Tensor:
        """Cross entropies and the offset error of the dense labels."""
        loss = patches.new_zeros((), dtype=torch.float32)
        at_cells, at_patches = self.heads.cell(cells).float(), self.heads.patch(patches).float()
        for out, target, weight in ((at_cells, labels.cells, 1.0), (at_patches, labels.patches, 0.7)):
            for j, part in enumerate(out[..., : sum(CELL_WIDTHS)].split(CELL_WIDTHS, -1)):
                loss = loss + weight * (1 if j else 2) * mean_entropy(part.flatten(0, 1), target[..., j].flatten())
        taken = (labels.cells[..., :1] > 0).float()
        error = (at_cells[..., sum(CELL_WIDTHS) :] - labels.offsets).square() * taken
        whole = self.heads.scene(cells.mean(1)).float()
        parts = F.cross_entropy(whole[:, :2], labels.globals[:, 0]) + F.cross_entropy(
            whole[:, 2:], labels.globals[:, 1]
        )
        return loss + 8 * error.sum() / taken.sum().clamp(min=1) + 0.3 * parts

    def phrase_loss(self, streams: Sequence[Tensor], batch: Batch) -> Tensor:
        """How well the stream knows, at a phrase and where the answer begins, what the phrases refer to."""
        loss = streams[0].new_zeros((), dtype=torch.float32)
        heads = (self.heads.mention, self.heads.gather, self.heads.whole)
        for stream, mention, gather, whole in zip(streams[1:], *heads, strict=True):
            flat = stream.flatten(0, 1)
            begin = flat[batch.gather_at]
            at_answer = torch.cat([gather(begin), whole(begin)], 1)
            for out, labels, widths, weight in (
                (mention(flat[batch.mention_at]), batch.mention_labels, SET_WIDTHS, 1.0),
                (at_answer, batch.gather_labels, GATHER_WIDTHS, 0.25),
            ):
                for j, part in enumerate(out.float().split(widths, -1)):
                    loss = loss + weight * mean_entropy(part, labels[:, j])
        return loss / len(self.heads.mention)

    def answer_loss(self, stream: Tensor, batch: Batch) -> Tensor:
        """Sum over the batch of the answers' cross entropies."""
        out = self.logits(stream[:, :-1][batch.learn[:, 1:]]).float()
        return F.cross_entropy(out, batch.ids[:, 1:][batch.learn[:, 1:]], reduction="sum")


def mean_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy over the targets that count; zero, not 0 / 0, where none does."""
    total = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum")
    return total / (target != IGNORE).sum().clamp(min=1)
