"""Packing pictures for an image state."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.context import pack, pooling_matrix, tokens_per_picture
from runtime.errors import InputError, SchemaError
from runtime.spec import ContextSpec


def spec(cells: int, *, most: int | None = None, tokens: int | None = None, chunks: int = 1) -> ContextSpec:
    return ContextSpec("image_state", cells, most, tokens, chunks)


def numbered(pictures: int, cells: int, width: int = 3) -> np.ndarray:
    return 1 + np.arange(pictures * cells * width, dtype=np.float32).reshape(pictures, cells, width)


def averaged(grid: np.ndarray, small: int) -> np.ndarray:
    """Adaptive average pooling of [side, side, C], cell by cell."""
    side = len(grid)
    out = np.empty((small, small, grid.shape[-1]))
    for row in range(small):
        for column in range(small):
            top, bottom = math.floor(row * side / small), math.ceil((row + 1) * side / small)
            left, right = math.floor(column * side / small), math.ceil((column + 1) * side / small)
            out[row, column] = grid[top:bottom, left:right].mean((0, 1))
    return out


@pytest.mark.parametrize(
    ("pictures", "cells", "most", "tokens"),
    [
        (1, 1024, 1024, 1024),
        (2, 1024, 2048, 1024),  # fits exactly
        (2, 1024, 2047, 961),
        (2, 12, 24, 12),  # so does what is no square
        (3, 1024, 1024, 324),  # 341 is no square
        (1, 4096, 4000, 1024),  # never more than 32 x 32
        (5, 64, 5, 1),
    ],
)
def test_a_budget_is_shared(pictures: int, cells: int, most: int, tokens: int) -> None:
    assert tokens_per_picture(pictures, spec(cells, most=most)) == tokens


@given(pictures=st.integers(1, 40), cells=st.integers(1, 32).map(lambda n: n * n), most=st.integers(1, 3000))
def test_a_budget_is_kept_and_used(pictures: int, cells: int, most: int) -> None:
    if pictures > most:
        with pytest.raises(InputError, match="pictures at once"):
            tokens_per_picture(pictures, spec(cells, most=most))
        return
    tokens = tokens_per_picture(pictures, spec(cells, most=most))
    assert 1 <= tokens <= cells and pictures * tokens <= most
    next_square = (math.isqrt(tokens) + 1) ** 2
    assert tokens == cells or pictures * next_square > most


def test_as_many_as_there_are_stay_as_they_are() -> None:
    features = numbered(2, 9)
    assert (pack(features, spec(9, most=18)) == features.reshape(1, 18, 3)).all()
    assert (pack(features, spec(9, tokens=9)) == features.reshape(1, 18, 3)).all()


@pytest.mark.parametrize(("side", "small"), [(8, 5), (8, 7), (32, 18), (6, 1), (4, 2)])
def test_pictures_are_averaged_as_torch_does(side: int, small: int) -> None:
    features = np.random.default_rng(side).standard_normal((2, side * side, 3)).astype(np.float32)
    found = pack(features, spec(side * side, tokens=small * small))
    wanted = [averaged(picture.reshape(side, side, 3), small).reshape(-1, 3) for picture in features]
    assert found.dtype == np.float32
    assert np.abs(found[0] - np.concatenate(wanted)).max() < 1e-6


@given(side=st.integers(1, 40), data=st.data())
def test_pooling_covers_every_cell_and_keeps_the_mean(side: int, data: st.DataObject) -> None:
    matrix = pooling_matrix(data.draw(st.integers(1, side)), side)
    assert (matrix.sum(0) > 0).all()
    assert np.allclose(matrix.sum(1), 1)


@given(
    pictures=st.integers(1, 4),
    side=st.integers(1, 6),
    tokens=st.integers(0, 60),
    chunks=st.integers(1, 7),
)
def test_zeros_go_in_front_and_nothing_is_lost(pictures: int, side: int, tokens: int, chunks: int) -> None:
    """With at least as many tokens as cells, the features end the sequence, whole and in order."""
    cells = side * side
    features = numbered(pictures, cells)
    packed = pack(features, spec(cells, tokens=cells + tokens, chunks=chunks))
    length = pictures * (cells + tokens)
    assert packed.shape == (chunks, -(-length // chunks), 3)
    flat = packed.reshape(-1, 3)
    start = len(flat) - pictures * cells
    assert not flat[:start].any()
    assert (flat[start:] == features.reshape(-1, 3)).all()


def test_chunks_follow_each_other() -> None:
    packed = pack(numbered(1, 25, 1), spec(25, tokens=25, chunks=2))
    assert packed[0, :, 0].tolist() == [0, *range(1, 13)]
    assert packed[1, :, 0].tolist() == [*range(13, 26)]


@pytest.mark.parametrize("shape", [(0, 9, 3), (1, 8, 3), (9, 3), (1, 3, 3, 3)])
def test_features_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="image features of shape"):
        pack(np.zeros(shape, np.float32), spec(9, tokens=9))


@pytest.mark.parametrize(("most", "tokens"), [(None, None), (9, 9)])
def test_exactly_one_way_to_choose(most: int | None, tokens: int | None) -> None:
    with pytest.raises(SchemaError, match="exactly one"):
        pack(numbered(1, 9), spec(9, most=most, tokens=tokens))


@pytest.mark.parametrize(("cells", "tokens"), [(9, 5), (12, 4)])
def test_averaging_needs_squares(cells: int, tokens: int) -> None:
    with pytest.raises(SchemaError, match="two square numbers"):
        pack(numbered(1, cells), spec(cells, tokens=tokens))
