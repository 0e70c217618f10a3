"""Vision towers, poolings, projectors and the token compressor in plain NumPy float64, from their specification.

Nothing here comes from the exporter: one image at a time, one head at a time, weights by their names in a checkpoint.
`w` is always such a dictionary; matrices are stored [out, in].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Array = np.ndarray
Weights = dict[str, Array]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gelu_erf(x: Array) -> Array:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_tanh(x: Array) -> Array:
    return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def quick_gelu(x: Array) -> Array:
    return x * sigmoid(1.702 * x)


def norm(w: Weights, name: str, x: Array, eps: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(w: Weights, name: str, x: Array) -> Array:
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def patches(w: Weights, name: str, pixels: Array) -> Array:
    """A convolution whose stride is its kernel: [3, S, S] -> [side, side, C]; a rest of pixels is left out."""
    kernel = w[f"{name}.weight"]
    size = kernel.shape[-1]
    side = pixels.shape[-1] // size
    out = np.empty((side, side, len(kernel)))
    for y in range(side):
        for x in range(side):
            cell = pixels[:, y * size : (y + 1) * size, x * size : (x + 1) * size]
            out[y, x] = (kernel * cell).sum((1, 2, 3))
    return out + w.get(f"{name}.bias", 0.0)


def attend(q: Array, k: Array, v: Array, heads: int, bias: Callable[[int, Array], Array] | None = None) -> Array:
    size = q.shape[-1] // heads
    out = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[:, part] @ k[:, part].T / math.sqrt(size)
        if bias is not None:
            scores = scores + bias(head, q[:, part])
        out.append(softmax(scores) @ v[:, part])
    return np.concatenate(out, -1)


def hf_block(w: Weights, prefix: str, x: Array, heads: int, gelu: Callable[[Array], Array], eps: float) -> Array:
    h = norm(w, f"{prefix}layer_norm1", x, eps)
    q, k, v = (linear(w, f"{prefix}self_attn.{name}_proj", h) for name in "qkv")
    x = x + linear(w, f"{prefix}self_attn.out_proj", attend(q, k, v, heads))
    h = norm(w, f"{prefix}layer_norm2", x, eps)
    return x + linear(w, f"{prefix}mlp.fc2", gelu(linear(w, f"{prefix}mlp.fc1", h)))


def clip(w: Weights, pixels: Array, layers: int, heads: int) -> Array:
    """[3, S, S] -> [1 + cells, C], class token first."""
    prefix = "vit.vision_model."
    x = patches(w, f"{prefix}embeddings.patch_embedding", pixels)
    x = np.concatenate([w[f"{prefix}embeddings.class_embedding"].reshape(1, -1), x.reshape(-1, x.shape[-1])])
    x = norm(w, f"{prefix}pre_layrnorm", x + w[f"{prefix}embeddings.position_embedding.weight"], 1e-5)
    for layer in range(layers):
        x = hf_block(w, f"{prefix}encoder.layers.{layer}.", x, heads, quick_gelu, 1e-5)
    return x


def hf_siglip(w: Weights, pixels: Array, layers: int, heads: int) -> Array:
    """Every block and the final norm."""
    prefix = "vit.vision_model."
    x = patches(w, f"{prefix}embeddings.patch_embedding", pixels)
    x = x.reshape(-1, x.shape[-1]) + w[f"{prefix}embeddings.position_embedding.weight"]
    for layer in range(layers):
        x = hf_block(w, f"{prefix}encoder.layers.{layer}.", x, heads, gelu_tanh, 1e-6)
    return norm(w, f"{prefix}post_layernorm", x, 1e-6)


def timm(w: Weights, prefix: str, pixels: Array, layers: int, heads: int) -> Array:
    """DINOv2 or SigLIP without the last block and the final norm: patch tokens after block `layers` - 2."""
    x = patches(w, f"{prefix}patch_embed.proj", pixels)
    x = x.reshape(-1, x.shape[-1]) + w[f"{prefix}pos_embed"].reshape(-1, x.shape[-1])
    extra = 0
    if f"{prefix}cls_token" in w:
        first = [w[prefix + name].reshape(-1, x.shape[-1]) for name in ("cls_token", "reg_token")]
        extra = sum(len(tokens) for tokens in first)
        x = np.concatenate([*first, x])
    for layer in range(layers - 1):
        block = f"{prefix}blocks.{layer}."
        q, k, v = np.split(linear(w, f"{block}attn.qkv", norm(w, f"{block}norm1", x, 1e-6)), 3, -1)
        mixed = linear(w, f"{block}attn.proj", attend(q, k, v, heads))
        x = x + mixed * w.get(f"{block}ls1.gamma", 1.0)
        hidden = gelu_erf(linear(w, f"{block}mlp.fc1", norm(w, f"{block}norm2", x, 1e-6)))
        x = x + linear(w, f"{block}mlp.fc2", hidden) * w.get(f"{block}ls2.gamma", 1.0)
    return x[extra:]


def sam(w: Weights, pixels: Array, windows: list[int], heads: int) -> Array:
    """[3, S, S] -> [(side / 2)², 4 * neck]."""
    prefix = "vit.sam_featurizer."
    x = patches(w, f"{prefix}patch_embed.proj", pixels) + w[f"{prefix}pos_embed"][0]
    side = len(x)
    for layer, window in enumerate(windows):
        block = f"{prefix}blocks.{layer}."
        h = norm(w, f"{block}norm1", x, 1e-6)
        size = window or side
        across = -(-side // size)
        padded = np.zeros((across * size, across * size, h.shape[-1]))
        padded[:side, :side] = h
        mixed = np.empty_like(padded)
        for y in range(0, across * size, size):
            for z in range(0, across * size, size):
                cell = padded[y : y + size, z : z + size]
                mixed[y : y + size, z : z + size] = sam_attention(w, f"{block}attn.", cell, heads)
        x = x + mixed[:side, :side]
        hidden = gelu_erf(linear(w, f"{block}mlp.lin1", norm(w, f"{block}norm2", x, 1e-6)))
        x = x + linear(w, f"{block}mlp.lin2", hidden)
    x = norm(w, f"{prefix}neck.1", x @ w[f"{prefix}neck.0.weight"][:, :, 0, 0].T, 1e-6)
    kernel = w[f"{prefix}neck.2.weight"]
    around = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    x = sum(around[i : i + side, j : j + side] @ kernel[:, :, i, j].T for i in range(3) for j in range(3))
    x = norm(w, f"{prefix}neck.3", x, 1e-6)
    out = np.empty((side // 2, side // 2, 4 * x.shape[-1]))
    for dy in range(2):
        for dx in range(2):
            out[:, :, 2 * dy + dx :: 4] = x[dy::2, dx::2]
    return out.reshape(-1, out.shape[-1])


def sam_attention(w: Weights, prefix: str, x: Array, heads: int) -> Array:
    """A square [S, S, C] with relative positions from the unscaled query."""
    side = len(x)
    q, k, v = np.split(linear(w, f"{prefix}qkv", x.reshape(side * side, -1)), 3, -1)
    tables = w[f"{prefix}rel_pos_h"], w[f"{prefix}rel_pos_w"]
    y, z = np.divmod(np.arange(side * side), side)

    def relative(_: int, query: Array) -> Array:
        rows = tables[0][y[:, None] - y[None, :] + side - 1]  # [query, key, D]
        columns = tables[1][z[:, None] - z[None, :] + side - 1]
        return np.einsum("qd,qkd->qk", query, rows) + np.einsum("qd,qkd->qk", query, columns)

    return linear(w, f"{prefix}proj", attend(q, k, v, heads, relative)).reshape(side, side, -1)


def grid_pooling(tokens: Array, grid_size: int) -> Array:
    """v6.0: [1 + n², C] with the class token first -> pooled patches, then the class token."""
    first, grid = tokens[:1], tokens[1:]
    if grid_size == -1:
        return np.concatenate([grid, first])
    if grid_size == 0:
        return first
    if grid_size == 1:
        return np.concatenate([grid.mean(0, keepdims=True), first])
    n = math.isqrt(len(grid))
    s = n // grid_size
    o = (n - s) // s + 1
    grid = grid.reshape(n, n, -1)
    cells = [grid[y * s : (y + 1) * s, x * s : (x + 1) * s].mean((0, 1)) for y in range(o) for x in range(o)]
    return np.concatenate([np.stack(cells), first])


def mirrored(tokens: Array) -> Array:
    """v6.01: the reversed list beside the list."""
    return np.concatenate([tokens, tokens[::-1]], -1)


def adaptive(features: Array, n: int) -> Array:
    """[side², C] -> [n², C]."""
    side = math.isqrt(len(features))
    grid = features.reshape(side, side, -1)
    edges = [(r * side // n, -(-(r + 1) * side // n)) for r in range(n)]
    return np.stack([grid[a:b, c:d].mean((0, 1)) for a, b in edges for c, d in edges])


def uhd(views: list[list[Array]]) -> Array:
    """Features of [whole, TL, TR, BL, BR][dino, siglip, sam] -> [cells, 2 * their width]."""
    cells, parts = len(views[0][0]), []
    side = math.isqrt(cells)
    half = side // 2
    for tower in range(3):
        grid = np.empty((side, side, views[0][tower].shape[-1]))
        for index in range(4):
            y, x = (index // 2) * half, (index % 2) * half
            grid[y : y + half, x : x + half] = adaptive(views[1 + index][tower], half).reshape(half, half, -1)
        parts.append(grid.reshape(cells, -1))
    return np.concatenate([*views[0], *parts], -1)


def project(w: Weights, x: Array, form: str) -> Array:
    """Features [tokens, width] -> [tokens, C], before ln0."""
    if form == "linear":
        return linear(w, "proj", x)
    if form == "mlp":
        y = linear(w, "proj.o_proj", x * sigmoid(linear(w, "proj.gate", x)))
        return norm(w, "proj.ln_v", y, 1e-5)
    z = linear(w, "proj.proj", x)
    if form == "mlp-uhd":
        return linear(w, "proj.o_proj", np.maximum(z, 0))
    return linear(w, "proj.o_proj", z * sigmoid(linear(w, "proj.gate", z)))


def ln0(w: Weights, x: Array) -> Array:
    return norm(w, "rwkv.blocks.0.ln0", x, 1e-5)


def compressor(w: Weights, x: Array, layers: int, pooling: Array) -> Array:
    """v7.03: [T, C] -> [P, C] after the decoder's ln0; odd layers read backwards from a zero state."""
    x = norm(w, "vtc.blocks.0.ln0", x, 1e-5)
    v_first = np.zeros_like(x)
    for layer in range(layers):
        order = slice(None, None, -1 if layer % 2 else 1)
        y, first = rwkv7_block(w, f"vtc.blocks.{layer}.", x[order], v_first[order], layer)
        x, v_first = y[order], first[order]
    return ln0(w, pooling @ norm(w, "vtc.ln_out", x, 1e-5))


