"""Calibrated rounding: while one input of a matrix is rounded, the inputs after it make up for the error.

The squared error of a product, over the inputs x seen in calibration, is sum over columns of e^T H e with H = X^T X and
e = w - rounded w. Rounding input i leaves an error that is least when the inputs not rounded yet move by
-e_i U[i, i+1:] / U[i, i], U being the upper Cholesky factor of the inverse of H (GPTQ, arXiv 2210.17323, algorithm 1;
Optimal Brain Surgeon). Scales and zero points of a block of inputs are searched when its turn comes, on the weights as
they have become by then. The stored format is that of `quant.weights`, so nothing that reads it has to know.
"""

from __future__ import annotations

import numpy as np

from quant.weights import BlockFormat, Chunk, assemble, checked, inverse

DAMPING = 0.1  # of the mean of H's diagonal, added to it; 0.01 fits the pictures seen better, and others worse
_COLUMNS = 1024  # at once


def compensate(weight: np.ndarray, moments: list[np.ndarray], fmt: BlockFormat) -> tuple[np.ndarray, ...]:
    """Quantise a matrix so that its products with the inputs seen, rather than its weights, change least.

    Args:
        weight: [K, N] float32.
        moments: blocks of the diagonal of X^T X, [b, b] float32 each, which together cover the K inputs; every b but
            the last must be a multiple of the format's block.
        fmt: the format.

    Returns:
        What `quant.weights.quantize` returns.

    Raises:
        CheckpointError: the matrix holds NaN, Inf or a weight whose square would overflow.
    """
    k, n = weight.shape
    blocks = -(-k // fmt.block)
    codes = np.zeros((blocks * fmt.block, n), np.uint8)
    scales, zeros = np.zeros((blocks, n), np.float32), np.full((blocks, n), fmt.middle, np.uint8)
    start = 0
    for moment in moments:
        stop = start + len(moment)
        factor = _factor(moment)
        for first in range(0, n, _COLUMNS):
            columns = slice(first, min(first + _COLUMNS, n))
            part = checked(np.array(weight[start:stop, columns], np.float32))  # a copy, to be moved
            rows = slice(start // fmt.block, -(-stop // fmt.block))
            where = codes[start : rows.stop * fmt.block, columns], scales[rows, columns], zeros[rows, columns]
            _round(part, factor, fmt, *where)
        start = stop
    assert start == k, f"moments of {start} inputs for a matrix of {k}"
    return assemble(codes, scales, zeros, fmt)


def _factor(moment: np.ndarray) -> np.ndarray:
    """Return the upper Cholesky factor of the inverse of a damped X^T X, [b, b] float32."""
    damped = moment.astype(np.float64)
    diagonal = np.einsum("ii->i", damped)
    mean = diagonal.mean()
    if not mean > 0:
        return np.eye(len(moment), dtype=np.float32)  # these inputs were always zero: nothing to make up for
    diagonal += DAMPING * mean
    upper: np.ndarray = np.linalg.cholesky(np.linalg.inv(damped)).T
    return upper.astype(np.float32)


def _round(
    weight: np.ndarray,
    factor: np.ndarray,
    fmt: BlockFormat,
    codes: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray,
) -> None:
    """Round `weight` [b, n], which is overwritten, into codes [>= b, n], scales and zeros [blocks, n]."""
    count, n = weight.shape
    buffers = np.zeros((3, 1, fmt.block, n), np.float32)
    errors = np.empty((fmt.block, n), np.float32)
    top = np.float32(2 * fmt.middle - 1)
    importance = np.ones((-(-count // fmt.block) * fmt.block, 1), np.float32)
    importance[:count, 0] = np.diag(factor) ** -2  # what an error costs in the end, made up for as well as can be
    for block, start in enumerate(range(0, count, fmt.block)):
        stop = min(start + fmt.block, count)
        chunk = Chunk(buffers, fmt, importance[start : start + fmt.block])
        chunk.weights[0] = 0
        chunk.weights[0, : stop - start] = weight[start:stop]
        found = chunk.search() if fmt.has_zero_points else chunk.symmetric()
        scale, zero = (part[0, 0] for part in found)
        per_step = inverse(scale)
        codes[start : start + fmt.block, :][stop - start :] = zero  # inputs past K stand for zero
        scales[block], zeros[block] = scale, zero
        for row in range(start, stop):
            code = np.clip(np.rint(weight[row] * per_step + zero), 0, top)
            codes[row] = code
            error = (weight[row] - (code - zero) * scale) / factor[row, row]
            errors[row - start] = error
            if row + 1 < stop:
                weight[row + 1 : stop] -= factor[row, row + 1 : stop, None] * error
        if stop < count:
            weight[stop:] -= factor[start:stop, stop:].T @ errors[: stop - start]
