"""Tower features -> image embeddings: pooling, projector, ln0."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from export.archspec import ArchSpec
from export.weights import Loadable

EPS = 1e-5


class Projector(Loadable):
    """[I, cells, width] -> [I, tokens, C]; pooling comes first, and ln0 last, as for token embeddings."""

    pool: Tensor  # [n, side]: averages rows, then columns, of the grid
    gate: Tensor  # [width, width]
    o_proj: Tensor  # [width, C]
    ln_v_weight: Tensor  # [C]
    ln_v_bias: Tensor
    linear: Tensor  # [width, C]
    ln0_weight: Tensor  # [C]
    ln0_bias: Tensor

    def __init__(self, spec: ArchSpec) -> None:
        super().__init__()
        assert spec.tower is not None
        inputs, outputs = spec.tower.width, spec.n_embd
        self.inputs, self.outputs, self.gated = inputs, outputs, spec.projector == "mlp"
        self.side, self.pooled = math.isqrt(spec.tower.cells), math.isqrt(spec.num_token_per_image)
        if self.pooled != self.side:
            self.declare("pool", (self.pooled, self.side), layout="pooling")
        if self.gated:
            self.declare("gate", (inputs, inputs), "proj.gate.weight", layout="transpose")
            self.declare("o_proj", (inputs, outputs), "proj.o_proj.weight", layout="transpose")
            self.declare_norm("ln_v", outputs, "proj.ln_v.")
        else:
            self.declare("linear", (inputs, outputs), "proj.weight", layout="transpose")
        self.declare_norm("ln0", outputs, f"{spec.prefix}blocks.0.ln0.")

    def forward(self, features: Tensor) -> Tensor:
        """Return image embeddings [I, tokens, C] of tower features [I, cells, width]."""
        x = self._pooled(features) if self.pooled != self.side else features
        if self.gated:
            x = (x * torch.sigmoid(x @ self.gate)) @ self.o_proj
            x = F.layer_norm(x, (self.outputs,), self.ln_v_weight, self.ln_v_bias, EPS)
        else:
            x = x @ self.linear
        return F.layer_norm(x, (self.outputs,), self.ln0_weight, self.ln0_bias, EPS)

    def _pooled(self, x: Tensor) -> Tensor:
        side, pooled, width = self.side, self.pooled, self.inputs
        x = self.pool @ x.reshape(-1, side, side * width)  # rows
        x = self.pool @ x.reshape(-1, side, width)  # columns
        return x.reshape(-1, pooled * pooled, width)
