"""The trainable RWKV-6 ("x060") with a linear projector, and its HM form, under the names of official checkpoints.

`forward` reads whole transcripts from a zero state. `heads.*` exist during training only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.demo.ablation.data import Batch
from apps.demo.ablation.kernels import NORM_EPS, SIZE, finish, lerp, wkv6
from apps.demo.ablation.variants import Sizes, Variant
from apps.demo.dataset import SET_WIDTHS
from apps.demo.model import mean_entropy

SLOTS = "wkvrg"  # order of the data-dependent token shift
LINEARS = ("key", "value", "receptance", "gate")  # those of SLOTS[1:]


class TimeMix(nn.Module):
    """RWKV-6 time mix of one layer; `memory` adds HM's reading of an image state.

    The last layer of a state encoder gives nothing but its state: with `blind` only that is computed.
    """

    key: nn.Linear
    value: nn.Linear
    receptance: nn.Linear
    gate: nn.Linear
    output: nn.Linear
    time_maa_x: nn.Parameter

    def __init__(self, sizes: Sizes, index: int, layers: int, dynamic: bool, memory: bool) -> None:
        super().__init__()
        width, self.heads, self.dynamic, self.memory = sizes.width, sizes.width // SIZE, dynamic, memory
        depth, rest = index / max(1, layers - 1), 1 - index / layers
        n = torch.arange(width) / width

        def vector(x: Tensor) -> nn.Parameter:
            return nn.Parameter(x.float().view(1, 1, -1).clone())

        for slot in "x" + SLOTS:
            ramp = n ** (rest / 2 if slot in "rg" else rest) + (0.3 * depth if slot == "v" else 0)
            setattr(self, f"time_maa_{slot}", vector(1 - ramp))
        self._low("time_maa", width, sizes.mix_rank, len(SLOTS))
        self.time_decay = vector(5 * n ** (0.7 + 1.3 * depth) - 6)
        self.time_decay_w1 = nn.Parameter(torch.zeros(width, sizes.decay_rank), requires_grad=dynamic)
        self.time_decay_w2 = nn.Parameter(_spread(1, sizes.decay_rank, width)[0], requires_grad=dynamic)
        self.time_faaaa = nn.Parameter((depth * (1 - n) + 0.1 * (torch.arange(width) % 3 - 1)).view(-1, SIZE))
        for name, gain in (*zip(LINEARS, (0.3, 0.5, 0.5, 0.5), strict=True), ("output", 0.0)):
            setattr(self, name, _linear(width, width, gain))
        self.ln_x = nn.GroupNorm(self.heads, width, eps=NORM_EPS)
        if memory:
            self.mem_read, self.mem_gate = _linear(width, width, 0.5), _linear(width, width, 0.5)
            self.time_mem_r, self.time_mem_g = vector(1 - n ** (rest / 2)), vector(1 - n ** (rest / 2))
            self._low("time_mem", width, sizes.mix_rank, 2)
        if not dynamic:  # zero on both sides: a static model that a v6 checkpoint can hold
            for name in ("time_maa_w2", "time_decay_w2"):
                getattr(self, name).data.zero_()

    def _low(self, name: str, width: int, rank: int, slots: int) -> None:
        train = self.dynamic or name == "time_mem"
        setattr(self, f"{name}_w1", nn.Parameter(torch.zeros(width, slots * rank), requires_grad=train))
        setattr(self, f"{name}_w2", nn.Parameter(_spread(slots, rank, width), requires_grad=train))

    def _mixed(self, h: Tensor, name: str, slots: str) -> Tensor:
        """[B, T, C] -> the interpolations of all slots, [slots, B T, C]."""
        width = h.shape[2]
        static = torch.stack([getattr(self, f"{name}_{s}").view(width) for s in slots])
        if not self.dynamic and name == "time_maa":
            return lerp(h, static)
        q = torch.tanh(lerp(h, self.time_maa_x.view(1, width))[0] @ getattr(self, f"{name}_w1"))
        parts = q.view(len(q), len(slots), -1).transpose(0, 1)
        return lerp(h, static, torch.bmm(parts, getattr(self, f"{name}_w2").to(q.dtype)))

    def forward(self, h: Tensor, context: Tensor | None = None, blind: bool = False) -> tuple[Tensor, Tensor]:
        """[B, T, C] -> output [B, T, C] and the last state [B, H, key, value].

        `context` [B, H, key, value] is the image state that HM reads.
        """
        shape = h.shape
        decaying, mixed = self._mixed(h, "time_maa", SLOTS).split((1, len(LINEARS)))
        low = torch.tanh(decaying[0] @ self.time_decay_w1) @ self.time_decay_w2 if self.dynamic else 0
        w = -torch.exp((self.time_decay + low).float()).expand(1, shape[0] * shape[1], -1).reshape(shape)
        names = LINEARS[:2] if blind else LINEARS
        weights = torch.stack([getattr(self, name).weight.mT for name in names])
        k, v, *rg = torch.bmm(mixed[: len(names)], weights.to(mixed.dtype)).view(-1, *shape).unbind()
        y, state = wkv6(rg[0] if rg else k, k, v, w, self.time_faaaa)
        if blind:
            return y, state
        if context is not None:
            at = self._mixed(h, "time_mem", "rg").view(2, *shape)
            split = (*shape[:2], self.heads, SIZE)
            gate = torch.relu(self.mem_gate(at[1]))
            seen = torch.einsum("bthk,bhkv->bthv", self.mem_read(at[0]).view(split), context.to(gate.dtype))
            y = y * torch.relu(1 - gate) + seen.reshape(shape) * gate
        return self.output(finish(y.to(h.dtype), rg[1], self.ln_x.weight, self.ln_x.bias)), state


class ChannelMix(nn.Module):
    """RWKV-6 channel mix: two matrices with a squared ReLU between them, and a gate."""

    def __init__(self, sizes: Sizes, index: int, layers: int) -> None:
        super().__init__()
        ramp = (1 - (torch.arange(sizes.width) / sizes.width) ** (1 - index / layers)).view(1, 1, -1)
        self.time_maa_k, self.time_maa_r = nn.Parameter(ramp.clone()), nn.Parameter(ramp.clone())
        self.key, self.value = _linear(sizes.width, sizes.inner, 1.0), _linear(sizes.inner, sizes.width, 0.0)
        self.receptance = _linear(sizes.width, sizes.width, 0.0)

    def forward(self, h: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        key, gate = lerp(h, torch.cat([self.time_maa_k[0], self.time_maa_r[0]])).view(2, *h.shape).unbind()
        hidden = torch.relu(self.key(key))
        gate = torch.sigmoid(self.receptance(gate))
        result: Tensor = gate * self.value(hidden * hidden)
        return result


class Block(nn.Module):
    """One layer: norm, time mix, norm, channel mix."""

    def __init__(self, sizes: Sizes, index: int, layers: int, dynamic: bool = True, memory: bool = False) -> None:
        super().__init__()
        if index == 0:
            self.ln0 = nn.LayerNorm(sizes.width)
        self.index, self.ln1, self.ln2 = index, nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)
        self.att = TimeMix(sizes, index, layers, dynamic, memory)
        self.ffn = ChannelMix(sizes, index, layers)

    def forward(self, x: Tensor, half: torch.dtype, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[B, T, C] -> [B, T, C] and the last state; matrix products and shifts are done in `half`."""
        x = self.enter(x)
        y, state = self.att(self.ln1(x).to(half), context)
        x = x + y
        return x + self.ffn(self.ln2(x).to(half)), state

    def enter(self, x: Tensor) -> Tensor:
        """The stream as the first norms see it: layer 0 begins with a norm of its own."""
        return self.ln0(x) if self.index == 0 else x


