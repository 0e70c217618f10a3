"""RWKV-6 and its hybrids in plain NumPy float64: one position after the other, as the equations are written.

Weights are a dictionary of stored tensors, so nothing here knows how the exporter lays them out. A `Layer` holds what
is carried; a model is run layer by layer over a whole segment, each layer in an order of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

Weights = Mapping[str, np.ndarray]


@dataclass
class Layer:
    """What one layer carries; zero before the first position."""

    width: int
    heads: int
    att_shift: np.ndarray = field(init=False)
    ffn_shift: np.ndarray = field(init=False)
    cross_shift: np.ndarray = field(init=False)
    wkv: np.ndarray = field(init=False)  # [H, key, value]

    def __post_init__(self) -> None:
        self.att_shift, self.ffn_shift, self.cross_shift = (np.zeros(self.width) for _ in range(3))
        size = self.width // self.heads
        self.wkv = np.zeros((self.heads, size, size))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def norm(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    """Layer norm of a vector [C]."""
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * w[name + ".weight"] + w[name + ".bias"]


def group_norm(y: np.ndarray, w: Weights, name: str) -> np.ndarray:
    """Norm of each head of [H, N], affine over channels."""
    centred = y - y.mean(1, keepdims=True)
    normed = centred / np.sqrt(y.var(1, keepdims=True) + 64e-5)
    return normed.reshape(-1) * w[name + ".weight"] + w[name + ".bias"]


def amounts(first: np.ndarray, w: Weights, name: str) -> list[np.ndarray]:
    """The low-rank corrections of a data-dependent token shift, one per slot."""
    q = np.tanh(first @ w[name + "_w1"]).reshape(len(w[name + "_w2"]), -1)
    return [q[j] @ matrix for j, matrix in enumerate(w[name + "_w2"])]


def vector(w: Weights, name: str) -> np.ndarray:
    return w[name].reshape(-1)


def time_mix(h: np.ndarray, layer: Layer, w: Weights, p: str, image: np.ndarray | None) -> np.ndarray:
    """One position of the recurrent half, h [C]; `image` [H, key, value] where the model reads a state there."""
    heads = layer.heads
    d = layer.att_shift - h
    layer.att_shift = h
    first = h + d * vector(w, p + "time_maa_x")
    mixed = amounts(first, w, p + "time_maa")
    h_w, h_k, h_v, h_r, h_g = (h + d * (vector(w, f"{p}time_maa_{s}") + m) for s, m in zip("wkvrg", mixed, strict=True))
    r, k, v = (
        (w[f"{p}{name}.weight"] @ x).reshape(heads, -1)
        for name, x in (("receptance", h_r), ("key", h_k), ("value", h_v))
    )
    g = silu(w[p + "gate.weight"] @ h_g)
    decay = vector(w, p + "time_decay") + np.tanh(h_w @ w[p + "time_decay_w1"]) @ w[p + "time_decay_w2"]
    kept = np.exp(-np.exp(decay)).reshape(heads, -1)
    bonus = w[p + "time_faaaa"]
    y = np.zeros_like(v)
    for head in range(heads):
        added = np.outer(k[head], v[head])
        y[head] = r[head] @ (layer.wkv[head] + bonus[head][:, None] * added)
        layer.wkv[head] = kept[head][:, None] * layer.wkv[head] + added
    if image is not None:
        e_r, e_g = amounts(first, w, p + "time_mem")
        read = (w[p + "mem_read.weight"] @ (h + d * (vector(w, p + "time_mem_r") + e_r))).reshape(heads, -1)
        gate = w[p + "mem_gate.weight"] @ (h + d * (vector(w, p + "time_mem_g") + e_g))
        found = np.stack([read[head] @ image[head] for head in range(heads)])
        if p + "mem_gate.bias" in w:
            amount = sigmoid(gate + w[p + "mem_gate.bias"]).reshape(heads, -1)
            y = y * (1 - amount) + found * amount
        else:
            amount = relu(gate).reshape(heads, -1)
            y = y * relu(1 - amount) + found * amount
    return w[p + "output.weight"] @ (group_norm(y, w, p + "ln_x") * g)


def cross(h: np.ndarray, layer: Layer, w: Weights, p: str, image: np.ndarray) -> np.ndarray:
    """One position of v6.22's sublayer."""
    d = layer.cross_shift - h
    layer.cross_shift = h
    e_r, e_g = amounts(h + d * vector(w, p + "time_maa_x"), w, p + "time_maa")
    r = (w[p + "receptance.weight"] @ (h + d * (vector(w, p + "time_maa_r") + e_r))).reshape(layer.heads, -1)
    g = silu(w[p + "gate.weight"] @ (h + d * (vector(w, p + "time_maa_g") + e_g)))
    found = np.stack([r[head] @ image[head] for head in range(layer.heads)])
    return w[p + "output.weight"] @ (group_norm(found, w, p + "ln_x") * g)


def channel_mix(h: np.ndarray, layer: Layer, w: Weights, p: str) -> np.ndarray:
    """One position of the feed-forward half."""
    d = layer.ffn_shift - h
    layer.ffn_shift = h
    k = relu(w[p + "key.weight"] @ (h + d * vector(w, p + "time_maa_k"))) ** 2
    r = sigmoid(w[p + "receptance.weight"] @ (h + d * vector(w, p + "time_maa_r")))
    return r * (w[p + "value.weight"] @ k)


def blocks(
    x: np.ndarray,
    layers: Sequence[Layer],
    w: Weights,
    prefix: str,
    images: Sequence[np.ndarray] | None = None,
    orders: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Run x [T, C] (before ln0) through all layers.

    Args:
        x: not written.
        layers: what is carried; updated.
        w: stored tensors.
        prefix: of the keys, "rwkv.blocks." for example.
        images: one state [H, key, value] per layer, for hybrids.
        orders: per layer, the positions in the order in which it reads them.
    """
    x = np.stack([norm(row, w, f"{prefix}0.ln0") for row in x.astype(np.float64)])
    for i, layer in enumerate(layers):
        p = f"{prefix}{i}."
        image = None if images is None else images[i]
        apart = p + "cross.receptance.weight" in w
        for t in range(len(x)) if orders is None else orders[i]:
            x[t] += time_mix(norm(x[t], w, p + "ln1"), layer, w, p + "att.", None if apart else image)
            if apart:
                assert image is not None
                x[t] += cross(norm(x[t], w, p + "ln3"), layer, w, p + "cross.", image)
            x[t] += channel_mix(norm(x[t], w, p + "ln2"), layer, w, p + "ffn.")
    return x


def logits(x: np.ndarray, w: Weights, prefix: str) -> np.ndarray:
    """Head of the residual stream x [T, C]; [T, V]."""
    return np.stack([w[prefix + "head.weight"] @ norm(row, w, prefix + "ln_out") for row in x])


def image_state(features: np.ndarray, w: Weights, depth: int, heads: int) -> np.ndarray:
    """The state encoder's result [H, key, value] for packed features [T, C]."""
    layers = [Layer(features.shape[1], heads) for _ in range(depth)]
    blocks(features, layers, w, "state_encoder.blocks.")
    return layers[-1].wkv
