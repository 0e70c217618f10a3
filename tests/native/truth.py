"""RWKV-7 in float64, one token at a time, from the very codes of a bundle: what rounding is measured against."""

from __future__ import annotations

import numpy as np

from quant.weights import FORMATS, dequantize
from runtime.bundle import Bundle
from runtime.native.graph import read_graph
from runtime.native.rwkv7 import HEAD, find_parts


class Truth:
    """A model and its state, formula by formula as `export/arch/rwkv7.py`."""

    def __init__(self, bundle: Bundle) -> None:
        spec = bundle.manifest.graph("step")
        graph = read_graph(bundle.file(spec.file))
        parts = find_parts(graph, spec)
        self.layers, self.width = parts.layers, parts.width
        self.weights: dict[str, np.ndarray] = {}
        for name in parts.vectors:
            if name:
                self.weights[name] = graph.read(name).astype(np.float64).reshape(-1)
        for weight in parts.matrices:
            if weight is None:
                continue
            stored = [graph.read(name) for name in (weight.data, weight.scale, weight.zero) if name]
            name = weight.data.removesuffix("_codes").removesuffix("_fp16")
            if weight.format.startswith("int"):
                fmt = FORMATS[f"{weight.format}-b{weight.block}"]
                codes = stored[0].reshape(weight.n, -(-weight.k // weight.block), -1)
                stored = [dequantize((codes, *stored[1:]), weight.k, fmt)]
            self.weights[name] = stored[0].astype(np.float64)
        self.shifts = np.zeros((self.layers, 2, self.width))
        self.state = np.zeros((self.layers, self.width // HEAD, HEAD, HEAD))

    def step(self, x: np.ndarray) -> np.ndarray:
        """Feed one embedding [C]; returns logits [V]."""
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
