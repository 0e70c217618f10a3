"""A whole decode step of RWKV-7 with random weights: its structures (as in decode.cu), its weights, its checks."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.device import Buffer, Call, Device
from benchmarks.gpu.kernels import check

Array = NDArray[Any]
FORMATS = ("fp16", "int8", "int4")
_GROUP = 64  # of the 4-bit scales
_MATRICES = ("r", "k", "v", "out", "key", "value")
_LOW = ("w1", "a1", "v1", "g1", "w2", "a2", "v2", "g2")
_VECTORS = ("w0", "a0", "v0", "k_k", "k_a", "r_k", "norm_scale", "norm_bias")
_NORMS = ("ln1_scale", "ln1_bias", "ln2_scale", "ln2_bias")
_LOW_ROOM = 512


@dataclass(frozen=True)
class Size:
    """Sizes of a model; ranks of w, a, v, g."""

    layers: int
    width: int
    ranks: tuple[int, int, int, int]
    vocabulary: int = 65536

    @property
    def ffn(self) -> int:
        """Return the width of the feed-forward half."""
        return 4 * self.width


SIZES = {
    "0.1B": Size(12, 768, (64, 64, 32, 128)),
    "0.4B": Size(24, 1024, (64, 64, 32, 128)),
    "1.5B": Size(24, 2048, (96, 96, 64, 256)),
}
TINY = Size(2, 128, (32, 32, 16, 48), 256)


class _Matrix(ctypes.Structure):
    _fields_ = [("codes", ctypes.c_void_p), ("scales", ctypes.c_void_p)]


def _addresses(*names: str) -> list[tuple[str, Any]]:
    return [(name, ctypes.c_void_p) for name in names]


class _Layer(ctypes.Structure):
    _fields_ = [
        *_addresses(*_NORMS, "mix", "ffn_mix"), *((name, _Matrix) for name in _MATRICES), *_addresses(*_LOW, *_VECTORS),
    ]  # fmt: skip


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in
          ("layers", "heads", "ffn", "vocabulary", "rank_w", "rank_a", "rank_v", "rank_g", "format")),
        ("layer", ctypes.POINTER(_Layer)), ("embedding", ctypes.c_void_p), ("head", _Matrix),
        *_addresses("out_scale", "out_bias"),
    ]  # fmt: skip


class _Working(ctypes.Structure):
    _fields_ = [
        *_addresses("token", "x", "mixed", "products", "low", "high", "first", "k", "v", "kappa", "rate", "y", "gated",
                    "hidden", "logits", "decay"),
        *((name, ctypes.c_void_p * 2) for name in ("att", "ffn", "wkv")),
    ]  # fmt: skip


class Decoder:
    """A model of random weights on the device, and its step."""

    def __init__(self, device: Device, library: ctypes.CDLL, size: Size, form: str, seed: int = 0) -> None:
        self.device, self.size, self.form, self._library = device, size, form, library
        self.heads = size.width // 64
        self._seed = seed
        self.weights: dict[str, Any] = {}  # by name: a buffer with its shape, or codes and scales
        self.streamed = 0  # bytes of weights that every token reads
        self._layers = (_Layer * size.layers)()
        for i in range(size.layers):
            self._fill(i)
        c, v = size.width, size.vocabulary
        head = self._matrix("head", v, c)
        self._model = _Model(
            size.layers, self.heads, size.ffn, v, *size.ranks, FORMATS.index(form), self._layers,
            self._halves("embedding", (v, c), 0.5), head, self._floats("out_scale", c, 1.0),
            self._floats("out_bias", c, 0.0),
        )  # fmt: skip
        self.streamed -= 2 * c * (v - 1)  # of the embedding, one row is read
        self.reset()

    def reset(self, token: int = 1) -> None:
        """Take new, empty state and working memory."""
        size, c, device = self.size, self.size.width, self.device
        halves = {
            "mixed": 6 * c, "products": 3 * c, "low": 4 * _LOW_ROOM, "high": 4 * c, "hidden": size.ffn,
            "logits": size.vocabulary, **dict.fromkeys(("first", "k", "v", "kappa", "rate", "y", "gated"), c),
        }  # fmt: skip
        self.working = {name: device.new(2 * count) for name, count in halves.items()}
        self.working |= {name: device.new(4 * c) for name in ("x", "decay")}
        self.working["token"] = device.put(np.array([token], np.int32))
        shapes = {"att": (size.layers, c), "ffn": (size.layers, c), "wkv": (size.layers, self.heads, 64, 64)}
        self.state = {name: [device.put(np.zeros(s, np.float32)) for _ in range(2)] for name, s in shapes.items()}
        self._working = _Working(
            **{name: one.at for name, one in self.working.items()},
            **{name: (ctypes.c_void_p * 2)(*(one.at for one in two)) for name, two in self.state.items()},
        )

    def step(self, parity: int) -> Call:
        """Return the call of one step that reads state set `parity` and writes the other."""
        model, working = ctypes.byref(self._model), ctypes.byref(self._working)
        return lambda: check(self._library.vrwkv_decode(model, working, parity, self.device.stream))

    def snapshot(self, parity: int) -> dict[str, Array]:
        """Return a copy of one state set, and the logits."""
        shapes = {"att": (-1,), "ffn": (-1,), "wkv": (-1,)}
        copies = {name: self.device.get(two[parity], "float32", shapes[name]) for name, two in self.state.items()}
        return {**copies, "logits": self.device.get(self.working["logits"], "float16", (-1,))}

    @property
    def bytes_per_token(self) -> int:
        """Return the least a token must move: weights once, state read and written."""
        size = self.size
        return self.streamed + 2 * 4 * size.layers * (2 * size.width + self.heads * 64 * 64)

    def _fill(self, i: int) -> None:
        size, c, layer = self.size, self.size.width, self._layers[i]
        for name in _NORMS:
            setattr(layer, name, self._floats(f"{i}.{name}", c, 1.0 if name.endswith("scale") else 0.0))
        layer.mix = self._halves(f"{i}.mix", (6, c), 0.3)
        layer.ffn_mix = self._halves(f"{i}.ffn_mix", (1, c), 0.3)
        shapes = {"key": (size.ffn, c), "value": (c, size.ffn)}
        for name in _MATRICES:
            setattr(layer, name, self._matrix(f"{i}.{name}", *shapes.get(name, (c, c))))
        for name in _LOW:
            rank = size.ranks["wavg".index(name[0])]
            setattr(layer, name, self._halves(f"{i}.{name}", (rank, c) if name[1] == "1" else (c, rank), 0.02))
        for name in _VECTORS:
            middle = 1.0 if name in ("k_k", "k_a", "norm_scale") else 0.0
            setattr(layer, name, self._floats(f"{i}.{name}", c, middle))

    def _next(self) -> int:
        self._seed += 1
        return self._seed

    def _keep(self, name: str, parts: tuple[tuple[Buffer, str, tuple[int, ...]], ...]) -> int:
        self.weights[name] = parts
        self.streamed += sum(buffer.nbytes for buffer, _, _ in parts)
        return parts[0][0].at

    def _halves(self, name: str, shape: tuple[int, ...], scale: float) -> int:
        return self._keep(name, ((self.device.normal(shape, scale, self._next()), "float16", shape),))

    def _floats(self, name: str, count: int, middle: float) -> int:
        values = middle + 0.1 * np.random.default_rng(self._next()).standard_normal(count)
        return self._keep(name, ((self.device.put(values.astype(np.float32)), "float32", (count,)),))

    def _matrix(self, name: str, outputs: int, inputs: int) -> _Matrix:
        spread = inputs**-0.5
        if self.form == "fp16":
            return _Matrix(self._halves(name, (outputs, inputs), spread), None)
        wide = self.form == "int8"
        count = (outputs,) if wide else (outputs, inputs // _GROUP)
        # Uniform codes spread by 73 (8 bits) or 4.6 (4 bits).
        scales = np.full(count, spread / (73 if wide else 4.6), np.float32)
        codes = self.device.bytes((outputs, inputs if wide else inputs // 2), self._next())
        shape = (outputs, inputs if wide else inputs // 2)
        parts = ((codes, "int8" if wide else "uint8", shape), (self.device.put(scales), "float32", count))
        return _Matrix(self._keep(name, parts), parts[1][0].at)

    def dense(self, name: str) -> Array:
        """Return a weight in float64, codes multiplied out."""
        (buffer, dtype, shape), *rest = self.weights[name]
        values = self.device.get(buffer, dtype, shape)
        if not rest:
            return values.astype(np.float64)
        scales = self.device.get(*rest[0]).astype(np.float64)
        if dtype == "int8":
            return values * scales[:, None]
        codes = np.stack([values & 15, values >> 4], -1).reshape(shape[0], -1).astype(np.float64) - 8
        return codes * np.repeat(scales, _GROUP, 1)


def reference(decoder: Decoder, tokens: int, first: int = 1) -> tuple[Array, dict[str, Array]]:
    """Run the same steps in float64 (RWKV-7 paper); returns the last logits and the state."""
    size, heads, w = decoder.size, decoder.heads, decoder.dense
    state = {"att": np.zeros((size.layers, size.width)), "ffn": np.zeros((size.layers, size.width))}
    state["wkv"] = np.zeros((size.layers, heads, 64, 64))
    weights = {name: w(name) for name in decoder.weights}
    logits, token = np.zeros(0), first
    for _ in range(tokens):
        x, values = weights["embedding"][token].copy(), None
        token = (token * 7919 + 12345) % size.vocabulary
        for i in range(size.layers):
            g = {name.split(".")[1]: one for name, one in weights.items() if name.startswith(f"{i}.")}
            x, values = _layer(g, x, values, state, i, heads)
        logits = weights["head"] @ _norm(x, weights["out_scale"], weights["out_bias"])
    return logits, state


def _layer(
    g: dict[str, Array], x: Array, first: Array | None, state: dict[str, Array], i: int, heads: int
) -> tuple[Array, Array]:
    n = _norm(x, g["ln1_scale"], g["ln1_bias"])
    h_r, h_k, h_v, h_w, h_a, h_g = n + (state["att"][i] - n) * g["mix"]
    state["att"][i] = n
    r, k, v = g["r"] @ h_r, g["k"] @ h_k, g["v"] @ h_v
    decay = np.exp(-np.exp(-0.5) * _sigmoid(g["w0"] + g["w2"] @ np.tanh(g["w1"] @ h_w)))
    rate = _sigmoid(g["a0"] + g["a2"] @ (g["a1"] @ h_a))
    gate = g["g2"] @ _sigmoid(g["g1"] @ h_g)
    first = v if first is None else first
    v = v + (first - v) * (_sigmoid(g["v0"] + g["v2"] @ (g["v1"] @ h_v)) if i else 0)
    split = lambda one: one.reshape(heads, 64)  # noqa: E731
    kappa = split(k * g["k_k"])
    kappa = kappa / np.maximum(np.linalg.norm(kappa, axis=-1, keepdims=True), 1e-12)
    k = k * (1 + (rate - 1) * g["k_a"])
    s = state["wkv"][i]
    removed = np.einsum("hk,hkv->hv", -kappa, s)
    s = (
        s * split(decay)[..., None]
        + (kappa * split(rate))[..., None] * removed[:, None]
        + (split(k)[..., None] * split(v)[:, None])
    )
    state["wkv"][i] = s
    y = np.einsum("hk,hkv->hv", split(r), s)
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 64e-5)
    bonus = (split(r * k * g["r_k"])).sum(-1, keepdims=True) * split(v)
    x = x + g["out"] @ ((y.ravel() * g["norm_scale"] + g["norm_bias"] + bonus.ravel()) * gate)
    n = _norm(x, g["ln2_scale"], g["ln2_bias"])
    hidden = np.maximum(g["key"] @ (n + (state["ffn"][i] - n) * g["ffn_mix"][0]), 0)
    state["ffn"][i] = n
    return x + g["value"] @ (hidden * hidden), first


def _norm(x: Array, scale: Array, bias: Array) -> Array:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * scale + bias


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))
