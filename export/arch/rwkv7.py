"""RWKV-7 ("x070", Goose): the language model as a recurrence over segments of any length.

Source: RWKV-7 paper, and VisualRWKV-v7 `model.py`. A block is x += TimeMix(LN(x)); x += ChannelMix(LN(x)). What is
carried from token to token: the last normed input of both halves, and per head a matrix S [key, value]. Values of
layer 0 (`v_first`) are mixed into the later layers of the same position; they are not carried. All tensors are float32.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.arch.language import GROUP_NORM_EPS, LN_EPS, LanguageModel, token_shift
from export.archspec import ArchSpec
from export.ops.wkv7 import wkv7
from export.weights import Loadable

_DECAY = -math.exp(-0.5)


class TimeMix(Loadable):
    """The recurrent half of a block."""

    x_r: Tensor  # [C], like x_w x_k x_v x_a x_g, w0 a0 v0, k_k k_a
    x_w: Tensor
    x_k: Tensor
    x_v: Tensor
    x_a: Tensor
    x_g: Tensor
    w0: Tensor
    w1: Tensor  # [C, rank], w2 [rank, C]; so a1 a2, v1 v2, g1 g2
    w2: Tensor
    a0: Tensor
    a1: Tensor
    a2: Tensor
    v0: Tensor
    v1: Tensor
    v2: Tensor
    g1: Tensor
    g2: Tensor
    k_k: Tensor
    k_a: Tensor
    r_k: Tensor  # [H, N]
    receptance: Tensor  # [C, C], like key value output
    key: Tensor
    value: Tensor
    output: Tensor
    ln_x_weight: Tensor  # [C]
    ln_x_bias: Tensor

    def __init__(self, spec: ArchSpec, layer: int) -> None:
        super().__init__()
        width, prefix = spec.n_embd, f"{spec.prefix}blocks.{layer}.att."
        self.first, self.heads, self.head_size = layer == 0, spec.n_head, spec.head_size
        ranks = dict(spec.ranks)
        if layer == 0:
            del ranks["v"]  # block 0 defines v_first; files of other trainers hold unused v0 v1 v2 here
        for name in (
            "x_r",
            "x_w",
            "x_k",
            "x_v",
            "x_a",
            "x_g",
            "k_k",
            "k_a",
            *(f"{s}0" for s in ranks if s != "g"),
        ):
            self.declare(name, (width,), prefix + name)
        for name, rank in ranks.items():
            self.declare(f"{name}1", (width, rank), f"{prefix}{name}1")
            self.declare(f"{name}2", (rank, width), f"{prefix}{name}2")
        for name in ("receptance", "key", "value", "output"):
            self.declare(name, (width, width), f"{prefix}{name}.weight", layout="transpose")
        self.declare("r_k", (spec.n_head, spec.head_size), prefix + "r_k")
        self.declare_norm("ln_x", width, prefix + "ln_x.")

    def forward(self, x: Tensor, v_first: Tensor, shift: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mix x [B, T, C]; returns the output, v_first [B, T, C] and the new state [B, H, N, N]."""
        delta = token_shift(x, shift) - x
        r = (x + delta * self.x_r) @ self.receptance
        k = (x + delta * self.x_k) @ self.key
        h_v = x + delta * self.x_v
        v = h_v @ self.value
        log_decay = _DECAY * torch.sigmoid(self.w0 + torch.tanh((x + delta * self.x_w) @ self.w1) @ self.w2)
        rate = torch.sigmoid(self.a0 + ((x + delta * self.x_a) @ self.a1) @ self.a2)
        g = torch.sigmoid((x + delta * self.x_g) @ self.g1) @ self.g2
        if self.first:
            v_first = v
        else:
            v = v + (v_first - v) * torch.sigmoid(self.v0 + (h_v @ self.v1) @ self.v2)
        kappa = self._split(k * self.k_k)
        kappa = kappa / torch.linalg.vector_norm(kappa, dim=-1, keepdim=True).clamp_min(1e-12)
        kappa = kappa.reshape(x.shape)
        k = k * (1 + (rate - 1) * self.k_a)
        y, state = wkv7(r, log_decay, k, v, -kappa, kappa * rate, state, self.head_size)
        bonus = (self._split(r * k) * self.r_k).sum(-1, keepdim=True) * self._split(v)
        normed = F.layer_norm(self._split(y), (self.head_size,), eps=GROUP_NORM_EPS)  # group norm: one group per head
        y = normed.reshape(x.shape) * self.ln_x_weight + self.ln_x_bias + bonus.reshape(x.shape)
        return (y * g) @ self.output, v_first, state

    def _split(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B * T, H, N]: a constant ONNX shape, whatever B and T are."""
        return x.reshape(-1, self.heads, self.head_size)


class ChannelMix(Loadable):
    """The feed-forward half of a block."""

    x_k: Tensor  # [C]
    key: Tensor  # [C, dim_ffn]
    value: Tensor  # [dim_ffn, C]

    def __init__(self, spec: ArchSpec, layer: int) -> None:
        super().__init__()
        prefix = f"{spec.prefix}blocks.{layer}.ffn."
        self.declare("x_k", (spec.n_embd,), prefix + "x_k")
        self.declare("key", (spec.n_embd, spec.dim_ffn), prefix + "key.weight", layout="transpose")
        self.declare("value", (spec.dim_ffn, spec.n_embd), prefix + "value.weight", layout="transpose")

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """Mix x [B, T, C], of which `shift` [B, C] is the position before."""
        hidden = torch.relu((x + (token_shift(x, shift) - x) * self.x_k) @ self.key)
        return (hidden * hidden) @ self.value


class Block(Loadable):
    """One layer; usable alone, so that a big model can be verified layer by layer."""

    ln1_weight: Tensor  # [C]
    ln1_bias: Tensor
    ln2_weight: Tensor
    ln2_bias: Tensor

    def __init__(self, spec: ArchSpec, layer: int) -> None:
        super().__init__()
        prefix = f"{spec.prefix}blocks.{layer}."
        self.width = spec.n_embd
        self.declare_norm("ln1", spec.n_embd, prefix + "ln1.")
        self.declare_norm("ln2", spec.n_embd, prefix + "ln2.")
        self.att, self.ffn = TimeMix(spec, layer), ChannelMix(spec, layer)

    def forward(
        self, x: Tensor, v_first: Tensor, att_shift: Tensor, ffn_shift: Tensor, wkv: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Run a segment.

        Args:
            x: [B, T, C].
            v_first: [B, T, C], from layer 0; layer 0 itself ignores it and returns it.
            att_shift, ffn_shift: [B, C].
            wkv: [B, H, N (key), N (value)].

        Returns:
            x, v_first, att_shift, ffn_shift, wkv after the segment.
        """
        normed = F.layer_norm(x, (self.width,), self.ln1_weight, self.ln1_bias, LN_EPS)
        mixed, v_first, wkv = self.att(normed, v_first, att_shift, wkv)
        x, att_shift = x + mixed, normed[:, -1]
        normed = F.layer_norm(x, (self.width,), self.ln2_weight, self.ln2_bias, LN_EPS)
        return x + self.ffn(normed, ffn_shift), v_first, att_shift, normed[:, -1], wkv