def rwkv7_block(w: Weights, prefix: str, x: Array, v_first: Array, layer: int) -> tuple[Array, Array]:
    h = norm(w, f"{prefix}ln1", x, 1e-5)
    mixed, v_first = rwkv7_time_mix(w, f"{prefix}att.", h, v_first, layer)
    x = x + mixed
    h = norm(w, f"{prefix}ln2", x, 1e-5)
    k = h + (before(h) - h) * w[f"{prefix}ffn.x_k"].reshape(-1)
    hidden = np.maximum(linear(w, f"{prefix}ffn.key", k), 0) ** 2
    return x + linear(w, f"{prefix}ffn.value", hidden), v_first


def before(h: Array) -> Array:
    return np.concatenate([np.zeros_like(h[:1]), h[:-1]])


def rwkv7_time_mix(w: Weights, prefix: str, h: Array, v_first: Array, layer: int) -> tuple[Array, Array]:
    p = {key[len(prefix) :]: x for key, x in w.items() if key.startswith(prefix)}
    p = {key: x.reshape(-1) if x.ndim == 3 else x for key, x in p.items()}
    mix = {s: h + (before(h) - h) * p[f"x_{s}"] for s in "rwkvag"}
    r, k, v = mix["r"] @ p["receptance.weight"].T, mix["k"] @ p["key.weight"].T, mix["v"] @ p["value.weight"].T
    decay = np.exp(-math.exp(-0.5) * sigmoid(p["w0"] + np.tanh(mix["w"] @ p["w1"]) @ p["w2"]))
    a = sigmoid(p["a0"] + mix["a"] @ p["a1"] @ p["a2"])
    g = sigmoid(mix["g"] @ p["g1"]) @ p["g2"]
    if layer == 0:
        v_first = v
    else:
        v = v + (v_first - v) * sigmoid(p["v0"] + mix["v"] @ p["v1"] @ p["v2"])
    heads, size = p["r_k"].shape
    kappa = (k * p["k_k"]).reshape(-1, heads, size)
    kappa = kappa / np.maximum(np.sqrt((kappa**2).sum(-1, keepdims=True)), 1e-12)
    k = k * (1 + (a - 1) * p["k_a"])
    r, k, v, decay, a = (x.reshape(-1, heads, size) for x in (r, k, v, decay, a))
    state, y = np.zeros((heads, size, size)), np.empty_like(v)
    for t in range(len(h)):
        for i in range(heads):
            s = -kappa[t, i] @ state[i]
            removed = np.outer(kappa[t, i] * a[t, i], s)
            state[i] = decay[t, i][:, None] * state[i] + removed + np.outer(k[t, i], v[t, i])
            out = r[t, i] @ state[i]
            centred = out - out.mean()
            out = centred / math.sqrt((centred**2).mean() + 64e-5)
            part = slice(i * size, (i + 1) * size)
            out = out * p["ln_x.weight"][part] + p["ln_x.bias"][part]
            y[t, i] = out + (r[t, i] * k[t, i] * p["r_k"][i]).sum() * v[t, i]
    return (y.reshape(len(h), -1) * g) @ p["output.weight"].T, v_first
