"""The trainable RWKV-7 language model ("x070") and the v7 projector, under the names of official checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.demo.mixer import Mixer, library

HEAD = 64  # channels per RWKV head
RANKS = {"w": 32, "a": 32, "v": 32, "g": 64}
LayerState = tuple[Tensor, Tensor, Tensor]  # att_shift [B, C], ffn_shift [B, C], wkv [B, H, value, key]


def wkv7(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor, chunk: int = 32
) -> tuple[Tensor, Tensor]:
    """The RWKV-7 recurrence, evaluated in chunks with matrix products.

    Args:
        r, w, k, v, a, b: [B, H, T, N] fp32; w is the logarithm of the decay, a = -kappa, b = kappa * alpha.
        state: [B, H, N, N] (value, key).
        chunk: positions evaluated at once; more than about 40 would overflow fp32.

    Returns:
        Outputs [B, H, T, N] and the state after the last position.
    """
    outputs = []
    for i in range(0, r.shape[2], chunk):
        part = [x[:, :, i : i + chunk] for x in (r, w, k, v, a, b)]
        y, state = _wkv7_chunk(part[0], part[1], part[2], part[3], part[4], part[5], state)
        outputs.append(y)
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)), state


def _wkv7_chunk(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One chunk: with U the corrections a S at every position, U = (I - A)^-1 (a P S + A_k V)."""
    batch, heads, length, size = r.shape
    total = w.cumsum(2)
    grown, shrunk = total.exp(), (-total).exp()
    left = torch.cat([a * (total - w).exp(), r * grown], 2).view(-1, 2 * length, size)
    right = torch.cat([b * shrunk, k * shrunk], 2).view(-1, 2 * length, size)
    values, start = v.reshape(-1, length, size), state.reshape(-1, size, size).mT
    row = torch.arange(length, device=r.device)
    strict, lower = (row[:, None] > row).float(), (row[:, None] >= row).float()
    mask = torch.cat([strict.repeat(1, 2), lower.repeat(1, 2)])
    gram = torch.bmm(left, right.mT) * mask
    carried = torch.bmm(left, start)
    goal = torch.baddbmm(carried[:, :length], gram[:, :length, length:], values)
    power, reach = gram[:, :length, :length], 1
    while reach < length:  # (I - A)^-1 = (I + A)(I + A^2)(I + A^4) ..., A is nilpotent
        goal = torch.baddbmm(goal, power, goal)
        reach *= 2
        if reach < length:
            power = torch.bmm(power, power)
    both = torch.cat([goal, values], 1)
    y = torch.baddbmm(carried[:, length:], gram[:, length:], both)
    last = grown.reshape(-1, length, size)[:, -1]
    new = last[..., None] * start + torch.bmm((right * last[:, None]).mT, both)
    return y.view(batch, heads, length, size), new.mT.reshape(batch, heads, size, size)


def _shifted(h: Tensor, before: Tensor) -> Tensor:
    """[h, previous h] on the channel axis, [B, T, 2C]: token shift becomes part of the next matrix product."""
    return torch.cat([h, torch.cat([before[:, None], h[:, :-1]], 1)], 2)


def _mixed(weight: Tensor, mix: Tensor) -> Tensor:
    """The matrix [2C, out] with which [h, previous] gives (h + (previous - h) * mix) @ weight."""
    mix = mix.view(-1, 1)
    return torch.cat([weight * (1 - mix), weight * mix])


