"""The visual token compressor (v7.03, v7.04): RWKV-7 blocks over the tokens of all regions, then averages of them.

Odd blocks read the whole sequence backwards. Its blocks are those of the language model under the prefix `vtc.`, with
an ln0 and an ln_out of their own. Source: VisualRWKV-v7 v7.03, `VisualTokenCompressor`.
"""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from export.arch.language import LN_EPS
from export.arch.rwkv7 import Block
from export.archspec import ArchSpec
from export.weights import Loadable

PREFIX = "vtc."


class Compressor(Loadable):
    """[B, T, C] -> [B, P, C], ready for the recurrent graph."""

    first_weight: Tensor  # [C], the compressor's own ln0
    first_bias: Tensor
    last_weight: Tensor  # [C]
    last_bias: Tensor
    ln0_weight: Tensor  # [C], the language model's ln0
    ln0_bias: Tensor

    def __init__(self, spec: ArchSpec) -> None:
        super().__init__()
        own = replace(spec, prefix=PREFIX)
        self.width, self.state = spec.n_embd, (spec.n_head, spec.head_size, spec.head_size)
        self.declare_norm("first", spec.n_embd, f"{PREFIX}blocks.0.ln0.")
        self.blocks = nn.ModuleList(Block(own, layer) for layer in range(spec.compressor_layers))
        self.declare_norm("last", spec.n_embd, f"{PREFIX}ln_out.")
        self.declare_norm("ln0", spec.n_embd, f"{spec.prefix}blocks.0.ln0.")

    def forward(self, embeddings: Tensor, pooling: Tensor) -> Tensor:
        """Compress a sequence.

        Args:
            embeddings: [B, T, C] float32, the vision graph's of all regions in order, after the zero vectors that fill
                them up in front (`CompressorSpec.pad_to`).
            pooling: [P, T] float32; row p averages the positions it is made of.

        Returns:
            Image embeddings [B, P, C], ln0 applied.
        """
        x = v_first = self._norm(embeddings, self.first_weight, self.first_bias)
        shift = embeddings.new_zeros(embeddings.shape[0], self.width)
        state = embeddings.new_zeros(embeddings.shape[0], *self.state)
        for layer, block in enumerate(self.blocks):
            backwards = layer % 2 == 1
            if backwards:
                x, v_first = x.flip(1), v_first.flip(1)
            x, v_first, *_ = block(x, v_first, shift, shift, state)
            if backwards:
                x, v_first = x.flip(1), v_first.flip(1)
        x = pooling @ self._norm(x, self.last_weight, self.last_bias)
        return self._norm(x, self.ln0_weight, self.ln0_bias)

    def _norm(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, (self.width,), weight, bias, LN_EPS)
