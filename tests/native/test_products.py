"""Every weight format on every instruction set that this machine runs, against float64."""

from __future__ import annotations

import numpy as np
import pytest

from quant.weights import FORMATS
from runtime.native.library import ROWS, TILES, instruction_sets
from runtime.native.step import unavailable
from tests.native.products import activations, store

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=f"{unavailable()}: pip install -e . with a C++ compiler")
ISAS = () if unavailable() else instruction_sets()
FLOATS = ("float32", "float16")
SHAPES = ((64, 64), (100, 37), (300, 200), (777, 256))  # inputs that fill no block, outputs that fill no tile
ROWS_TRIED = (1, 2, 3, 4, 5, 6, 7, 8, 9, 64)
TOLERANCE = {"float": 2e-6, "int": 1e-4}  # of the largest output: activations are rounded to 16 bits, block by block


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", [TILES, ROWS], ids=["tiles", "rows"])
@pytest.mark.parametrize("name", [*FLOATS, *FORMATS])
def test_products(name: str, layout: int, isa: str) -> None:
    rng = np.random.default_rng(3)
    for k, n in SHAPES:
        matrix = store(rng.standard_normal((k, n)).astype(np.float32), name)
        x = activations(rng, max(ROWS_TRIED), k)
        whole, _ = matrix.multiply(x, isa, layout)
        wanted = x.astype(np.float64) @ matrix.exact
        error = np.abs(whole - wanted).max() / np.abs(wanted).max()
        assert error < TOLERANCE[name.rstrip("0123456789-b")], f"{k} x {n}"
        for rows in ROWS_TRIED:
            few, _ = matrix.multiply(x[:rows], isa, layout)
            np.testing.assert_array_equal(few, whole[:rows], err_msg=f"{k} x {n}: {rows} rows are not those of 64")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["float32", "float16", "int8-b32", "int4-b32", "int4-b128"])
def test_zeros_are_not_read_and_change_nothing(name: str, isa: str) -> None:
    """With nine rows or more, every weight is read: the results have the same bits."""
    rng = np.random.default_rng(5)
    matrix = store(rng.standard_normal((512, 256)).astype(np.float32), name)
    sparse = activations(rng, 1, 512, zeros=0.8)
    found, read = matrix.multiply(sparse, isa, ROWS)
    share = np.count_nonzero(sparse) / sparse.size
    scales = 512 // matrix.block * 256 * (3 if matrix.format == "int4" else 2) if matrix.block else 0
    assert share < 0.3
    assert read <= matrix.parts[0].nbytes * share + scales  # of a block with anything in it, scales and zero points
    wanted, everything = matrix.multiply(np.repeat(sparse, 9, 0), isa, ROWS)
    assert everything >= matrix.parts[0].nbytes + scales
    np.testing.assert_array_equal(found[0], wanted[0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", [TILES, ROWS], ids=["tiles", "rows"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["float32", "int8-b32", "int4-b32"])
def test_what_is_not_finite_is_not_hidden(name: str, bad: float, layout: int, isa: str) -> None:
    rng = np.random.default_rng(7)
    matrix = store(rng.standard_normal((256, 64)).astype(np.float32), name)
    for rows in (2, 12):
        x = activations(rng, rows, 256)
        x[1, 77] = bad
        out, _ = matrix.multiply(x, isa, layout)
        assert np.isfinite(out[0]).all()
        assert not np.isfinite(out[1]).any()


@pytest.mark.parametrize("isa", ISAS)
def test_extremes(isa: str) -> None:
    """Largest codes times largest activations in the longest block do not overflow; tiny ones do not divide by 0."""
    weight = np.where(np.arange(256)[:, None] % 2, 1, -1) * np.ones((256, 64), np.float32)
    for name in ("int8-b128", "int4-b128"):
        matrix = store(weight, name)
        for size in (1e30, 1e-20, 1e-38, 0.0):
            x = np.where(np.arange(256) % 2, size, -size)[None].astype(np.float32)
            out, _ = matrix.multiply(x, isa, TILES)
            np.testing.assert_allclose(out, x.astype(np.float64) @ matrix.exact, rtol=1e-4, atol=1e-28)


def test_all_sets_agree() -> None:
    rng = np.random.default_rng(9)
    matrix = store(rng.standard_normal((512, 96)).astype(np.float32), "int8-b32")
    x = activations(rng, 5, 512)
    first = matrix.multiply(x, ISAS[0], TILES)[0]
    for isa in ISAS[1:]:
        np.testing.assert_allclose(matrix.multiply(x, isa, TILES)[0], first, rtol=2e-5, atol=1e-3)