class TimeMix(nn.Module):
    """RWKV-7 time mix of one layer."""

    receptance: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    w1: Tensor
    w2: Tensor
    a1: Tensor
    a2: Tensor
    v1: Tensor
    v2: Tensor
    g1: Tensor
    g2: Tensor

    def __init__(self, width: int, layers: int, index: int) -> None:
        super().__init__()
        self.index, self.heads = index, width // HEAD
        depth, rest, n = index / max(1, layers - 1), 1 - index / layers, torch.arange(width)
        z, line, zigzag = n / width, n / (width - 1) - 0.5, ((n % HEAD) - 31.5) / 31.5
        zigzag = zigzag * zigzag.abs()

        def vector(x: Tensor) -> nn.Parameter:
            return nn.Parameter(x.float().view(1, 1, -1).clone())

        for name, exponent in zip("rwkvag", (0.2, 0.9, 0.7, 0.7, 0.9, 0.2), strict=True):
            setattr(self, f"x_{name}", vector(1 - z ** (exponent * rest)))
        self.w0 = vector(-5.5 + 6 * (n / (width - 1)) ** (1 + depth**0.3) + 2.5 * zigzag)
        self.a0 = vector(-0.19 + 0.3 * zigzag + 0.4 * line)
        if index:
            self.v0 = vector(0.73 - 0.4 * line)
        for name, rank in RANKS.items():
            if name != "v" or index:
                up = nn.init.orthogonal_(torch.empty(rank, width), 0.1 * max(1, width / rank) ** 0.5)
                setattr(self, f"{name}1", nn.Parameter(torch.zeros(width, rank)))
                setattr(self, f"{name}2", nn.Parameter(up))
        self.k_k, self.k_a = vector(0.71 - 0.1 * line), vector(torch.full((width,), 1.02))
        self.r_k = nn.Parameter(torch.full((self.heads, HEAD), -0.04))
        for name, gain in (("receptance", 0.5), ("key", 0.05), ("value", 0.5), ("output", 0.0)):
            linear = nn.Linear(width, width, bias=False)
            nn.init.uniform_(linear.weight, -gain / width**0.5, gain / width**0.5)
            setattr(self, name, linear)
        self.ln_x = nn.GroupNorm(self.heads, width, eps=64e-5)
        nn.init.constant_(self.ln_x.weight, ((1 + index) / layers) ** 0.7)

    def forward(self, h: Tensor, before: Tensor, state: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, C], shift [B, C], state [B, H, N, N], first layer's values -> output, new state, those values."""
        width = h.shape[2]
        names = "rkvwag" + ("v" if self.index else "")
        low = (self.w1, self.a1, self.g1, *((self.v1,) if self.index else ()))
        matrices = (self.receptance.weight.mT, self.key.weight.mT, self.value.weight.mT, *low)
        joined = torch.cat([_mixed(m, getattr(self, f"x_{n}")) for m, n in zip(matrices, names, strict=True)], 1)
        out = _shifted(h, before) @ joined
        sizes = [3 * width, *(m.shape[1] for m in matrices[3:])]
        rkv, zw, za, zg, *zv = out.split(sizes, 2)
        zw, za, gate = torch.tanh(zw) @ self.w2, za @ self.a2, torch.sigmoid(zg) @ self.g2
        low_v = zv[0] @ self.v2 if zv else None
        mine = first if first is not None else rkv[..., 2 * width :].contiguous()
        core = self._core_cpu if rkv.dtype == torch.bfloat16 and library() else self._core
        y, state = core(rkv, zw, za, low_v, gate, mine if self.index else None, state)
        return self.output(y), state, mine

    def _core_cpu(self, rkv: Tensor, zw: Tensor, za: Tensor, zv: Tensor | None, gate: Tensor,
                  first: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
        parameters = (self.w0, self.a0, self.v0 if self.index else None, self.k_k, self.k_a, self.r_k)
        result: tuple[Tensor, Tensor] = Mixer.apply(
            rkv, zw, za, zv, gate, first, *parameters, self.ln_x.weight, self.ln_x.bias, state
        )
        return result

    def _core(self, rkv: Tensor, zw: Tensor, za: Tensor, zv: Tensor | None, gate: Tensor,
              first: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Everything between the input products and the output product, in torch."""
        batch, length, width = zw.shape
        r, k, v = rkv.float().split(width, 2)
        w = -math.exp(-0.5) * torch.sigmoid(self.w0 + zw)
        a = torch.sigmoid(self.a0 + za)
        if zv is not None and first is not None:
            v = v + (first - v) * torch.sigmoid(self.v0 + zv)

        def split(x: Tensor) -> Tensor:
            return x.float().view(batch, length, self.heads, HEAD).transpose(1, 2)

        kappa = F.normalize(split(k * self.k_k), dim=-1)
        r, w, v, alpha = split(r), split(w), split(v), split(a)
        k = split(k * (1 + (a - 1) * self.k_a))
        with torch.autocast(zw.device.type, enabled=False):
            y, state = wkv7(r, w, k, v, -kappa, kappa * alpha, state)
        y = F.layer_norm(y, (HEAD,), eps=64e-5).transpose(1, 2).reshape(batch, length, width)
        y = y * self.ln_x.weight + self.ln_x.bias
        bonus = (r * k * self.r_k[:, None]).sum(-1, keepdim=True) * v
        return (y + bonus.transpose(1, 2).reshape(batch, length, width)) * gate, state


class ChannelMix(nn.Module):
    """RWKV-7 channel mix: two matrices with a squared ReLU between them."""

    def __init__(self, width: int, layers: int, index: int) -> None:
        super().__init__()
        ramp = 1 - (torch.arange(width) / width) ** ((1 - index / layers) ** 4)
        self.x_k = nn.Parameter(ramp.view(1, 1, -1))
        self.key, self.value = (
            nn.Linear(width, 4 * width, bias=False),
            nn.Linear(4 * width, width, bias=False),
        )
        nn.init.uniform_(self.key.weight, -0.5 / width**0.5, 0.5 / width**0.5)
        nn.init.zeros_(self.value.weight)

    def forward(self, h: Tensor, before: Tensor) -> Tensor:
        """[B, T, C] and the shift [B, C] -> [B, T, C]."""
        hidden = torch.relu(_shifted(h, before) @ _mixed(self.key.weight.mT, self.x_k))
        return self.value(hidden * hidden)


class Block(nn.Module):
    """One layer: norm, time mix, norm, channel mix."""

    def __init__(self, width: int, layers: int, index: int) -> None:
        super().__init__()
        if index == 0:
            self.ln0 = nn.LayerNorm(width)
        self.index, self.ln1, self.ln2 = index, nn.LayerNorm(width), nn.LayerNorm(width)
        self.att, self.ffn = TimeMix(width, layers, index), ChannelMix(width, layers, index)

    def forward(self, x: Tensor, state: LayerState, first: Tensor | None) -> tuple[Tensor, LayerState, Tensor]:
        """[B, T, C] -> [B, T, C], with the layer's state before and after."""
        if self.index == 0:
            x = self.ln0(x)
        h = self.ln1(x)
        y, wkv, first = self.att(h, state[0], state[2], first)
        x = x + y
        g = self.ln2(x)
        return x + self.ffn(g, state[1]), (h[:, -1], g[:, -1], wkv), first


class RWKV7(nn.Module):
    """The language model: `forward` takes embeddings and a state, so it runs in segments."""

    def __init__(self, rows: int, width: int, layers: int) -> None:
        super().__init__()
        self.emb, self.head = nn.Embedding(rows, width), nn.Linear(width, rows, bias=False)
        self.ln_out = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, layers, i) for i in range(layers))
        nn.init.normal_(self.emb.weight, std=0.05)
        nn.init.orthogonal_(self.head.weight, gain=0.5)

    def start(self, batch: int) -> list[LayerState]:
        """The zero state for `batch` sequences."""
        width = self.emb.embedding_dim
        zero = self.emb.weight.new_zeros
        return [(zero(batch, width), zero(batch, width), zero(batch, width // HEAD, HEAD, HEAD)) for _ in self.blocks]

    def forward(self, x: Tensor, state: Sequence[LayerState]) -> tuple[list[Tensor], list[LayerState]]:
        """Embeddings [B, T, C] -> the residual stream after every layer (each [B, T, C]), and the new state."""
        first, streams, after = None, [], []
        for block, layer in zip(self.blocks, state, strict=True):
            x, new, first = block(x, layer, first)
            streams.append(x)
            after.append(new)
        return streams, after


class Projector(nn.Module):
    """v7 "context gating" projector: LN(o_proj(f * sigmoid(gate f)))."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.gate, self.o_proj = (
            nn.Linear(features, features, bias=False),
            nn.Linear(features, width, bias=False),
        )
        self.ln_v = nn.LayerNorm(width)

    def forward(self, f: Tensor) -> Tensor:
        """[B, P, D] -> [B, P, C]."""
        return self.ln_v(self.o_proj(f * torch.sigmoid(self.gate(f))))
