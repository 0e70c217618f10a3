"""Inputs of the recurrences: ordinary ones, and those that break careless kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
HEAD = 64
WKV7_KINDS = ("plain", "one key", "no decay", "strong decay")
WKV6_KINDS = ("plain", "no decay", "strong decay")


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def wkv7_inputs(kind: str, batch: int, length: int, heads: int = 2, seed: int = 0) -> list[Array]:
    """Return r, w, k, v, a, b [B, T, C] and a state [B, H, 64, 64].

    "one key" repeats a key with hardly any decay, as identical image patches do; "strong decay" goes far beyond what
    a released model can reach (-0.6065), down to a decay of 0.
    """
    g = np.random.default_rng(seed)
    r, w, k, v, key = (g.standard_normal((batch, length, heads, HEAD)) for _ in range(5))
    repeated = kind == "one key"
    if repeated:
        key = np.broadcast_to(key[:, :1], key.shape)
    kappa = key / np.linalg.norm(key, axis=-1, keepdims=True)
    decay = -0.6065 * _sigmoid(2 * w - (4 if repeated else 0))
    if kind == "no decay":
        decay = np.zeros_like(decay)
    if kind == "strong decay":
        decay[:, ::3] = -30.0
        decay[:, 1::7] = -1e4
    rate = _sigmoid(g.standard_normal(kappa.shape) + (3 if repeated else 0))
    state = g.standard_normal((batch, heads, HEAD, HEAD))
    return [*(x.reshape(batch, length, -1) for x in (r, decay, k, v, -kappa, kappa * rate)), state]


def wkv6_inputs(kind: str, batch: int, length: int, heads: int = 2, seed: int = 0) -> list[Array]:
    """Return r, k, v, w [B, T, C], u [H, 64] and a state [B, H, 64, 64]; WKV-6's decays have no bound."""
    g = np.random.default_rng(seed)
    r, k, v, w = (g.standard_normal((batch, length, heads * HEAD)) for _ in range(4))
    decay = -np.exp(w - 2)
    if kind == "no decay":
        decay = np.zeros_like(decay)
    if kind == "strong decay":
        decay[:, ::3] = -1e4
        decay[:, 1::5, ::2] = 0.0
    return [r, k, v, decay, g.standard_normal((heads, HEAD)), g.standard_normal((batch, heads, HEAD, HEAD))]
