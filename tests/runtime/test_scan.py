"""Reading orders as positions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import InputError
from runtime.scan import scan_positions
from runtime.spec import ScanOrder

ALL: tuple[ScanOrder, ...] = ("natural", "reversed", "transposed", "transposed_reversed")


def test_a_picture_of_six_by_hand() -> None:
    found = scan_positions(("natural", "reversed"), 9, 2, 8)
    assert found.dtype == np.int64
    assert found.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 7, 6, 5, 4, 3, 2, 8]]


def test_columns_of_a_square_by_hand() -> None:
    found = scan_positions(("transposed", "transposed_reversed"), 10, 1, 10)
    assert found.tolist() == [[0, 1, 4, 7, 2, 5, 8, 3, 6, 9], [0, 9, 6, 3, 8, 5, 2, 7, 4, 1]]


@given(before=st.integers(0, 9), side=st.integers(0, 12), after=st.integers(0, 9))
def test_every_order_is_a_permutation_of_the_picture(before: int, side: int, after: int) -> None:
    stop = before + side * side
    rows = scan_positions(ALL, stop + after, before, stop)
    natural = np.arange(stop + after)
    assert rows.shape == (4, stop + after)
    assert (rows[0] == natural).all()
    for row in rows:
        assert (np.sort(row) == natural).all()
        assert (row[:before] == natural[:before]).all() and (row[stop:] == natural[stop:]).all()
    assert (rows[1][before:stop] == rows[0][before:stop][::-1]).all()
    assert (rows[3][before:stop] == rows[2][before:stop][::-1]).all()
    assert (rows[0][before:stop].reshape(side, side) == rows[2][before:stop].reshape(side, side).T).all()


@given(cells=st.integers(0, 40))
def test_one_token_or_no_picture_has_one_order(cells: int) -> None:
    assert scan_positions(ALL, 1, 0, 1).tolist() == [[0]] * 4
    assert (scan_positions(ALL, cells, 0, 0) == np.arange(cells)).all()


@pytest.mark.parametrize("order", ["transposed", "transposed_reversed"])
def test_columns_need_a_square(order: ScanOrder) -> None:
    with pytest.raises(InputError, match="6 tokens cannot be read column by column"):
        scan_positions((order,), 6, 0, 6)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 7)])
def test_the_picture_is_inside_the_segment(start: int, stop: int) -> None:
    with pytest.raises(InputError, match="a picture at"):
        scan_positions(("reversed",), 6, start, stop)
