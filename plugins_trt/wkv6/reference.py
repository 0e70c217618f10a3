"""The WKV-6 recurrence in NumPy, token by token: what the kernels are held against."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def wkv6(r: Array, k: Array, v: Array, w: Array, u: Array, state: Array, *, head_size: int = 64) -> tuple[Array, Array]:
    """Run the recurrence in float64 (RWKV-5/6 paper, "Finch").

    Args:
        r, k, v, w: [B, T, C] of any float type; `w` is the log of the decay, <= 0 and of any size.
        u: [H, K], the bonus of the current token.
        state: [B, H, K, V], H = C / head_size.
        head_size: channels per head.

    Returns:
        y [B, T, C] and the state after the last token [B, H, K, V], float64.
    """
    batch, length, width = r.shape
    r, k, v, w = (x.astype(np.float64).reshape(batch, length, -1, head_size) for x in (r, k, v, w))
    s, bonus, decay, y = state.astype(np.float64), u.astype(np.float64), np.exp(w), np.empty_like(r)
    for t in range(length):
        added = k[:, t, :, :, None] * v[:, t, :, None, :]
        y[:, t] = np.einsum("bhk,bhkv->bhv", r[:, t], s + bonus[None, :, :, None] * added)
        s = s * decay[:, t, :, :, None] + added
    return y.reshape(batch, length, width), s
