"""VisualRWKV-HM: an RWKV-6 whose layers also read an image state.

The image state is a matrix [key, value] per head that a small RWKV-6 ends with after reading the pictures
(`export.arch.state_encoder`). It is read at every position and never written. Sources: VisualRWKV-HM v6.21 (`Hybrid`:
the read-out is mixed into the time mix) and v6.22 (`CrossState`: a sublayer of its own) `model.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.arch.language import LN_EPS, LanguageModel, token_shift
from export.arch.rwkv6 import Block, TimeMix, blend, declare_blend, declare_matrices, head_norm
from export.archspec import ArchSpec
from export.weights import Loadable
from runtime.errors import ExportError
from runtime.spec import SlotSpec


def image_state_slot(spec: ArchSpec) -> SlotSpec:
    """Return the slot of the image state: one for all layers, or one for each ("fold").

    Raises:
        ExportError: the model has no state encoder (an error in this exporter).
    """
    if spec.state_encoder is None:
        raise ExportError(f"version {spec.version} without a state encoder", wanted="ArchSpec.state_encoder")
    states = spec.n_layer if spec.state_encoder.strategy == "fold" else 1
    shape = (states, "B", spec.n_head, spec.head_size, spec.head_size)
    return SlotSpec("image_state", "float32", shape, ("layer", "batch", "head", "key", "value"), "context")


def read_state(r: Tensor, image_state: Tensor) -> Tensor:
    """Return what r [B, T, C] finds in the image state [B, H, K, V]; [B, T, C]."""
    heads, size = image_state.shape[1:3]
    found = r.reshape(*r.shape[:2], heads, size).transpose(1, 2) @ image_state
    return found.transpose(1, 2).reshape(r.shape)


class HybridTimeMix(TimeMix):
    """Time mix whose output is blended with a read-out of the image state, head by head, before the norm."""

    time_mem: Tensor  # [2 C]: r g
    time_mem_w1: Tensor  # [C, 2 R]
    time_mem_w2: Tensor  # [2, R, C]
    mem_read: Tensor  # [C, C]
    mem_gate: Tensor
    mem_gate_bias: Tensor  # [C], with a sigmoid gate only

    def __init__(self, spec: ArchSpec, prefix: str, sigmoid_gate: bool) -> None:
        super().__init__(spec, prefix)
        rank = spec.ranks["maa"]
        self.sigmoid_gate = sigmoid_gate
        self.declare("time_mem", (2 * spec.n_embd,), prefix + "time_mem_r", prefix + "time_mem_g")
        self.declare("time_mem_w1", (spec.n_embd, 2 * rank), prefix + "time_mem_w1")
        self.declare("time_mem_w2", (2, rank, spec.n_embd), prefix + "time_mem_w2")
        declare_matrices(self, spec, prefix, ("mem_read", "mem_gate"))
        if sigmoid_gate:
            self.declare("mem_gate_bias", (spec.n_embd,), prefix + "mem_gate.bias")

    def forward(  # type: ignore[override]
        self, x: Tensor, shift: Tensor, state: Tensor, image_state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mix as `TimeMix` does, and read `image_state` [B, H, N, N]."""
        delta, first = self.start(x, shift)
        y, g, state = self.recur(x, delta, first, state)
        m_r, m_g = blend(x, delta, first, self.time_mem, self.time_mem_w1, self.time_mem_w2)
        found = read_state(m_r @ self.mem_read, image_state)
        if self.sigmoid_gate:
            amount = torch.sigmoid(m_g @ self.mem_gate + self.mem_gate_bias)
            kept = 1 - amount
        else:
            amount = torch.relu(m_g @ self.mem_gate)  # not bounded by 1
            kept = torch.relu(1 - amount)
        return self.finish(y * kept + found * amount, g), state


