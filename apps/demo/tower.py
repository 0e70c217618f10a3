"""The trainable vision tower: a small transformer with the layer names of Hugging Face SigLIP vision models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _sine_positions(side: int, width: int) -> Tensor:
    """Two-dimensional sine and cosine code, [side * side, width], row-major."""
    rate = 1.5 / 30 ** (torch.arange(width // 4) / (width // 4 - 1))
    wave = torch.arange(side).float()[:, None] * rate
    code = torch.cat([wave.sin(), wave.cos()], 1)
    rows, columns = code[:, None].expand(side, side, -1), code[None].expand(side, side, -1)
    return torch.cat([rows, columns], 2).reshape(side * side, width)


class _Embeddings(nn.Module):
    def __init__(self, image: int, patch: int, width: int) -> None:
        super().__init__()
        self.patch, side = patch, image // patch
        self.patch_embedding = nn.Conv2d(3, width, patch, patch)
        self.position_embedding = nn.Embedding(side * side, width)
        self.position_embedding.weight.data = 0.7 * _sine_positions(side, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, P, D]; the convolution is written as a matrix product, which is faster on CPUs."""
        batch, _, height, width = pixels.shape
        p = self.patch
        cut = pixels.view(batch, 3, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5)
        weight = self.patch_embedding.weight.flatten(1)
        x = F.linear(cut.reshape(batch, -1, 3 * p * p), weight, self.patch_embedding.bias)
        return x + self.position_embedding.weight


class _Attention(nn.Module):
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    out_proj: nn.Linear

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nn.Linear(width, width))
        # With q = k, patches first attend to what is near and alike; training starts faster.
        start = nn.init.orthogonal_(torch.empty(width, width))
        self.q_proj.weight.data, self.k_proj.weight.data = start.clone(), start.clone()

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        three = (self.q_proj, self.k_proj, self.v_proj)
        joined = F.linear(x, torch.cat([m.weight for m in three]), torch.cat([m.bias for m in three]))
        q, k, v = joined.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weight = torch.softmax(q @ k.mT * (width // self.heads) ** -0.5, -1, dtype=torch.float32)
        mixed: Tensor = self.out_proj((weight.to(v.dtype) @ v).transpose(1, 2).reshape(batch, length, width))
        return mixed


class _MLP(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return y


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.self_attn, self.mlp = _Attention(width, heads), _MLP(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        y: Tensor = x + self.mlp(self.layer_norm2(x))
        return y


class _Encoder(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, inner: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(width, heads, inner) for _ in range(layers))


class _VisionModel(nn.Module):
    def __init__(self, image: int, patch: int, width: int, layers: int, heads: int, inner: int) -> None:
        super().__init__()
        self.embeddings = _Embeddings(image, patch, width)
        self.encoder = _Encoder(width, layers, heads, inner)
        self.post_layernorm = nn.LayerNorm(width, 1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embeddings(pixels)
        for layer in self.encoder.layers:
            x = layer(x)
        y: Tensor = self.post_layernorm(x)
        return y


class Tower(nn.Module):
    """SigLIP vision model; the feature is the last hidden state after `post_layernorm`."""

    def __init__(self, image: int, patch: int, width: int, layers: int, heads: int, inner: int) -> None:
        super().__init__()
        self.vision_model = _VisionModel(image, patch, width, layers, heads, inner)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] -> patch features [B, P, D], row-major."""
        features: Tensor = self.vision_model(pixels)
        return features


def normalise(pictures: Tensor) -> Tensor:
    """RGB uint8 [B, H, W, 3] -> float [B, 3, H, W] in -1 ... 1."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def pooled(features: Tensor, grid: int) -> Tensor:
    """Average pooling of the patch grid: [B, P, D] -> [B, grid * grid, D]."""
    batch, patches, width = features.shape
    side = int(patches**0.5)
    cut = features.view(batch, grid, side // grid, grid, side // grid, width)
    return cut.mean((2, 4)).view(batch, grid * grid, width)
