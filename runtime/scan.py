"""The orders in which layers read a picture, as positions of the segment that is fed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from runtime.errors import InputError
from runtime.spec import ScanOrder


def scan_positions(orders: Sequence[ScanOrder], length: int, start: int, stop: int) -> np.ndarray:
    """Return the positions of a segment in each order, int64 [len(orders), length]: the step graph's input "scan".

    Everything outside [start, stop) keeps its place; inside, position j of a row is the j-th one read. "transposed"
    reads a square picture column by column; "transposed_reversed" does so from the last cell back to the first.

    Raises:
        InputError: [start, stop) is not inside the segment, or is no square picture and should be transposed.
    """
    if not 0 <= start <= stop <= length:
        raise InputError(f"a picture at [{start}, {stop}) of {length} positions", wanted=f"within [0, {length})")
    rows = np.tile(np.arange(length, dtype=np.int64), (len(orders), 1))
    for row, order in zip(rows, orders, strict=True):
        row[start:stop] = start + _order(order, stop - start)
    return rows


def _order(order: ScanOrder, cells: int) -> np.ndarray:
    """Return the cells [cells] of a row-major picture in an order."""
    read = np.arange(cells)
    if order in ("transposed", "transposed_reversed"):
        side = math.isqrt(cells)
        if side * side != cells:
            raise InputError(
                f"a picture of {cells} tokens cannot be read column by column",
                wanted="a square number of tokens",
                hint="set the option scan to 'bidirectional' and export again",
            )
        read = read.reshape(side, side).T.reshape(-1)
    return read[::-1] if order in ("reversed", "transposed_reversed") else read
