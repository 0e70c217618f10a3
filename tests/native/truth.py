"""Models in float64, one token at a time, from the very codes of a bundle: what rounding is measured against."""

from __future__ import annotations

import numpy as np

from quant.weights import FORMATS, dequantize
from runtime.bundle import Bundle
from runtime.native.families import find_parts
from runtime.native.graph import Graph, read_graph
from runtime.native.parts import HEAD, Parts, Weight
from tests.export import numpy_rwkv6


def exact_weights(graph: Graph, parts: Parts) -> dict[str, np.ndarray]:
    """What a graph's weights stand for, in float64, by the names of the graph."""
    weights: dict[str, np.ndarray] = {}
    for vector in parts.vectors:
        if vector:
            weights[vector.data] = graph.read(vector.data).astype(np.float64)
    for weight in parts.matrices:
        if weight:
            name = weight.data.removesuffix("_codes").removesuffix("_fp16")
            weights[name] = _exact(graph, weight).astype(np.float64)
    return weights


def _exact(graph: Graph, weight: Weight) -> np.ndarray:
    stored = [graph.read(name) for name in (weight.data, weight.scale, weight.zero) if name]
    if not weight.format.startswith("int"):
        return stored[0]
    fmt = FORMATS[f"{weight.format}-b{weight.block}"]
    codes = stored[0].reshape(weight.n, -(-weight.k // weight.block), -1)
    return dequantize((codes, *stored[1:]), weight.k, fmt)


def truth_of(bundle: Bundle) -> Truth7 | Truth6:
    """The model of a bundle, before its first token."""
    spec = bundle.manifest.graph("step")
    graph = read_graph(bundle.file(spec.file))
    parts = find_parts(graph, spec)
    kind = Truth7 if spec.custom_ops == ("vrwkv::WKV7",) else Truth6
    return kind(exact_weights(graph, parts), parts)


class Truth6:
    """RWKV-6 and HM: the reference of tests/export, with weights named and laid out as it wants them."""

    def __init__(self, weights: dict[str, np.ndarray], parts: Parts) -> None:
        self.w = {}
        for name, value in weights.items():
            stem, _, last = name.rpartition(".")
            if last.startswith("ln"):
                norm, _, part = last.rpartition("_")
                self.w[f"{stem}.{norm}.{part}"] = value
            elif value.ndim == 2 and not last.startswith("time_"):
                self.w[f"{name}.weight"] = value.T
            elif value.ndim == 3 and value.shape[1] == 1:  # the fixed amounts of the blends, folded
                self._amounts(f"{stem}.att.", value)
            elif last in ("time_maa", "time_mem"):
                self._amounts(f"{stem}.", value.reshape(-1, 1, parts.width))
            else:
                self.w[name.replace("mem_gate_bias", "mem_gate.bias")] = value
        heads = parts.width // HEAD
        self.layers = [numpy_rwkv6.Layer(parts.width, heads) for _ in range(parts.layers)]

    def _amounts(self, prefix: str, rows: np.ndarray) -> None:
        streams, kind = ("wkvrg", "maa") if len(rows) == 5 else ("rg", "mem")
        self.w |= {f"{prefix}time_{kind}_{s}": row[0] for s, row in zip(streams, rows, strict=True)}

    def step(self, x: np.ndarray, image: np.ndarray | None = None) -> np.ndarray:
        """Feed one embedding [C]; `image` [1 or L, H, N, N]; returns logits [V]."""
        x = x.astype(np.float64)
        for i, layer in enumerate(self.layers):
            p = f"blocks.{i}."
            state = None if image is None else image[i % len(image)].astype(np.float64)
            normed = numpy_rwkv6.norm(x, self.w, p + "ln1")
            x = x + numpy_rwkv6.time_mix(normed, layer, self.w, p + "att.", state)
            x = x + numpy_rwkv6.channel_mix(numpy_rwkv6.norm(x, self.w, p + "ln2"), layer, self.w, p + "ffn.")
        logits: np.ndarray = self.w["head.head.weight"] @ numpy_rwkv6.norm(x, self.w, "head.ln_out")
        return logits


class Truth7:
    """RWKV-7, formula by formula as `export/arch/rwkv7.py`."""

    def __init__(self, weights: dict[str, np.ndarray], parts: Parts) -> None:
        self.layers, self.width = parts.layers, parts.width
        flat = {vector.data for vector in parts.vectors if vector}
        self.weights = {name: value.reshape(-1) if name in flat else value for name, value in weights.items()}
        self.shifts = np.zeros((self.layers, 2, self.width))
        self.state = np.zeros((self.layers, self.width // HEAD, HEAD, HEAD))

    def step(self, x: np.ndarray, image: np.ndarray | None = None) -> np.ndarray:
        """Feed one embedding [C]; returns logits [V]. There is no image state to read."""
        x = x.astype(np.float64)
        first = x
        for layer in range(self.layers):
            block = f"blocks.{layer}."
            mixed, first = self._time(layer, self._norm(x, block + "ln1_"), first)
            x = x + mixed
            normed = self._norm(x, block + "ln2_")
            blend = normed + (self.shifts[layer, 1] - normed) * self.weights[block + "ffn.x_k"]
            self.shifts[layer, 1] = normed
            x = x + np.maximum(blend @ self.weights[block + "ffn.key"], 0) ** 2 @ self.weights[block + "ffn.value"]
        return self._norm(x, "head.ln_out_") @ self.weights["head.head"]

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        normed = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
        return normed * self.weights[name + "weight"] + self.weights[name + "bias"]

    def _time(self, layer: int, x: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        def w(name: str) -> np.ndarray:
            return self.weights[f"blocks.{layer}.att.{name}"]

        def sigmoid(z: np.ndarray) -> np.ndarray:
            return 1 / (1 + np.exp(-z))

        delta = self.shifts[layer, 0] - x
        h = {stream: x + delta * w(f"x_{stream}") for stream in "rwkvag"}
        self.shifts[layer, 0] = x
        r, k, v = h["r"] @ w("receptance"), h["k"] @ w("key"), h["v"] @ w("value")
        decay = np.exp(-np.exp(-0.5) * sigmoid(w("w0") + np.tanh(h["w"] @ w("w1")) @ w("w2")))
        rate = sigmoid(w("a0") + h["a"] @ w("a1") @ w("a2"))
        gate = sigmoid(h["g"] @ w("g1")) @ w("g2")
        if layer == 0:
            first = v
        else:
            v = v + (first - v) * sigmoid(w("v0") + h["v"] @ w("v1") @ w("v2"))
        kappa = (k * w("k_k")).reshape(-1, HEAD)
        kappa /= np.maximum(np.linalg.norm(kappa, axis=1, keepdims=True), 1e-12)
        k = k * (1 + (rate - 1) * w("k_a"))
        r, k, v, decay, rate = (z.reshape(-1, HEAD) for z in (r, k, v, decay, rate))
        removed = np.einsum("hk,hkv->hv", -kappa, self.state[layer])
        self.state[layer] = (
            self.state[layer] * decay[:, :, None]
            + (kappa * rate)[:, :, None] * removed[:, None]
            + k[:, :, None] * v[:, None]
        )
        y = np.einsum("hk,hkv->hv", r, self.state[layer])
        y = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 64e-5)
        bonus = (r * k * w("r_k").reshape(-1, HEAD)).sum(1, keepdims=True) * v
        out = y.reshape(-1) * w("ln_x_weight") + w("ln_x_bias") + bonus.reshape(-1)
        return (out * gate) @ w("output"), first
