"""A plain vision transformer: DINOv2 with registers, SigLIP and SigLIP2.

One module for all three, in timm or Hugging Face naming: x += [scale] Attn(LN x); x += [scale] MLP(LN x),
attention written out in four dimensions so that it traces to plain MatMul and Softmax.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.archspec import ViTSpec
from export.weights import Loadable

EPS = 1e-6

# Per naming: block, norm1, q/k/v (one fused or three), attention output, norm2, the two MLP layers, the two
# layer scales.
_BLOCK_KEYS = {
    "timm": (
        "blocks.{}.", "norm1.", ("attn.qkv.",), "attn.proj.", "norm2.", "mlp.fc1.", "mlp.fc2.",
        ("ls1.gamma", "ls2.gamma"),
    ),
    "siglip": (
        "encoder.layers.{}.", "layer_norm1.", ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."),
        "self_attn.out_proj.", "layer_norm2.", "mlp.fc1.", "mlp.fc2.", ("", ""),
    ),
    "dinov2": (
        "encoder.layer.{}.", "norm1.",
        ("attention.attention.query.", "attention.attention.key.", "attention.attention.value."),
        "attention.output.dense.", "norm2.", "mlp.fc1.", "mlp.fc2.",
        ("layer_scale1.lambda1", "layer_scale2.lambda1"),
    ),
}  # fmt: skip
_PATCH_KEYS = {
    "timm": "patch_embed.proj.",
    "siglip": "embeddings.patch_embedding.",
    "dinov2": "embeddings.patch_embeddings.projection.",
}
_POSITION_KEYS = {
    "timm": "pos_embed",
    "siglip": "embeddings.position_embedding.weight",
    "dinov2": "embeddings.position_embeddings",
}
_FINAL_NORM = {"timm": "norm.", "siglip": "post_layernorm.", "dinov2": "layernorm."}


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q kᵀ / √D) v for [I, heads, tokens, D]."""
    scores = (q * (1 / math.sqrt(q.shape[-1]))) @ k.transpose(-2, -1)
    return torch.softmax(scores, -1) @ v


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut [I, tokens, 3 C] (all q, all k, all v; heads inside) into three [I, heads, tokens, D]."""
    tokens, width = qkv.shape[1], qkv.shape[2] // 3
    q, k, v = (part.reshape(-1, tokens, heads, width // heads).transpose(1, 2) for part in qkv.chunk(3, -1))
    return q, k, v


class ViTBlock(Loadable):
    """Pre-norm attention and MLP, with LayerScale where the model has it."""

    norm1_weight: Tensor  # [C]
    norm1_bias: Tensor
    norm2_weight: Tensor
    norm2_bias: Tensor
    qkv_weight: Tensor  # [C, 3 C]
    qkv_bias: Tensor
    proj_weight: Tensor  # [C, C]
    proj_bias: Tensor
    fc1_weight: Tensor  # [C, mlp]
    fc1_bias: Tensor
    fc2_weight: Tensor  # [mlp, C]
    fc2_bias: Tensor
    scale1: Tensor  # [C]
    scale2: Tensor

    def __init__(self, spec: ViTSpec, index: int) -> None:
        super().__init__()
        block, norm1, qkv, proj, norm2, fc1, fc2, scales = _BLOCK_KEYS[spec.naming]
        prefix = spec.prefix + block.format(index)
        self.width, self.heads, self.gelu = spec.width, spec.heads, spec.gelu
        self.scaled = spec.registers is not None
        self.declare_norm("norm1", spec.width, prefix + norm1)
        self.declare_norm("norm2", spec.width, prefix + norm2)
        self.declare_linear("qkv", spec.width, 3 * spec.width, [prefix + part for part in qkv])
        self.declare_linear("proj", spec.width, spec.width, [prefix + proj])
        self.declare_linear("fc1", spec.width, spec.mlp, [prefix + fc1])
        self.declare_linear("fc2", spec.mlp, spec.width, [prefix + fc2])
        if self.scaled:
            self.declare("scale1", (spec.width,), prefix + scales[0])
            self.declare("scale2", (spec.width,), prefix + scales[1])

    def forward(self, x: Tensor) -> Tensor:
        """Run the block on x [I, tokens, C]."""
        normed = F.layer_norm(x, (self.width,), self.norm1_weight, self.norm1_bias, EPS)
        mixed = attention(*split_heads(normed @ self.qkv_weight + self.qkv_bias, self.heads))
        mixed = mixed.transpose(1, 2).reshape(-1, x.shape[1], self.width) @ self.proj_weight + self.proj_bias
        x = x + (mixed * self.scale1 if self.scaled else mixed)
        normed = F.layer_norm(x, (self.width,), self.norm2_weight, self.norm2_bias, EPS)
        hidden = F.gelu(normed @ self.fc1_weight + self.fc1_bias, approximate=self.gelu)
        hidden = hidden @ self.fc2_weight + self.fc2_bias
        return x + (hidden * self.scale2 if self.scaled else hidden)


class ViT(Loadable):
    """Pixels [I, 3, S, S] -> patch features [I, cells, C], row-major."""

    patch_weight: Tensor  # [C, 3, patch, patch]
    patch_bias: Tensor  # [C]
    positions: Tensor  # [cells, C]
    prefix_tokens: Tensor  # [1 + registers, C]
    final_weight: Tensor  # [C]
    final_bias: Tensor

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.spec = spec
        patch, prefix = _PATCH_KEYS[spec.naming], spec.prefix
        self.declare("patch_weight", (spec.width, 3, spec.patch_size, spec.patch_size), f"{prefix}{patch}weight")
        self.declare("patch_bias", (spec.width,), f"{prefix}{patch}bias")
        position = prefix + _POSITION_KEYS[spec.naming]
        self.declare("positions", (spec.side**2, spec.width), position, layout="positions")
        if spec.registers is not None:
            base = f"{prefix}{'embeddings.' if spec.naming == 'dinov2' else ''}"
            registers = "reg_token" if spec.position_keys == "pos_embed" else "register_tokens"
            keys = [f"{base}cls_token", f"{base}{registers}"]
            if spec.position_keys == "with_class":
                keys.append(position)
            self.declare("prefix_tokens", (1 + spec.registers, spec.width), *keys, layout="tokens")
        used = spec.depth if spec.final else spec.depth - 1
        self.blocks = nn.ModuleList(ViTBlock(spec, index) for index in range(used))
        if spec.final:
            self.declare_norm("final", spec.width, prefix + _FINAL_NORM[spec.naming])

    def forward(self, pixels: Tensor) -> Tensor:
        """Return features [I, cells, C] of normalised pixels [I, 3, S, S] float32."""
        spec = self.spec
        x = F.conv2d(pixels, self.patch_weight, self.patch_bias, stride=spec.patch_size)
        x = x.flatten(2).transpose(1, 2) + self.positions
        if spec.registers is not None:
            x = torch.cat([self.prefix_tokens.expand(pixels.shape[0], -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        if spec.registers is not None:
            x = x[:, 1 + spec.registers :]
        return F.layer_norm(x, (spec.width,), self.final_weight, self.final_bias, EPS) if spec.final else x