class Language(nn.Module):
    """The language model under `rwkv.`."""

    def __init__(self, sizes: Sizes, variant: Variant) -> None:
        super().__init__()
        self.emb, self.head = nn.Embedding(sizes.rows, sizes.width), nn.Linear(sizes.width, sizes.rows, bias=False)
        self.ln_out = nn.LayerNorm(sizes.width)
        n, memory = sizes.layers, variant.encoder > 0
        self.blocks = nn.ModuleList(Block(sizes, i, n, variant.dynamic, memory) for i in range(n))
        nn.init.normal_(self.emb.weight, std=0.05)
        nn.init.orthogonal_(self.head.weight, gain=0.5)


class StateEncoder(nn.Module):
    """HM: RWKV-6 layers over a picture's tokens, of which only the last layer's last state is used."""

    def __init__(self, sizes: Sizes, layers: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(sizes, i, layers) for i in range(layers))

    def forward(self, x: Tensor, half: torch.dtype) -> Tensor:
        """Projected tokens [S, P, C] -> image state [S, H, key, value]."""
        *blocks, last = self.blocks
        for block in blocks:
            x, _ = block(x, half)
        state: Tensor = last.att(last.ln1(last.enter(x)).to(half), blind=True)[1]
        return state


class Heads(nn.Module):
    """Linear read-outs, where the answer begins, of what the question's phrase means; never part of a checkpoint."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.gather = nn.ModuleList(nn.Linear(sizes.width, sum(SET_WIDTHS)) for _ in range(sizes.layers - 1))


class AblationModel(nn.Module):
    """Projector, language model, and HM's state encoder where the variant has one."""

    def __init__(self, sizes: Sizes, variant: Variant) -> None:
        super().__init__()
        self.sizes, self.variant = sizes, variant
        self.proj = nn.Linear(sizes.features, sizes.width, bias=False)
        self.rwkv = Language(sizes, variant)
        if variant.encoder:
            self.state_encoder = StateEncoder(sizes, variant.encoder)
        self.heads = Heads(sizes)

    def forward(self, batch: Batch, half: torch.dtype = torch.float32) -> list[Tensor]:
        """Transcripts with their pictures' features -> the stream after every layer, each [R, T, C]."""
        seen = self.proj(batch.features)
        x = self.rwkv.emb(batch.ids)
        shape = x.shape
        x = x.flatten(0, 1).index_copy(0, batch.image_at.flatten(), seen.flatten(0, 1).float()).view(shape)
        context = self.state_encoder(seen.float(), half) if self.variant.encoder else None
        streams = []
        for block in self.rwkv.blocks:
            back = self.variant.bidirectional and block.index % 2 == 1
            if back:
                x = x.flatten(0, 1).index_select(0, batch.backwards).view(shape)
            x, _ = block(x, half, context)
            if back:
                x = x.flatten(0, 1).index_select(0, batch.backwards).view(shape)
            streams.append(x)
        return streams

    def logits(self, stream: Tensor) -> Tensor:
        """Last layer's stream [..., C] -> logits [..., V]."""
        out: Tensor = self.rwkv.head(self.rwkv.ln_out(stream))
        return out

    def loss(self, batch: Batch, half: torch.dtype) -> tuple[Tensor, Tensor]:
        """Mean cross entropy of answer tokens, and the read-outs' loss."""
        streams = self(batch, half)
        out = self.logits(streams[-1].flatten(0, 1)[batch.learn_at]).float()
        phrases = out.new_zeros(())
        for stream, head in zip(streams[1:], self.heads.gather, strict=True):
            said = head(stream.flatten(0, 1)[batch.gather_at]).float().split(SET_WIDTHS, -1)
            phrases = phrases + sum(mean_entropy(p, batch.gather_labels[:, j]) for j, p in enumerate(said))
        return F.cross_entropy(out, batch.learn), phrases / len(self.heads.gather)


def _linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=False)
    nn.init.uniform_(linear.weight, -gain / inputs**0.5, gain / inputs**0.5)
    return linear


def _spread(slots: int, rank: int, width: int) -> Tensor:
    """[slots, rank, width], each slice orthogonal and small: the other factor starts at zero."""
    scale = 0.1 * max(1, width / rank) ** 0.5
    return torch.stack([nn.init.orthogonal_(torch.empty(rank, width), scale) for _ in range(slots)])
