"""Pooled tower features -> vectors of the language model's width, before its ln0."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from export.archspec import ArchSpec
from export.weights import Loadable

EPS = 1e-5


class Projector(Loadable):
    """[I, tokens, width] -> [I, tokens, C], in the four forms that checkpoints have.

    linear: W f.  mlp (v7, v6.23): LN(o_proj (f ⊙ σ(gate f))).  mlp-hd (HD, v6.20 to v6.22): z = proj f, o_proj (z ⊙
    σ(gate z)).  mlp-uhd: o_proj relu(proj f); its checkpoints hold a gate that is not used.
    """

    linear: Tensor  # [width, C]
    proj: Tensor  # [width, C]
    gate: Tensor  # mlp: [width, width]; mlp-hd: [C, C]
    o_proj: Tensor  # mlp: [width, C]; else [C, C]
    ln_v_weight: Tensor  # [C]
    ln_v_bias: Tensor

    def __init__(self, spec: ArchSpec) -> None:
        super().__init__()
        assert spec.tower is not None
        inputs, outputs, self.form = spec.tower.width, spec.n_embd, spec.projector
        if self.form == "linear":
            self.declare("linear", (inputs, outputs), "proj.weight", layout="transpose")
            return
        inner = inputs if self.form == "mlp" else outputs
        if self.form != "mlp":
            self.declare("proj", (inputs, outputs), "proj.proj.weight", layout="transpose")
        if self.form != "mlp-uhd":
            self.declare("gate", (inner, inner), "proj.gate.weight", layout="transpose")
        self.declare("o_proj", (inner, outputs), "proj.o_proj.weight", layout="transpose")
        if self.form == "mlp":
            self.declare_norm("ln_v", outputs, "proj.ln_v.")

    def forward(self, x: Tensor) -> Tensor:
        """Return image vectors [I, tokens, C] of features [I, tokens, width]."""
        if self.form == "linear":
            return x @ self.linear
        if self.form == "mlp-uhd":
            return torch.relu(x @ self.proj) @ self.o_proj
        if self.form == "mlp-hd":
            x = x @ self.proj
        x = (x * torch.sigmoid(x @ self.gate)) @ self.o_proj
        if self.form == "mlp":
            x = F.layer_norm(x, x.shape[-1:], self.ln_v_weight, self.ln_v_bias, EPS)
        return x
