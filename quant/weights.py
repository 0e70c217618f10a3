"""Weight formats: how a float matrix becomes the initializers of one quantised matrix product, in plain NumPy.

`int8-b32` is onnxruntime's `MatMulNBits` with 8 bits: each output column is cut into blocks of 32 inputs, a block has
one float32 scale, and the codes are unsigned around 128, so that no kernel saturates on a CPU without VNNI. With
accuracy_level 4 the activations are rounded to 8 bits per token and block inside the kernel; a token's result never
depends on its neighbours in a segment, which per-tensor dynamic quantisation would break.
"""

from __future__ import annotations

import numpy as np

BLOCK = 32
ZERO_POINT = 128


def quantize_int8_b32(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round a [K, N] float32 matrix to 8-bit codes in blocks of 32 along K, symmetric.

    Returns:
        codes [N, ceil(K / 32), 32] uint8 (value = (code - 128) * scale; padding rows hold 128) and
        scales [N * ceil(K / 32)] float32, the layout `com.microsoft.MatMulNBits` wants.
    """
    k, n = weight.shape
    blocks = -(-k // BLOCK)
    padded = np.zeros((n, blocks * BLOCK), np.float32)
    padded[:, :k] = weight.T
    grouped = padded.reshape(n, blocks, BLOCK)
    scales = np.abs(grouped).max(axis=2) / 127
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
    codes = np.rint(grouped * inverse[:, :, None]) + ZERO_POINT
    return codes.astype(np.uint8), scales.astype(np.float32).reshape(-1)


def dequantize_int8_b32(codes: np.ndarray, scales: np.ndarray, k: int) -> np.ndarray:
    """Return the [K, N] float32 matrix that the codes stand for; the inverse of `quantize_int8_b32` up to rounding."""
    n, blocks, _ = codes.shape
    values = (codes.astype(np.float32) - ZERO_POINT) * scales.reshape(n, blocks, 1)
    return np.ascontiguousarray(values.reshape(n, -1)[:, :k].T)
