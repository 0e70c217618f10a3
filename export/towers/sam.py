"""SAM's image encoder, ViT-B: windowed and global attention with decomposed relative positions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.archspec import SamSpec
from export.towers.vit import EPS
from export.weights import Loadable

# Global attention over 64 x 64 tokens has 4096² scores per head. Queries are taken in groups of rows so that
# no group's scores exceed this many numbers (128 MB); the result is the same, as the softmax is per query. Smaller
# groups take little less and are no faster, and every group is traced.
SCORES_AT_ONCE = 1 << 25


class SamAttention(Loadable):
    """Attention over a square of tokens, logits = q·k / √D + q·Rh[y - y'] + q·Rw[x - x']."""

    qkv_weight: Tensor  # [C, 3 C]
    qkv_bias: Tensor
    proj_weight: Tensor  # [C, C]
    proj_bias: Tensor
    rel_h: Tensor  # [S, D, S]
    rel_w: Tensor

    def __init__(self, spec: SamSpec, window: int, prefix: str, pictures: int) -> None:
        super().__init__()
        self.window, self.grid, self.side = window, spec.side, window or spec.side
        self.heads, self.head_size = spec.heads, spec.width // spec.heads
        self.groups = _row_groups(self.side, pictures * spec.heads * self.side**3)
        self.declare_linear("qkv", spec.width, 3 * spec.width, [prefix + "qkv."])
        self.declare_linear("proj", spec.width, spec.width, [prefix + "proj."])
        for axis in ("h", "w"):
            shape = (self.side, self.head_size, self.side)
            self.declare(f"rel_{axis}", shape, f"{prefix}rel_pos_{axis}", layout="relative")

    def forward(self, x: Tensor) -> Tensor:
        """Attend within x [I, grid * grid, C], in windows of the grid if the block has them.

        A window's padding at the bottom and right is zeros of the normed input, and attended to: what qkv makes of
        zeros is its bias. So only tokens that exist are multiplied.
        """
        qkv = x @ self.qkv_weight
        if self.window:
            mixed = _joined(self._attend(_windows(qkv, self.grid, self.window) + self.qkv_bias), self.grid, self.window)
        else:
            mixed = self._attend(qkv + self.qkv_bias)
        return mixed @ self.proj_weight + self.proj_bias

    def _attend(self, qkv: Tensor) -> Tensor:
        """Return what the heads make of [I, S * S, 3 C]: [I, S * S, C]."""
        side, heads, size = self.side, self.heads, self.head_size
        q, k, v = (  # each [I * heads, S * S, D]
            part.reshape(-1, side * side, heads, size).transpose(1, 2).reshape(-1, side * side, size)
            for part in qkv.chunk(3, -1)
        )
        keys, q = k.transpose(1, 2), q.reshape(-1, side, side, size)
        outputs = []
        for start, stop in self.groups:
            rows = q[:, start:stop]
            scores = (rows.reshape(-1, (stop - start) * side, size) * (1 / math.sqrt(size))) @ keys
            by_y = rows @ self.rel_h[start:stop]  # [.., y, x, y'], from the unscaled query
            by_x = (rows.transpose(1, 2) @ self.rel_w).transpose(1, 2)  # [.., y, x, x']
            scores = scores.reshape(-1, stop - start, side, side, side) + by_y.unsqueeze(-1) + by_x.unsqueeze(-2)
            outputs.append(torch.softmax(scores.reshape(-1, (stop - start) * side, side * side), -1) @ v)
        mixed = torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0]
        return mixed.reshape(-1, heads, side * side, size).transpose(1, 2).reshape(-1, side * side, heads * size)


class SamBlock(Loadable):
    """Pre-norm attention, in windows or global, and MLP, on the tokens of a grid, row by row."""

    norm1_weight: Tensor  # [C]
    norm1_bias: Tensor
    norm2_weight: Tensor
    norm2_bias: Tensor
    lin1_weight: Tensor  # [C, mlp]
    lin1_bias: Tensor
    lin2_weight: Tensor  # [mlp, C]
    lin2_bias: Tensor

    def __init__(self, spec: SamSpec, index: int, pictures: int) -> None:
        super().__init__()
        prefix = f"{spec.prefix}blocks.{index}."
        self.width = spec.width
        self.declare_norm("norm1", spec.width, prefix + "norm1.")
        self.declare_norm("norm2", spec.width, prefix + "norm2.")
        self.declare_linear("lin1", spec.width, spec.mlp, [prefix + "mlp.lin1."])
        self.declare_linear("lin2", spec.mlp, spec.width, [prefix + "mlp.lin2."])
        self.attn = SamAttention(spec, spec.windows[index], prefix + "attn.", pictures)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block on x [I, S * S, C]."""
        normed = F.layer_norm(x, (self.width,), self.norm1_weight, self.norm1_bias, EPS)
        x = x + self.attn(normed)
        normed = F.layer_norm(x, (self.width,), self.norm2_weight, self.norm2_bias, EPS)
        hidden = F.gelu(normed @ self.lin1_weight + self.lin1_bias)
        return x + (hidden @ self.lin2_weight + self.lin2_bias)


