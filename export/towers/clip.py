"""CLIP's vision transformer (v6.0, v6.01): class token, quick-gelu, the last layer without a final norm.

Source: openai/clip-vit-large-patch14-336 as Hugging Face `CLIPVisionModel`, whose keys it takes (`pre_layrnorm` is how
they spell it). `post_layernorm` is in the checkpoints and unused.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.archspec import ClipSpec, TowerSpec
from export.towers.vit import attention, split_heads
from export.weights import Loadable
from runtime.spec import ViewSpec

EPS = 1e-5
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ClipBlock(Loadable):
    """Pre-norm attention and MLP."""

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

    def __init__(self, spec: ClipSpec, index: int) -> None:
        super().__init__()
        self.width, self.heads = spec.width, spec.heads
        prefix = f"{spec.prefix}encoder.layers.{index}."
        self.declare_norm("norm1", spec.width, prefix + "layer_norm1.")
        self.declare_norm("norm2", spec.width, prefix + "layer_norm2.")
        joined = [f"{prefix}self_attn.{name}_proj." for name in "qkv"]
        self.declare_linear("qkv", spec.width, 3 * spec.width, joined)
        self.declare_linear("proj", spec.width, spec.width, [prefix + "self_attn.out_proj."])
        self.declare_linear("fc1", spec.width, spec.mlp, [prefix + "mlp.fc1."])
        self.declare_linear("fc2", spec.mlp, spec.width, [prefix + "mlp.fc2."])

    def forward(self, x: Tensor) -> Tensor:
        """Run the block on x [I, tokens, C]."""
        normed = F.layer_norm(x, (self.width,), self.norm1_weight, self.norm1_bias, EPS)
        mixed = attention(*split_heads(normed @ self.qkv_weight + self.qkv_bias, self.heads))
        x = x + mixed.transpose(1, 2).reshape(-1, x.shape[1], self.width) @ self.proj_weight + self.proj_bias
        normed = F.layer_norm(x, (self.width,), self.norm2_weight, self.norm2_bias, EPS)
        hidden = normed @ self.fc1_weight + self.fc1_bias
        return x + (hidden * torch.sigmoid(1.702 * hidden)) @ self.fc2_weight + self.fc2_bias


class ClipTower(Loadable):
    """Pixels [I, 3, S, S] -> tokens [I, 1 + cells, C]: the class token, then the patches row by row."""

    patch_weight: Tensor  # [C, 3, patch, patch]; the convolution has no bias
    class_token: Tensor  # [C]
    positions: Tensor  # [1 + cells, C]
    pre_weight: Tensor  # [C]
    pre_bias: Tensor

    def __init__(self, tower: TowerSpec) -> None:
        super().__init__()
        assert tower.clip is not None
        self.spec = spec = tower.clip
        embeddings = f"{spec.prefix}embeddings."
        patch = (spec.width, 3, spec.patch_size, spec.patch_size)
        self.declare("patch_weight", patch, embeddings + "patch_embedding.weight")
        self.declare("class_token", (spec.width,), embeddings + "class_embedding")
        self.declare("positions", (1 + spec.side**2, spec.width), embeddings + "position_embedding.weight")
        self.declare_norm("pre", spec.width, f"{spec.prefix}pre_layrnorm.")
        self.blocks = nn.ModuleList(ClipBlock(spec, index) for index in range(spec.depth))

    def view_specs(self) -> tuple[ViewSpec, ...]:
        """Return the one view: the centre square of the picture."""
        size = self.spec.image_size
        return (ViewSpec("clip", size, size, CLIP_MEAN, CLIP_STD, "bicubic", "crop", "pixels"),)

    def forward(self, clip: Tensor) -> Tensor:
        """Return the tokens of normalised pixels [I, 3, S, S] float32."""
        spec = self.spec
        x = F.conv2d(clip, self.patch_weight, stride=spec.patch_size).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(clip.shape[0], 1, -1), x], 1) + self.positions
        x = F.layer_norm(x, (spec.width,), self.pre_weight, self.pre_bias, EPS)
        for block in self.blocks:
            x = block(x)
        return x
