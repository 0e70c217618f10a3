"""The WKV-6 recurrence as one operator: its torch meaning, and the body of its ONNX node.

Per head, with a state S of [key, value] (RWKV-6, "Finch"): the current token gets the bonus u instead of decay.

    y_t[v]   = Σ_k r_t[k] (S[k, v] + u[k] k_t[k] v_t[v])
    S_t[k, v] = exp(w_t[k]) S[k, v] + k_t[k] v_t[v]

A decay may have any strength here: the log decay `w` has no lower bound, and exp(w) underflows in real models. So the
body never divides by a decay, as `export.ops.wkv7` may. Within a chunk, token t reads token s < t through
exp(w_{s+1} + … + w_{t-1}), and each such exponent is made of sums of w only, without a difference:

- Halve the chunk again and again. Every pair s < t is parted by exactly one middle m, s < m <= t, and there
  exp(w_{s+1} + … + w_{m-1}) goes to the key of s, and exp(w_m + … + w_{t-1}) to the receptance of t. Both are <= 1, so
  nothing overflows; where one underflows, so does their product. One product of matrices per halving, masked to its
  blocks, is all pairs.
- The state is read through exp(w_1 + … + w_{t-1}) and written through exp(w_{t+1} + … + w_16): sums again.

Differences of cumulative sums would be safe from overflow too, but not exact: after a log decay of -1e4, float32 keeps
only three decimals of all later sums.
"""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnxscript import FLOAT, graph, script
from onnxscript import opset18 as op

from export.ops.common import VRWKV

CHUNK, HALVINGS = 16, 4


