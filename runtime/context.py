"""Packing the features of several pictures into the sequence that becomes an image state (VisualRWKV-HM)."""

from __future__ import annotations

import math

import numpy as np

from runtime.errors import InputError, SchemaError
from runtime.spec import ContextSpec

MOST_TOKENS = 32 * 32  # per picture, where the pictures share a budget


def pack(features: np.ndarray, spec: ContextSpec) -> np.ndarray:
    """Return the sequences that the context graph encodes, [chunks, q, C] float32.

    Each picture's tokens are averaged to a common number (`tokens_per_picture`) and all are joined, picture by
    picture. Zero vectors go in front: up to `spec.tokens` per picture where that is more than there are, then up to a
    multiple of `spec.chunks`. The result is cut into `spec.chunks` pieces in a row. (VisualRWKV-HM v6.21 `model.py`;
    a batch of one.)

    Args:
        features: [n, cells, C], a row-major grid for each of n >= 1 pictures.
        spec: the manifest's.

    Raises:
        InputError: the features have another shape, or there are more pictures than `spec.max_tokens` can hold.
        SchemaError: `spec` cannot be met: not exactly one of `tokens` and `max_tokens`, or grids that are not square.
    """
    features = np.asarray(features, np.float32)
    if features.ndim != 3 or features.shape[1] != spec.cells or not features.shape[0]:
        raise InputError(f"image features of shape {list(features.shape)}", wanted=f"[pictures >= 1, {spec.cells}, C]")
    pictures, _, width = features.shape
    tokens = tokens_per_picture(pictures, spec)
    if tokens < spec.cells:
        features = _pool(features, tokens)
    packed = features.reshape(-1, width)
    length = pictures * tokens
    length += -length % spec.chunks
    padding = np.zeros((length - len(packed), width), np.float32)
    return np.concatenate([padding, packed]).reshape(spec.chunks, length // spec.chunks, width)


def tokens_per_picture(pictures: int, spec: ContextSpec) -> int:
    """Return how many tokens each of `pictures` gets: `spec.tokens`, or what the budget `spec.max_tokens` leaves.

    All cells if they fit the budget, else the largest square number of tokens (at most 32 x 32) that does.

    Raises:
        InputError: the budget has not one token for each picture.
        SchemaError: not exactly one of the two is set.
    """
    if (spec.tokens is None) == (spec.max_tokens is None):
        raise SchemaError(
            f"the context has tokens {spec.tokens} and max_tokens {spec.max_tokens}",
            wanted="exactly one of them",
            hint="export the bundle again",
        )
    if spec.tokens is not None:
        return spec.tokens
    assert spec.max_tokens is not None
    if pictures * spec.cells <= spec.max_tokens:
        return spec.cells
    if pictures > spec.max_tokens:
        raise InputError(f"{pictures} pictures at once", wanted=f"at most {spec.max_tokens}", hint="show fewer at once")
    return math.isqrt(min(spec.max_tokens // pictures, MOST_TOKENS)) ** 2


def pooling_matrix(pooled: int, cells: int) -> np.ndarray:
    """Return the matrix of adaptive average pooling along one axis, float32 [pooled, cells].

    Row r averages the inputs floor(r cells / pooled) to ceil((r + 1) cells / pooled) - 1.
    """
    matrix = np.zeros((pooled, cells), np.float32)
    for row in range(pooled):
        start, stop = row * cells // pooled, -(-(row + 1) * cells // pooled)
        matrix[row, start:stop] = 1 / (stop - start)
    return matrix


def _pool(features: np.ndarray, tokens: int) -> np.ndarray:
    """Average the grids of [n, cells, C] to `tokens` cells, on both axes."""
    pictures, cells, width = features.shape
    side, small = math.isqrt(cells), math.isqrt(tokens)
    if side * side != cells or small * small != tokens:
        raise SchemaError(
            f"the context averages {cells} cells to {tokens} tokens",
            wanted="two square numbers",
            hint="set state_encoder_num_token_per_image to a square and export again",
        )
    matrix = pooling_matrix(small, side)
    rows = matrix @ features.reshape(pictures, side, side * width)
    columns = matrix @ rows.reshape(pictures * small, side, width)
    return columns.reshape(pictures, tokens, width)