class RWKV7(LanguageModel):
    """The whole recurrent graph: embeddings and state in, logits of the last position and state out."""

    def __init__(self, spec: ArchSpec) -> None:
        super().__init__(spec)
        self.blocks = nn.ModuleList(Block(spec, layer) for layer in range(spec.n_layer))

    def forward(
        self, embeddings: Tensor, att_shift: Tensor, ffn_shift: Tensor, wkv: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run a segment of T >= 1 positions.

        Args:
            embeddings: [B, T, C], ln0 already applied (token rows and image embeddings alike).
            att_shift, ffn_shift: [L, B, C].
            wkv: [L, B, H, N (key), N (value)].

        Returns:
            logits [B, V] of the last position, then the three state tensors after it.
        """
        x, att_shift, ffn_shift, wkv = self.hidden(embeddings, att_shift, ffn_shift, wkv)
        return self.head(x[:, -1]), att_shift, ffn_shift, wkv

    def hidden(
        self, embeddings: Tensor, att_shift: Tensor, ffn_shift: Tensor, wkv: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the residual stream [B, T, C] after the last block, then the state."""
        x = v_first = embeddings
        states: list[tuple[Tensor, Tensor, Tensor]] = []
        for block, att, ffn, matrix in zip(
            self.blocks, att_shift.unbind(), ffn_shift.unbind(), wkv.unbind(), strict=True
        ):
            x, v_first, att, ffn, matrix = block(x, v_first, att, ffn, matrix)
            states.append((att, ffn, matrix))
        att_out, ffn_out, wkv_out = (torch.stack(slot) for slot in zip(*states, strict=True))
        return x, att_out, ffn_out, wkv_out
