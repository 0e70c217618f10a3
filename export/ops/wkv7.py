"""The WKV-7 recurrence as one operator: its torch meaning, its ONNX node, and the node's function body.

Per head, with a state S of [key, value] (models of the RWKV-7 paper, "Goose", equation of the generalised delta rule):

    S_t = (diag(exp(w_t)) + b_t a_tᵀ)ᵀ-form:  S_t[k, v] = exp(w_t[k]) S[k, v] + b_t[k] (a_tᵀ S)[v] + k_t[k] v_t[v]
    y_t[v] = Σ_k r_t[k] S_t[k, v]

with a = -κ and b = κ ⊙ (in-context learning rate). `w` is the *log* of the decay, so that a chunk's cumulative decay
is a sum. The ONNX node `vrwkv::WKV7` carries a body of standard operators: any engine runs it, and one that has the
plugin takes that instead.
"""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnxscript import FLOAT, graph, script
from onnxscript import opset18 as op

from export.ops.common import VRWKV

CHUNK, BLOCK = 16, 8  # the triangular inverse is a product inside blocks of 8 and exact between them


@torch.library.custom_op("vrwkv::wkv7", mutates_args=())
def wkv7(
    r: torch.Tensor,
    w: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    state: torch.Tensor,
    head_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the recurrence token by token; the reference every faster form is held against.

    Args:
        r, w, k, v, a, b: [B, T, C] float32; `w` is the log decay (<= 0), `a` is -κ, `b` is κ times the learning rate.
        state: [B, H, K, V] float32, H = C / head_size.
        head_size: channels per head.

    Returns:
        y [B, T, C] and the state after the last token [B, H, K, V].
    """
    batch, length, width = r.shape
    r, w, k, v, a, b = (x.view(batch, length, -1, head_size) for x in (r, w, k, v, a, b))
    decay, y = w.exp(), torch.empty_like(r)
    for t in range(length):
        removed = torch.einsum("bhk,bhkv->bhv", a[:, t], state)
        state = (
            state * decay[:, t, :, :, None]
            + b[:, t, :, :, None] * removed[:, :, None, :]
            + k[:, t, :, :, None] * v[:, t, :, None, :]
        )
        y[:, t] = torch.einsum("bhk,bhkv->bhv", r[:, t], state)
    return y.view(batch, length, width), state.clone()


@wkv7.register_fake
def _(
    r: torch.Tensor,
    w: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    state: torch.Tensor,
    head_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(r), torch.empty_like(state)


def _chunk_mask() -> np.ndarray:
    """[32, 32] mask of G: rows (a, r) of a chunk against columns (b, k); a sees earlier tokens, r also its own."""
    strict = np.tril(np.ones((CHUNK, CHUNK), np.float32), -1)
    full = np.tril(np.ones((CHUNK, CHUNK), np.float32))
    return np.block([[strict, strict], [full, full]])


_MASK = onnx.numpy_helper.from_array(_chunk_mask(), "wkv7_mask")
_DIAGONAL = onnx.numpy_helper.from_array(
    np.kron(np.eye(CHUNK // BLOCK, dtype=np.float32), np.ones((BLOCK, BLOCK), np.float32)), "wkv7_diagonal"
)
_EYE = onnx.numpy_helper.from_array(np.eye(CHUNK, dtype=np.float32), "wkv7_eye")


@script(VRWKV, default_opset=op)
def WKV7(r, w, k, v, a, b, state, head_size: int, plugin_namespace: str, plugin_version: str):
    """Standard operators for `wkv7`: one step where T = 1, otherwise chunks of 16 tokens carried by a Scan."""
    wkv7_n = op.Constant(value_int=head_size)
    wkv7_n1 = op.Reshape(wkv7_n, op.Constant(value_ints=[1]))
    wkv7_dims = op.Shape(r)
    wkv7_batch = op.Slice(wkv7_dims, [0], [1])
    wkv7_length = op.Slice(wkv7_dims, [1], [2])
    if op.Squeeze(op.Equal(wkv7_length, op.Constant(value_ints=[1]))):
        wkv7_row = op.Concat(wkv7_batch, op.Constant(value_ints=[-1, 1]), wkv7_n1, axis=0)
        wkv7_col = op.Concat(wkv7_batch, op.Constant(value_ints=[-1]), wkv7_n1, op.Constant(value_ints=[1]), axis=0)
        s_removed = op.MatMul(op.Reshape(a, wkv7_row), state)
        s_added = op.MatMul(
            op.Concat(op.Reshape(b, wkv7_col), op.Reshape(k, wkv7_col), axis=3),
            op.Concat(s_removed, op.Reshape(v, wkv7_row), axis=2),
        )
        state_out = op.Add(op.Mul(state, op.Reshape(op.Exp(w), wkv7_col)), s_added)
        y = op.Reshape(op.MatMul(op.Reshape(r, wkv7_row), state_out), wkv7_dims)
    else:
        c_sixteen = op.Constant(value_ints=[16])
        c_missing = op.Mod(op.Neg(wkv7_length), c_sixteen)
        c_zero = op.Constant(value_ints=[0])
        c_axis0 = op.Constant(value_ints=[0])
        c_all = op.Concat(
            op.Unsqueeze(r, c_axis0), op.Unsqueeze(w, c_axis0), op.Unsqueeze(k, c_axis0),
            op.Unsqueeze(v, c_axis0), op.Unsqueeze(a, c_axis0), op.Unsqueeze(b, c_axis0), axis=0,
        )  # fmt: skip
        # Zero padding neither decays (log decay 0) nor adds (k = b = 0): the state is that of the last real token.
        c_pads = op.Concat(op.Constant(value_ints=[0, 0, 0, 0, 0, 0]), c_missing, c_zero, axis=0)
        c_padded = op.Pad(c_all, c_pads)
        c_shape = op.Concat(
            op.Constant(value_ints=[6]), wkv7_batch, op.Constant(value_ints=[-1, 16]),
            op.Shape(state, start=1, end=2), wkv7_n1, axis=0,
        )  # fmt: skip
        c_chunks = op.Transpose(op.Reshape(c_padded, c_shape), perm=[0, 2, 1, 4, 3, 5])  # [6, chunks, B, H, 16, N]
        c_r, c_w, c_k, c_v, c_a, c_b = op.Split(c_chunks, axis=0, num_outputs=6)
        c_rr = op.Squeeze(c_r, c_axis0)
        c_ww = op.Squeeze(c_w, c_axis0)
        c_kk = op.Squeeze(c_k, c_axis0)
        c_vv = op.Squeeze(c_v, c_axis0)
        c_aa = op.Squeeze(c_a, c_axis0)
        c_bb = op.Squeeze(c_b, c_axis0)
        c_sum = op.CumSum(c_ww, op.Constant(value_int=-2))
        c_decay = op.Exp(c_sum)
        c_grow = op.Exp(op.Neg(c_sum))
        c_ahat = op.Mul(c_aa, op.Exp(op.Sub(c_sum, c_ww)))
        c_rhat = op.Mul(c_rr, c_decay)
        c_bk = op.Concat(op.Mul(c_bb, c_grow), op.Mul(c_kk, c_grow), axis=-2)
        c_bkt = op.Transpose(c_bk, perm=[0, 1, 2, 4, 3])
        c_gram = op.Mul(op.MatMul(op.Concat(c_ahat, c_rhat, axis=-2), c_bkt), op.Constant(value=_MASK))
        c_upper, c_lower = op.Split(c_gram, axis=-2, num_outputs=2)
        c_ab, c_ak = op.Split(c_upper, axis=-1, num_outputs=2)
        c_eye = op.Constant(value=_EYE)
        # (I - A)^-1 inside the two 8 x 8 diagonal blocks D: (I + D)(I + D^2)(I + D^4), because D^8 = 0. A product over
        # all 16 tokens would cancel badly when keys repeat (identical image patches), so the blocks are merged exactly:
        # X + X E X, E being the block below the diagonal.
        c_d = op.Mul(c_ab, op.Constant(value=_DIAGONAL))
        c_d2 = op.MatMul(c_d, c_d)
        c_d4 = op.MatMul(c_d2, c_d2)
        c_x = op.MatMul(op.MatMul(op.Add(c_eye, c_d), op.Add(c_eye, c_d2)), op.Add(c_eye, c_d4))
        c_inverse = op.Add(c_x, op.MatMul(op.MatMul(c_x, op.Sub(c_ab, c_d)), c_x))
        c_solved = op.MatMul(c_inverse, op.Concat(c_ahat, op.MatMul(c_ak, c_vv), axis=-1))
        c_read, c_fixed = op.Split(c_solved, axis=-1, num_outputs=2)
        c_end = op.Slice(c_decay, [-1], [9223372036854775807], [-2])  # [chunks, B, H, 1, N]
        c_endt = op.Transpose(c_end, perm=[0, 1, 2, 4, 3])
        c_write = op.Mul(c_bkt, c_endt)

        @graph()
        def wkv7_chunk(
            g_state: FLOAT["b", "h", "n", "n"],
            g_read: FLOAT["b", "h", "c", "n"],
            g_fixed: FLOAT["b", "h", "c", "n"],
            g_end: FLOAT["b", "h", "n", "m"],
            g_write: FLOAT["b", "h", "n", "d"],
            g_v: FLOAT["b", "h", "c", "n"],
        ):
            g_u = op.Add(g_fixed, op.MatMul(g_read, g_state))
            g_next = op.Add(op.Mul(g_state, g_end), op.MatMul(g_write, op.Concat(g_u, g_v, axis=-2)))
            g_before = op.Identity(g_state)
            return g_next, g_before, g_u

        state_out, c_before, c_u = op.Scan(
            state, c_read, c_fixed, c_endt, c_write, c_vv, body=wkv7_chunk, num_scan_inputs=5
        )
        c_y = op.Add(op.MatMul(c_lower, op.Concat(c_u, c_vv, axis=-2)), op.MatMul(c_rhat, c_before))
        c_flat = op.Reshape(
            op.Transpose(c_y, perm=[1, 0, 3, 2, 4]),
            op.Concat(wkv7_batch, op.Constant(value_ints=[-1]), op.Shape(r, start=2, end=3), axis=0),
        )
        y = op.Slice(c_flat, c_zero, wkv7_length, op.Constant(value_ints=[1]))
    return y, state_out