@torch.library.custom_op("vrwkv::wkv6", mutates_args=())
def wkv6(
    r: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    w: torch.Tensor,
    u: torch.Tensor,
    state: torch.Tensor,
    head_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the recurrence token by token; the reference every faster form is held against.

    Args:
        r, k, v, w: [B, T, C] float32; `w` is the log decay, -exp(...) <= 0 and of any size.
        u: [H, K] float32, the bonus of the current token.
        state: [B, H, K, V] float32, H = C / head_size.
        head_size: channels per head.

    Returns:
        y [B, T, C] and the state after the last token [B, H, K, V].
    """
    batch, length, width = r.shape
    r, k, v, w = (x.view(batch, length, -1, head_size) for x in (r, k, v, w))
    decay, y = w.exp(), torch.empty_like(r)
    for t in range(length):
        added = k[:, t, :, :, None] * v[:, t, :, None, :]
        y[:, t] = torch.einsum("bhk,bhkv->bhv", r[:, t], state + u[:, :, None] * added)
        state = state * decay[:, t, :, :, None] + added
    return y.view(batch, length, width), state.clone()


@wkv6.register_fake
def _(
    r: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    w: torch.Tensor,
    u: torch.Tensor,
    state: torch.Tensor,
    head_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(r), torch.empty_like(state)


def _sums() -> np.ndarray:
    """[16 * 6 + 1, 16] of 0 and 1: every sum of log decays a chunk needs, as one product with them.

    Rows: per token the tokens before it, per token those after it, per halving and token those between it and the
    middle of its block, and at last all.
    """
    one = np.ones((CHUNK, CHUNK), np.float32)
    token, other = np.indices((CHUNK, CHUNK))
    halvings = []
    for half in (1 << np.arange(HALVINGS)).tolist():
        middle = token // (2 * half) * (2 * half) + half
        reads, writes = (middle <= other) & (other < token), (token < other) & (other < middle)
        halvings.append((reads | writes).astype(np.float32))
    return np.concatenate([np.tril(one, -1), np.triu(one, 1), *halvings, one[:1]])


def _blocks() -> np.ndarray:
    """[4, 16, 16] masks: per halving, the pairs (t, s) with s in the first and t in the second half of one block."""
    token = np.arange(CHUNK)
    halves = (token // half for half in (1 << np.arange(HALVINGS)).tolist())
    return np.stack([(h[:, None] == h + 1) & (h % 2 == 0) for h in halves]).astype(np.float32)


_SUMS = onnx.numpy_helper.from_array(_sums(), "wkv6_sums")
_BLOCKS = onnx.numpy_helper.from_array(_blocks(), "wkv6_blocks")
_EYE = onnx.numpy_helper.from_array(np.eye(CHUNK, dtype=np.float32), "wkv6_eye")
# One token's log decay, bounded where float32's exp is 0 already: 0 * -inf in the sums would be NaN.
_LOWEST_TOKEN = onnx.numpy_helper.from_array(np.array(-104, np.float32), "wkv6_lowest_token")
# A sum of them, bounded where a factor is lost in float32's rounding by far (4e-18), yet the product of two is no
# subnormal number: those make a chunk six times slower.
_LOWEST_SUM = onnx.numpy_helper.from_array(np.array(-40, np.float32), "wkv6_lowest_sum")


@script(VRWKV, default_opset=op)
def WKV6(r, k, v, w, u, state, head_size: int, plugin_namespace: str, plugin_version: str):
    """Standard operators for `wkv6`: one step where T = 1, otherwise chunks of 16 tokens carried by a Scan."""
    wkv6_n1 = op.Reshape(op.Constant(value_int=head_size), op.Constant(value_ints=[1]))
    wkv6_dims = op.Shape(r)
    wkv6_batch = op.Slice(wkv6_dims, [0], [1])
    wkv6_length = op.Slice(wkv6_dims, [1], [2])
    wkv6_u = op.Unsqueeze(u, op.Constant(value_ints=[1]))  # [H, 1, N]
    if op.Squeeze(op.Equal(wkv6_length, op.Constant(value_ints=[1]))):
        s_row = op.Concat(wkv6_batch, op.Constant(value_ints=[-1, 1]), wkv6_n1, axis=0)
        s_col = op.Concat(wkv6_batch, op.Constant(value_ints=[-1]), wkv6_n1, op.Constant(value_ints=[1]), axis=0)
        s_r = op.Reshape(r, s_row)
        s_k = op.Reshape(k, s_col)
        s_v = op.Reshape(v, s_row)
        s_bonus = op.MatMul(op.Mul(s_r, wkv6_u), s_k)  # [B, H, 1, 1]
        s_y = op.Add(op.MatMul(s_r, state), op.Mul(s_bonus, s_v))
        state_out = op.Add(op.Mul(state, op.Reshape(op.Exp(w), s_col)), op.MatMul(s_k, s_v))
        y = op.Reshape(s_y, wkv6_dims)
    else:
        # Zero padding neither decays (log decay 0) nor adds (k = 0): the state is that of the last real token.
        c_missing = op.Mod(op.Neg(wkv6_length), op.Constant(value_ints=[16]))
        c_zero = op.Constant(value_ints=[0])
        c_pads = op.Concat(op.Constant(value_ints=[0, 0, 0, 0]), c_missing, c_zero, axis=0)
        c_shape = op.Concat(
            wkv6_batch, op.Constant(value_ints=[-1, 16]), op.Shape(state, start=1, end=2), wkv6_n1, axis=0
        )
        c_r = op.Transpose(op.Reshape(op.Pad(r, c_pads), c_shape), perm=[1, 0, 3, 2, 4])  # [chunks, B, H, 16, N]
        c_k = op.Transpose(op.Reshape(op.Pad(k, c_pads), c_shape), perm=[1, 0, 3, 2, 4])
        c_v = op.Transpose(op.Reshape(op.Pad(v, c_pads), c_shape), perm=[1, 0, 3, 2, 4])
        c_w = op.Transpose(op.Reshape(op.Pad(w, c_pads), c_shape), perm=[1, 0, 3, 2, 4])
        # Named here because onnxscript refuses a global inside the body of a Scan.
        c_sums = op.Constant(value=_SUMS)
        c_blocks = op.Constant(value=_BLOCKS)
        c_eye = op.Constant(value=_EYE)
        c_lowest_token = op.Constant(value=_LOWEST_TOKEN)
        c_lowest_sum = op.Constant(value=_LOWEST_SUM)

        # All of a chunk's work is inside the Scan: its temporaries stay in the cache, and memory does not grow with T.
        @graph()
        def wkv6_chunk(
            g_state: FLOAT["b", "h", "n", "n"],
            g_r: FLOAT["b", "h", "c", "n"],
            g_k: FLOAT["b", "h", "c", "n"],
            g_v: FLOAT["b", "h", "c", "n"],
            g_w: FLOAT["b", "h", "c", "n"],
        ):
            g_halving = op.Constant(value_ints=[2])
            g_sum = op.MatMul(c_sums, op.Max(g_w, c_lowest_token))
            g_before, g_after, g_near, g_whole = op.Split(  # type: ignore[misc]
                op.Exp(op.Max(g_sum, c_lowest_sum)), op.Constant(value_ints=[16, 16, 64, 1]), axis=-2
            )
            g_halves = op.Reshape(g_near, op.Constant(value_ints=[0, 0, 4, 16, -1]))
            g_reads = op.Mul(op.Unsqueeze(g_r, g_halving), g_halves)  # [B, H, 4, 16, N]
            g_keys = op.Mul(op.Unsqueeze(g_k, g_halving), g_halves)
            g_pairs = op.MatMul(g_reads, op.Transpose(g_keys, perm=[0, 1, 2, 4, 3]))
            g_past = op.ReduceSum(op.Mul(g_pairs, c_blocks), g_halving, keepdims=0)
            g_bonus = op.ReduceSum(op.Mul(op.Mul(g_r, wkv6_u), g_k), op.Constant(value_ints=[-1]))
            g_within = op.MatMul(op.Add(g_past, op.Mul(g_bonus, c_eye)), g_v)
            g_y = op.Add(g_within, op.MatMul(op.Mul(g_r, g_before), g_state))
            g_written = op.MatMul(op.Transpose(op.Mul(g_k, g_after), perm=[0, 1, 3, 2]), g_v)
            g_next = op.Add(op.Mul(g_state, op.Transpose(g_whole, perm=[0, 1, 3, 2])), g_written)
            return g_next, g_y

        state_out, c_y = op.Scan(state, c_r, c_k, c_v, c_w, body=wkv6_chunk, num_scan_inputs=4)
        c_flat = op.Reshape(
            op.Transpose(c_y, perm=[1, 0, 3, 2, 4]),
            op.Concat(wkv6_batch, op.Constant(value_ints=[-1]), op.Shape(r, start=2, end=3), axis=0),
        )
        y = op.Slice(c_flat, c_zero, wkv6_length, op.Constant(value_ints=[1]))
    return y, state_out
