"""The product with 8-bit weights in NumPy: what the kernels are held against."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def quantize(weights: Array, group: int = 0) -> tuple[Array, Array]:
    """Return codes and scales of `weights` [N, K], rounded to the nearest symmetric 8-bit code.

    Args:
        weights: [N, K], a row per output.
        group: inputs that share a scale, or 0 for one scale per output.

    Returns:
        codes [N, K] int8 from -127 to 127, and scales float32: [N], or [N, K / group].
    """
    outputs, inputs = weights.shape
    cut = weights.astype(np.float64).reshape(outputs, -1, group or inputs)
    scales = np.maximum(np.abs(cut).max(-1) / 127, 1e-30).astype(np.float32)
    codes = np.clip(np.rint(cut / scales[..., None]), -127, 127).astype(np.int8)
    return codes.reshape(outputs, inputs), scales if group else scales[:, 0]


def matmul_w8(x: Array, codes: Array, scales: Array) -> Array:
    """Return x [..., K] times the weights [N, K] that codes and scales stand for: [..., N] float64."""
    outputs, inputs = codes.shape
    wide = scales.astype(np.float64).reshape(outputs, -1)
    weights = codes.reshape(outputs, wide.shape[1], -1) * wide[..., None]
    return x.astype(np.float64) @ weights.reshape(outputs, inputs).T
