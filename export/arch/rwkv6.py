"""RWKV-6 ("x060", Finch): the language model as a recurrence over segments, read in any order by each layer.

Source: RWKV-5/6 paper ("Eagle and Finch"), and VisualRWKV-v6 `model.py`. A block is x += TimeMix(LN(x));
x += ChannelMix(LN(x)). What is carried from token to token: the last normed input of both halves, and per head a
matrix S [key, value]. Models that scan pictures in several directions give each layer its own reading order; then a
segment's last token, for what is carried, is the last one read. All tensors are float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.arch.language import GROUP_NORM_EPS, LN_EPS, LanguageModel, token_shift
from export.archspec import ArchSpec
from export.ops.wkv6 import wkv6
from export.weights import Loadable


def blend(x: Tensor, delta: Tensor, first: Tensor, base: Tensor, w1: Tensor, w2: Tensor) -> tuple[Tensor, ...]:
    """Return n blends of a position and the one before, in amounts that depend on the data ("ddlerp").

    Args:
        x, delta: [B, T, C]; `x + delta` is the position before.
        first: [B, T, C], what the amounts are made of.
        base: [n * C], amounts that do not depend on it.
        w1, w2: [C, n * R], [n, R, C].
    """
    n, rank, width = w2.shape
    low = torch.tanh(first @ w1).reshape(-1, n, rank).transpose(0, 1)
    amounts = (base.reshape(n, 1, width) + low @ w2).reshape(n, *x.shape)
    mixed = x + delta * amounts
    return tuple(mixed[j] for j in range(n))  # one Gather each; unbind() becomes two nodes


def log_decay(x: Tensor, base: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """Return the log of what is kept of each key channel, [B, T, C], below 0 and of any size."""
    return -torch.exp(base + torch.tanh(x @ w1) @ w2)


class TimeMix(Loadable):
    """The recurrent half of a block. `start`, `recur` and `finish` are its parts, for families that add to it."""

    time_maa_x: Tensor  # [C]
    time_maa: Tensor  # [5 C]: w k v r g
    time_maa_w1: Tensor  # [C, 5 R]
    time_maa_w2: Tensor  # [5, R, C]
    time_decay: Tensor  # [C]
    time_decay_w1: Tensor  # [C, rank]
    time_decay_w2: Tensor  # [rank, C]
    time_faaaa: Tensor  # [H, N], the bonus of the current token
    receptance: Tensor  # [C, C], like key value gate output
    key: Tensor
    value: Tensor
    gate: Tensor
    output: Tensor
    ln_x_weight: Tensor  # [C]
    ln_x_bias: Tensor

    def __init__(self, spec: ArchSpec, prefix: str) -> None:
        super().__init__()
        self.head_size = spec.head_size
        declare_blend(self, spec, prefix, "wkvrg")
        declare_decay(self, spec, prefix)
        declare_matrices(self, spec, prefix, ("receptance", "key", "value", "gate", "output"))
        self.declare("time_faaaa", (spec.n_head, spec.head_size), prefix + "time_faaaa")
        self.declare_norm("ln_x", spec.n_embd, prefix + "ln_x.")

    def forward(self, x: Tensor, shift: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Mix x [B, T, C], of which `shift` [B, C] is the position before; `state` is [B, H, N, N].

        Returns:
            the output [B, T, C] and the new state.
        """
        delta, first = self.start(x, shift)
        y, g, state = self.recur(x, delta, first, state)
        return self.finish(y, g), state

    def start(self, x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Return the step back to the position before, and the input of every `blend`; [B, T, C] both."""
        delta = token_shift(x, shift) - x
        return delta, x + delta * self.time_maa_x

    def recur(self, x: Tensor, delta: Tensor, first: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the recurrence; returns y and the output gate [B, T, C], and the new state [B, H, N, N]."""
        h_w, h_k, h_v, h_r, h_g = blend(x, delta, first, self.time_maa, self.time_maa_w1, self.time_maa_w2)
        w = log_decay(h_w, self.time_decay, self.time_decay_w1, self.time_decay_w2)
        r, k, v = h_r @ self.receptance, h_k @ self.key, h_v @ self.value
        y, state = wkv6(r, k, v, w, self.time_faaaa, state, self.head_size)
        return y, F.silu(h_g @ self.gate), state

    def finish(self, y: Tensor, g: Tensor) -> Tensor:
        """Norm each head of y [B, T, C], gate it with g [B, T, C], and project it."""
        return (head_norm(y, self.head_size, self.ln_x_weight, self.ln_x_bias) * g) @ self.output


class ChannelMix(Loadable):
    """The feed-forward half of a block."""

    time_maa_k: Tensor  # [C]
    time_maa_r: Tensor
    key: Tensor  # [C, dim_ffn]
    value: Tensor  # [dim_ffn, C]
    receptance: Tensor  # [C, C]

    def __init__(self, spec: ArchSpec, prefix: str) -> None:
        super().__init__()
        for name in ("time_maa_k", "time_maa_r"):
            self.declare(name, (spec.n_embd,), prefix + name)
        self.declare("key", (spec.n_embd, spec.dim_ffn), prefix + "key.weight", layout="transpose")
        self.declare("value", (spec.dim_ffn, spec.n_embd), prefix + "value.weight", layout="transpose")
        declare_matrices(self, spec, prefix, ("receptance",))

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """Mix x [B, T, C], of which `shift` [B, C] is the position before."""
        delta = token_shift(x, shift) - x
        hidden = torch.relu((x + delta * self.time_maa_k) @ self.key)
        return torch.sigmoid((x + delta * self.time_maa_r) @ self.receptance) * ((hidden * hidden) @ self.value)


class Block(Loadable):
    """One layer; usable alone. Keys are `{prefix}ln1.weight` and so on; ln0 is the caller's business."""

    ln1_weight: Tensor  # [C]
    ln1_bias: Tensor
    ln2_weight: Tensor
    ln2_bias: Tensor

    def __init__(self, spec: ArchSpec, prefix: str) -> None:
        super().__init__()
        self.width = spec.n_embd
        self.declare_norm("ln1", spec.n_embd, prefix + "ln1.")
        self.declare_norm("ln2", spec.n_embd, prefix + "ln2.")
        self.att, self.ffn = self.time_mix(spec, prefix + "att."), ChannelMix(spec, prefix + "ffn.")

    def time_mix(self, spec: ArchSpec, prefix: str) -> TimeMix:
        """Build the recurrent half."""
        return TimeMix(spec, prefix)

    def forward(
        self, x: Tensor, att_shift: Tensor, ffn_shift: Tensor, wkv: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run a segment, in the order in which it is given.

        Args:
            x: [B, T, C].
            att_shift, ffn_shift: [B, C].
            wkv: [B, H, N (key), N (value)].

        Returns:
            x, att_shift, ffn_shift, wkv after the segment.
        """
        x, att_shift, wkv = self.remember(x, att_shift, wkv)
        x, ffn_shift = self.think(x, ffn_shift)
        return x, att_shift, ffn_shift, wkv

    def remember(self, x: Tensor, shift: Tensor, wkv: Tensor, *context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the recurrent half; returns x, its shift and wkv after the segment."""
        normed = F.layer_norm(x, (self.width,), self.ln1_weight, self.ln1_bias, LN_EPS)
        mixed, wkv = self.att(normed, shift, wkv, *context)
        return x + mixed, normed[:, -1], wkv

    def think(self, x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Run the feed-forward half; returns x and its shift after the segment."""
        normed = F.layer_norm(x, (self.width,), self.ln2_weight, self.ln2_bias, LN_EPS)
        return x + self.ffn(normed, shift), normed[:, -1]


class RWKV6(LanguageModel):
    """The whole recurrent graph: embeddings and state in, logits of the last position and state out."""

    def __init__(self, spec: ArchSpec) -> None:
        super().__init__(spec)
        self.blocks = nn.ModuleList(Block(spec, f"{spec.prefix}blocks.{layer}.") for layer in range(spec.n_layer))

    def forward(
        self, embeddings: Tensor, att_shift: Tensor, ffn_shift: Tensor, wkv: Tensor, scan: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run a segment of T >= 1 positions.

        Args:
            embeddings: [B, T, C], ln0 already applied (token rows and image embeddings alike).
            att_shift, ffn_shift: [L, B, C].
            wkv: [L, B, H, N (key), N (value)].
            scan: [orders, T] int64, permutations: layer i reads the positions scan[i % orders] in that order.
                None: every layer reads the natural order.

        Returns:
            logits [B, V] of the last position, then the three state tensors after it.
        """
        x, back, *state = self._read(embeddings, att_shift, ffn_shift, wkv, scan)
        last = x[:, -1] if back is None else x.index_select(1, back[-1:]).squeeze(1)
        return self.head(last), state[0], state[1], state[2]

    def hidden(
        self, embeddings: Tensor, att_shift: Tensor, ffn_shift: Tensor, wkv: Tensor, scan: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the residual stream [B, T, C] after the last block, in natural order, then the state."""
        x, back, *state = self._read(embeddings, att_shift, ffn_shift, wkv, scan)
        return x if back is None else x.index_select(1, back), state[0], state[1], state[2]

    def _read(
        self, x: Tensor, att_shift: Tensor, ffn_shift: Tensor, wkv: Tensor, scan: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
        """Return x [B, T, C] as the last layer read it, the way back to the natural order [T], and the state."""
        states: list[tuple[Tensor, Tensor, Tensor]] = []
        steps, backs = ((), ()) if scan is None else reorderings(scan)
        if scan is not None:
            x = x.index_select(1, scan[0])
        layers = zip(self.blocks, att_shift.unbind(), ffn_shift.unbind(), wkv.unbind(), strict=True)
        for layer, (block, att, ffn, matrix) in enumerate(layers):
            if steps and layer > 0:
                x = x.index_select(1, steps[(layer - 1) % len(steps)])
            x, att, ffn, matrix = block(x, att, ffn, matrix)
            states.append((att, ffn, matrix))
        att_out, ffn_out, wkv_out = (torch.stack(slot) for slot in zip(*states, strict=True))
        return x, backs[(len(self.blocks) - 1) % len(backs)] if backs else None, att_out, ffn_out, wkv_out


def reorderings(scan: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return what leads from each order of `scan` [orders, T] to the next one, and back to the natural one; [T] each.

    One gather between layers is enough: where x was read in order a, and should be read in order b, the position
    wanted stands at a⁻¹[b].
    """
    positions = torch.arange(scan.shape[1], device=scan.device).expand_as(scan)
    back = torch.empty_like(scan).scatter(1, scan, positions)
    return torch.gather(back, 1, scan.roll(-1, 0)).unbind(), back.unbind()


def head_norm(y: Tensor, head_size: int, weight: Tensor, bias: Tensor) -> Tensor:
    """Group norm of y [B, T, C], one group per head."""
    # [B * T * H, N]: a constant ONNX shape, whatever B and T are.
    normed = F.layer_norm(y.reshape(-1, head_size), (head_size,), eps=GROUP_NORM_EPS)
    return normed.reshape(y.shape) * weight + bias


def declare_blend(module: Loadable, spec: ArchSpec, prefix: str, streams: str, stored: int | None = None) -> None:
    """Add the parameters of `blend` as "time_maa*", for an order of streams such as "wkvrg".

    `stored`: for how many streams w1 and w2 are, where only the first are wanted.
    """
    n, rank = stored or len(streams), spec.ranks["maa"]
    module.declare("time_maa_x", (spec.n_embd,), prefix + "time_maa_x")
    module.declare("time_maa", (len(streams) * spec.n_embd,), *(f"{prefix}time_maa_{s}" for s in streams))
    module.declare("time_maa_w1", (spec.n_embd, n * rank), prefix + "time_maa_w1")
    module.declare("time_maa_w2", (n, rank, spec.n_embd), prefix + "time_maa_w2")


def declare_decay(module: Loadable, spec: ArchSpec, prefix: str) -> None:
    """Add the parameters of the decay."""
    rank = spec.ranks["decay"]
    module.declare("time_decay", (spec.n_embd,), prefix + "time_decay")
    module.declare("time_decay_w1", (spec.n_embd, rank), prefix + "time_decay_w1")
    module.declare("time_decay_w2", (rank, spec.n_embd), prefix + "time_decay_w2")


def declare_matrices(module: Loadable, spec: ArchSpec, prefix: str, names: tuple[str, ...]) -> None:
    """Add [C, C] matrices."""
    for name in names:
        module.declare(name, (spec.n_embd, spec.n_embd), f"{prefix}{name}.weight", layout="transpose")
