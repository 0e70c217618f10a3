"""What every family of language models shares: the shape of its graph, the head, the embedding table.

A family is one file with one `LanguageModel`. Its `forward` is the recurrent graph: embeddings and state in, logits of
the last position and state out; its parameters name the checkpoint tensors they are made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from export.archspec import ArchSpec
from export.checkpoint import Checkpoint
from export.weights import Loadable, WeightSource, finite, load_weight
from runtime.spec import SlotSpec

LN_EPS = 1e-5
GROUP_NORM_EPS = 64e-5  # 1e-5 times head_size_divisor squared; not stored in checkpoints


def token_shift(x: Tensor, shift: Tensor) -> Tensor:
    """Return x [B, T, C] one position later, beginning with `shift` [B, C]."""
    return torch.cat([shift.unsqueeze(1), x], 1)[:, :-1]


class Head(Loadable):
    """Final norm and vocabulary projection."""

    ln_out_weight: Tensor  # [C]
    ln_out_bias: Tensor
    head: Tensor  # [C, V]

    def __init__(self, spec: ArchSpec) -> None:
        super().__init__()
        self.width = spec.n_embd
        self.declare_norm("ln_out", spec.n_embd, spec.prefix + "ln_out.")
        self.declare("head", (spec.n_embd, spec.vocab_size), spec.prefix + "head.weight", layout="transpose")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [..., V] of x [..., C]."""
        return F.layer_norm(x, (self.width,), self.ln_out_weight, self.ln_out_bias, LN_EPS) @ self.head


class LanguageModel(Loadable):
    """A recurrent language model.

    `forward(embeddings, *slots, [scan])` returns (logits [B, V] of the last position, the carried slots after it);
    `hidden` takes the same and returns the residual stream x [B, T, C] of every position instead of logits.
        embeddings: [B, T, C] float32, ln0 already applied (token rows and image embeddings alike).
        slots: in the order of `slots`, the carried ones first.
        scan: [orders, T] int64, only where `spec.scan` is set: row i mod orders holds the positions of the segment in
            the order in which layer i reads them.
    """

    hidden: Callable[..., tuple[Tensor, ...]]

    def __init__(self, spec: ArchSpec) -> None:
        super().__init__()
        self.slots = recurrent_slots(spec)
        self.head = Head(spec)


def recurrent_slots(spec: ArchSpec) -> tuple[SlotSpec, ...]:
    """Return the state that RWKV-6 and RWKV-7 carry from token to token."""
    shift = (spec.n_layer, "B", spec.n_embd)
    wkv = (spec.n_layer, "B", spec.n_head, spec.head_size, spec.head_size)
    return (
        SlotSpec("att_shift", "float32", shift, ("layer", "batch", "channel"), "carried"),
        SlotSpec("ffn_shift", "float32", shift, ("layer", "batch", "channel"), "carried"),
        SlotSpec("wkv", "float32", wkv, ("layer", "batch", "head", "key", "value"), "carried"),
    )


def embedding_sources(spec: ArchSpec) -> dict[str, WeightSource]:
    """Return what the embedding table is made of: "table" [V, C] and ln0 [C]."""
    ln0 = f"{spec.prefix}blocks.0.ln0."
    return {
        "table": WeightSource((f"{spec.prefix}emb.weight",), "as_is", (spec.vocab_size, spec.n_embd)),
        "ln0_weight": WeightSource((f"{ln0}weight",), "as_is", (spec.n_embd,)),
        "ln0_bias": WeightSource((f"{ln0}bias",), "as_is", (spec.n_embd,)),
    }


def embedding_table(checkpoint: Checkpoint, spec: ArchSpec, rows: int = 4096) -> Iterator[Tensor]:
    """Yield the embedding table in order, [up to `rows`, C] float32 at a time, with ln0 applied to every row.

    Raises:
        CheckpointError: the table or ln0 holds NaN or Inf.
    """
    sources = embedding_sources(spec)
    weight, bias = (load_weight(checkpoint, sources["ln0_weight"]), load_weight(checkpoint, sources["ln0_bias"]))
    for chunk in torch.split(finite(checkpoint, sources["table"].keys[0]), rows):
        yield F.layer_norm(chunk.to(torch.float32), (spec.n_embd,), weight, bias, LN_EPS)
