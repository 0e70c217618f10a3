"""The WKV-7 recurrence in NumPy, token by token: what the kernels are held against."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def wkv7(
    r: Array, w: Array, k: Array, v: Array, a: Array, b: Array, state: Array, *, head_size: int = 64
) -> tuple[Array, Array]:
    """Run the recurrence in float64 (RWKV-7 paper, generalised delta rule).

    Args:
        r, w, k, v, a, b: [B, T, C] of any float type; `w` is the log of the decay (<= 0), `a` is -κ, `b` is κ times
            the in-context learning rate.
        state: [B, H, K, V], H = C / head_size.
        head_size: channels per head.

    Returns:
        y [B, T, C] and the state after the last token [B, H, K, V], float64.
    """
    batch, length, width = r.shape
    r, w, k, v, a, b = (x.astype(np.float64).reshape(batch, length, -1, head_size) for x in (r, w, k, v, a, b))
    s, decay, y = state.astype(np.float64), np.exp(w), np.empty_like(r)
    for t in range(length):
        removed = np.einsum("bhk,bhkv->bhv", a[:, t], s)
        s = (
            s * decay[:, t, :, :, None]
            + b[:, t, :, :, None] * removed[:, :, None, :]
            + k[:, t, :, :, None] * v[:, t, :, None, :]
        )
        y[:, t] = np.einsum("bhk,bhkv->bhv", r[:, t], s)
    return y.reshape(batch, length, width), s
