"""The image state's read-out in NumPy: what the kernel is held against."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def read_state(q: Array, gate: Array, y: Array, state: Array, *, head_size: int = 64) -> Array:
    """Return y blended with what q finds in an image state (VisualRWKV-HM v6.21, `Hybrid`), float64.

    Args:
        q, gate, y: [B, T, C]; the gate is a sigmoid's or a relu's result, in one formula: what it exceeds 1 by takes
            nothing more from y.
        state: [B, H, K, V], H = C / head_size.
        head_size: channels per head.
    """
    batch, length, width = y.shape
    amount = gate.astype(np.float64)
    reads = q.astype(np.float64).reshape(batch, length, -1, head_size)
    found = np.einsum("bthk,bhkv->bthv", reads, state.astype(np.float64)).reshape(batch, length, width)
    return np.maximum(1 - amount, 0) * y.astype(np.float64) + amount * found