class Sam(Loadable):
    """Pixels [I, 3, S, S] -> features [I, (S / patch / 2)², 4 * neck], row-major.

    `pictures` is how many the graph reads for each image of a user: it limits the memory of attention.
    """

    patch_weight: Tensor  # [C, 3, patch, patch]
    patch_bias: Tensor  # [C]
    positions: Tensor  # [side, side, C]
    neck_in: Tensor  # [C, neck], a 1 x 1 convolution
    neck_norm1_weight: Tensor  # [neck]
    neck_norm1_bias: Tensor
    neck_conv: Tensor  # [neck, neck, 3, 3]
    neck_norm2_weight: Tensor
    neck_norm2_bias: Tensor

    def __init__(self, spec: SamSpec, pictures: int = 1) -> None:
        super().__init__()
        self.spec, prefix = spec, spec.prefix
        patch = (spec.width, 3, spec.patch_size, spec.patch_size)
        self.declare("patch_weight", patch, prefix + "patch_embed.proj.weight")
        self.declare("patch_bias", (spec.width,), prefix + "patch_embed.proj.bias")
        self.declare("positions", (spec.side, spec.side, spec.width), prefix + "pos_embed")
        self.blocks = nn.ModuleList(SamBlock(spec, index, pictures) for index in range(len(spec.windows)))
        self.declare("neck_in", (spec.width, spec.neck), prefix + "neck.0.weight", layout="transpose")
        self.declare_norm("neck_norm1", spec.neck, prefix + "neck.1.")
        self.declare("neck_conv", (spec.neck, spec.neck, 3, 3), prefix + "neck.2.weight")
        self.declare_norm("neck_norm2", spec.neck, prefix + "neck.3.")

    def forward(self, pixels: Tensor) -> Tensor:
        """Return features of normalised pixels [I, 3, S, S] float32."""
        spec = self.spec
        x = F.conv2d(pixels, self.patch_weight, self.patch_bias, stride=spec.patch_size)
        x = (x.permute(0, 2, 3, 1) + self.positions).reshape(-1, spec.side**2, spec.width)
        for block in self.blocks:
            x = block(x)
        x = F.layer_norm(x @ self.neck_in, (spec.neck,), self.neck_norm1_weight, self.neck_norm1_bias, EPS)
        x = x.reshape(-1, spec.side, spec.side, spec.neck)
        x = F.conv2d(x.permute(0, 3, 1, 2), self.neck_conv, padding=1).permute(0, 2, 3, 1)
        x = F.layer_norm(x, (spec.neck,), self.neck_norm2_weight, self.neck_norm2_bias, EPS)
        # Space to depth: channel 4 c + 2 dy + dx at (Y, X) is channel c at (2 Y + dy, 2 X + dx).
        half = spec.side // 2
        x = x.reshape(-1, half, 2, half, 2, spec.neck).permute(0, 1, 3, 5, 2, 4)
        return x.reshape(-1, half * half, 4 * spec.neck)


def _row_groups(side: int, scores_per_row: int) -> list[tuple[int, int]]:
    """Cut `side` rows of queries into equal groups of at most `SCORES_AT_ONCE` scores each."""
    most = max(1, min(side, SCORES_AT_ONCE // scores_per_row))
    rows = -(-side // -(-side // most))
    return [(start, min(start + rows, side)) for start in range(0, side, rows)]


def _windows(x: Tensor, side: int, window: int) -> Tensor:
    """Cut [I, side², C] into squares [I * n, window², C], the last of a row or column filled up with zeros."""
    across, width = -(-side // window), x.shape[-1]
    pad = across * window - side
    x = F.pad(x.reshape(-1, side, side, width), (0, 0, 0, pad, 0, pad))
    x = x.reshape(-1, across, window, across, window, width).transpose(2, 3)
    return x.reshape(-1, window * window, width)


def _joined(x: Tensor, side: int, window: int) -> Tensor:
    """Put squares together again: [I * n, window², C] -> [I, side², C], without what was filled up."""
    across, width = -(-side // window), x.shape[-1]
    x = x.reshape(-1, across, across, window, window, width).transpose(2, 3)
    x = x.reshape(-1, across * window, across * window, width)[:, :side, :side]
    return x.reshape(-1, side * side, width)