class HybridBlock(Block):
    """One layer of v6.21."""

    def __init__(self, spec: ArchSpec, prefix: str, sigmoid_gate: bool) -> None:
        self.sigmoid_gate = sigmoid_gate
        super().__init__(spec, prefix)

    def time_mix(self, spec: ArchSpec, prefix: str) -> TimeMix:
        """Build the recurrent half."""
        return HybridTimeMix(spec, prefix, self.sigmoid_gate)

    def forward(  # type: ignore[override]
        self, x: Tensor, att_shift: Tensor, ffn_shift: Tensor, wkv: Tensor, image_state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run a segment as `Block` does, reading `image_state` [B, H, N, N]."""
        x, att_shift, wkv = self.remember(x, att_shift, wkv, image_state)
        x, ffn_shift = self.think(x, ffn_shift)
        return x, att_shift, ffn_shift, wkv


class Cross(Loadable):
    """v6.22's sublayer: a gated read-out of the image state."""

    time_maa_x: Tensor  # [C]
    time_maa: Tensor  # [2 C]: r g
    time_maa_w1: Tensor  # [C, 2 R]
    time_maa_w2: Tensor  # [2, R, C]
    receptance: Tensor  # [C, C]
    gate: Tensor
    output: Tensor
    ln_x_weight: Tensor  # [C]
    ln_x_bias: Tensor

    def __init__(self, spec: ArchSpec, prefix: str) -> None:
        super().__init__()
        self.head_size = spec.head_size
        declare_blend(self, spec, prefix, "rg")
        declare_matrices(self, spec, prefix, ("receptance", "gate", "output"))
        self.declare_norm("ln_x", spec.n_embd, prefix + "ln_x.")

    def forward(self, x: Tensor, shift: Tensor, image_state: Tensor) -> Tensor:
        """Read with x [B, T, C], of which `shift` [B, C] is the position before."""
        delta = token_shift(x, shift) - x
        first = x + delta * self.time_maa_x
        h_r, h_g = blend(x, delta, first, self.time_maa, self.time_maa_w1, self.time_maa_w2)
        found = read_state(h_r @ self.receptance, image_state)
        normed = head_norm(found, self.head_size, self.ln_x_weight, self.ln_x_bias)
        return (normed * F.silu(h_g @ self.gate)) @ self.output


class CrossBlock(Block):
    """One layer of v6.22: time mix, read-out, channel mix."""

    ln3_weight: Tensor  # [C]
    ln3_bias: Tensor

    def __init__(self, spec: ArchSpec, prefix: str) -> None:
        super().__init__(spec, prefix)
        self.declare_norm("ln3", spec.n_embd, prefix + "ln3.")
        self.cross = Cross(spec, prefix + "cross.")

    def forward(  # type: ignore[override]
        self, x: Tensor, att_shift: Tensor, ffn_shift: Tensor, wkv: Tensor, cross_shift: Tensor, image_state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Run a segment as `Block` does; `cross_shift` [B, C] is carried too and returned last."""
        x, att_shift, wkv = self.remember(x, att_shift, wkv)
        normed = F.layer_norm(x, (self.width,), self.ln3_weight, self.ln3_bias, LN_EPS)
        x, cross_shift = x + self.cross(normed, cross_shift, image_state), normed[:, -1]
        x, ffn_shift = self.think(x, ffn_shift)
        return x, att_shift, ffn_shift, wkv, cross_shift


class Hybrid(LanguageModel):
    """v6.21. `sigmoid_gate`: trained before November 2024, told by the keys `att.mem_gate.bias`."""

    def __init__(self, spec: ArchSpec, *, sigmoid_gate: bool = False) -> None:
        super().__init__(spec)
        self.slots = (*self.slots, *self.extra_slots(spec), image_state_slot(spec))
        self.blocks = nn.ModuleList(
            self.block(spec, f"{spec.prefix}blocks.{layer}.", sigmoid_gate) for layer in range(spec.n_layer)
        )

    def extra_slots(self, spec: ArchSpec) -> tuple[SlotSpec, ...]:
        """Return what is carried besides the state of RWKV-6."""
        return ()

    def block(self, spec: ArchSpec, prefix: str, sigmoid_gate: bool) -> Block:
        """Build a layer."""
        return HybridBlock(spec, prefix, sigmoid_gate)

    def forward(
        self, embeddings: Tensor, att_shift: Tensor, ffn_shift: Tensor, wkv: Tensor, image_state: Tensor
    ) -> tuple[Tensor, ...]:
        """Run a segment of T >= 1 positions.

        Args:
            embeddings: [B, T, C], ln0 already applied (token rows and image embeddings alike).
            att_shift, ffn_shift: [L, B, C].
            wkv: [L, B, H, N (key), N (value)].
            image_state: [1 or L, B, H, N (key), N (value)].

        Returns:
            logits [B, V] of the last position, then the three carried tensors after it.
        """
        x, *state = self._layers(embeddings, (att_shift, ffn_shift, wkv), image_state)
        return self.head(x[:, -1]), *state

    def hidden(
        self, embeddings: Tensor, att_shift: Tensor, ffn_shift: Tensor, wkv: Tensor, image_state: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the residual stream [B, T, C] after the last block, then what is carried."""
        return self._layers(embeddings, (att_shift, ffn_shift, wkv), image_state)

    def _layers(self, x: Tensor, carried: tuple[Tensor, ...], image_state: Tensor) -> tuple[Tensor, ...]:
        images = image_state.unbind()
        states: list[list[Tensor]] = []
        for layer, (block, *before) in enumerate(zip(self.blocks, *(slot.unbind() for slot in carried), strict=True)):
            x, *after = block(x, *before, images[layer % len(images)])
            states.append(after)
        return x, *(torch.stack(slot) for slot in zip(*states, strict=True))


class CrossState(Hybrid):
    """v6.22: carries one more shift, that of the sublayer which reads the image state."""

    def extra_slots(self, spec: ArchSpec) -> tuple[SlotSpec, ...]:
        """Return `cross_shift`, [L, B, C]."""
        shape = (spec.n_layer, "B", spec.n_embd)
        return (SlotSpec("cross_shift", "float32", shape, ("layer", "batch", "channel"), "carried"),)

    def block(self, spec: ArchSpec, prefix: str, sigmoid_gate: bool) -> Block:
        """Build a layer."""
        return CrossBlock(spec, prefix)

    def forward(  # type: ignore[override]
        self,
        embeddings: Tensor,
        att_shift: Tensor,
        ffn_shift: Tensor,
        wkv: Tensor,
        cross_shift: Tensor,
        image_state: Tensor,
    ) -> tuple[Tensor, ...]:
        """Run a segment as `Hybrid` does, with four carried tensors."""
        x, *state = self._layers(embeddings, (att_shift, ffn_shift, wkv, cross_shift), image_state)
        return self.head(x[:, -1]), *state

    def hidden(  # type: ignore[override]
        self,
        embeddings: Tensor,
        att_shift: Tensor,
        ffn_shift: Tensor,
        wkv: Tensor,
        cross_shift: Tensor,
        image_state: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return the residual stream [B, T, C] after the last block, then what is carried."""
        return self._layers(embeddings, (att_shift, ffn_shift, wkv, cross_shift), image_state)
