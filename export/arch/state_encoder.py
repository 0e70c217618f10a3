"""VisualRWKV-HM's state encoder: a small RWKV-6 reads packed image features, and its final state is the image state.

Source: VisualRWKV-HM v6.21 `model.py`. Nothing but the state of the last block leaves the encoder, so that block has no
output, no gate and no channel mix here; official files hold those tensors all the same (`unused_keys`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.arch.language import LN_EPS, token_shift
from export.arch.rwkv6 import Block, blend, declare_blend, declare_decay, declare_matrices, log_decay
from export.archspec import ArchSpec
from export.weights import Loadable
from runtime.errors import ExportError

_UNUSED = (
    "ln2.weight",
    "ln2.bias",
    *(f"att.{name}.weight" for name in ("receptance", "gate", "output", "ln_x")),
    *(f"att.{name}" for name in ("ln_x.bias", "time_faaaa", "time_maa_r", "time_maa_g")),
    *(f"ffn.{name}" for name in ("time_maa_k", "time_maa_r", "key.weight", "value.weight", "receptance.weight")),
)


def unused_keys(spec: ArchSpec) -> frozenset[str]:
    """Return the keys of the encoder's last block that no computation uses."""
    return frozenset(f"{_prefix(_depth(spec) - 1)}{name}" for name in _UNUSED)


class FinalTimeMix(Loadable):
    """The recurrence of the last block, from a zero state, without what it would output."""

    time_maa_x: Tensor  # [C]
    time_maa: Tensor  # [3 C]: w k v
    time_maa_w1: Tensor  # [C, 5 R], of which the first 3 R are read
    time_maa_w2: Tensor  # [5, R, C], of which the first 3
    time_decay: Tensor  # [C]
    time_decay_w1: Tensor  # [C, rank]
    time_decay_w2: Tensor  # [rank, C]
    key: Tensor  # [C, C]
    value: Tensor

    def __init__(self, spec: ArchSpec, prefix: str) -> None:
        super().__init__()
        self.heads, self.head_size, self.rank = spec.n_head, spec.head_size, spec.ranks["maa"]
        declare_blend(self, spec, prefix, "wkv", stored=5)
        declare_decay(self, spec, prefix)
        declare_matrices(self, spec, prefix, ("key", "value"))

    def forward(self, x: Tensor) -> Tensor:
        """Return the state [B, H, N, N] after x [B, T, C]: S = Σ_t (exp(Σ_{s > t} w_s) ⊙ k_t) v_tᵀ."""
        nothing = torch.zeros_like(x[:, 0])
        delta = token_shift(x, nothing) - x
        first = x + delta * self.time_maa_x
        w1, w2 = self.time_maa_w1[:, : 3 * self.rank], self.time_maa_w2[:3]
        h_w, h_k, h_v = blend(x, delta, first, self.time_maa, w1, w2)
        backwards = log_decay(h_w, self.time_decay, self.time_decay_w1, self.time_decay_w2).flip(1)
        # Summed from the end, so that tokens that still count are not differences of large sums.
        kept = torch.exp(token_shift(backwards, nothing).cumsum(1).flip(1))
        k, v = ((h_k @ self.key) * kept, h_v @ self.value)
        return self._split(k).transpose(2, 3) @ self._split(v)

    def _split(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, H, T, N]."""
        return x.reshape(*x.shape[:2], self.heads, self.head_size).transpose(1, 2)


class LastBlock(Loadable):
    """The last layer: its state only."""

    ln1_weight: Tensor  # [C]
    ln1_bias: Tensor

    def __init__(self, spec: ArchSpec, prefix: str) -> None:
        super().__init__()
        self.width = spec.n_embd
        self.declare_norm("ln1", spec.n_embd, prefix + "ln1.")
        self.att = FinalTimeMix(spec, prefix + "att.")

    def forward(self, x: Tensor) -> Tensor:
        """Return the state [B, H, N, N] after x [B, T, C]."""
        return self.att(F.layer_norm(x, (self.width,), self.ln1_weight, self.ln1_bias, LN_EPS))


class StateEncoder(Loadable):
    """Packed features -> image state."""

    ln0_weight: Tensor  # [C]
    ln0_bias: Tensor

    def __init__(self, spec: ArchSpec) -> None:
        super().__init__()
        self.width = spec.n_embd
        self.state_shape = (spec.n_head, spec.head_size, spec.head_size)
        last = _depth(spec) - 1
        self.declare_norm("ln0", spec.n_embd, _prefix(0) + "ln0.")
        self.blocks = nn.ModuleList(Block(spec, _prefix(layer)) for layer in range(last))
        self.last = LastBlock(spec, _prefix(last))

    def forward(self, features: Tensor) -> Tensor:
        """Read projected features [B, T, C] (zero vectors included); returns the image state [B, H, N (key), N]."""
        x = F.layer_norm(features, (self.width,), self.ln0_weight, self.ln0_bias, LN_EPS)
        shift = torch.zeros_like(x[:, 0])
        state = x.new_zeros((x.shape[0], *self.state_shape))
        for block in self.blocks:
            x, *_ = block(x, shift, shift, state)
        return self.last(x)


def _depth(spec: ArchSpec) -> int:
    if spec.state_encoder is None:
        raise ExportError(f"version {spec.version} without a state encoder", wanted="ArchSpec.state_encoder")
    return spec.state_encoder.n_layer


def _prefix(layer: int) -> str:
    return f"state_encoder.blocks.{layer}."
