"""Block formats: error bounds, layouts, edge shapes, and what beats plain rounding by how much."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.weights import FORMATS, BlockFormat, dequantize, quantize
from runtime.errors import CheckpointError

RNG = np.random.default_rng


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2)))


def to_nearest(weight: np.ndarray, fmt: BlockFormat) -> np.ndarray:
    """Plain symmetric rounding, the largest weight of a block as its scale; K divides into blocks."""
    grouped = weight.T.reshape(weight.shape[1], -1, fmt.block)
    scale = np.abs(grouped).max(2, keepdims=True) / (fmt.middle - 1)
    return (np.rint(grouped / scale) * scale).reshape(weight.shape[::-1]).T


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25, deadline=None)
@given(
    k=st.integers(1, 200),
    n=st.integers(1, 20),
    scale=st.sampled_from([1e-20, 1e-6, 1.0, 1e4, 1e16]),
    seed=st.integers(0, 99),
)
def test_the_round_trip_is_close(name: str, k: int, n: int, scale: float, seed: int) -> None:
    fmt, weight = FORMATS[name], (RNG(seed).standard_normal((k, n)) * scale).astype(np.float32)
    parts = quantize(weight, fmt)
    assert tuple(part.shape for part in parts) == fmt.shapes(k, n)
    assert [part.dtype for part in parts] == [np.uint8, np.float32, np.uint8][: len(parts)]
    back = dequantize(parts, k, fmt)
    step = np.repeat(parts[1].reshape(n, -1), fmt.block, 1)[:, :k].T
    # 8 bits clip nothing; 4 bits clip up to three tenths of a range of 15 steps.
    assert (np.abs(back - weight) <= step * (0.5001 if fmt.bits == 8 else 5)).all()


@pytest.mark.parametrize("k", [64, 100])
@pytest.mark.parametrize("name", FORMATS)
def test_chunks_change_nothing(name: str, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fmt, weight = FORMATS[name], RNG(1).standard_normal((k, 37), np.float32)
    whole = quantize(weight, fmt)
    monkeypatch.setattr("quant.weights._CHUNK", 5 * k)
    for layout in (weight, np.asfortranarray(weight)):
        for part, wanted in zip(quantize(layout, fmt), whole, strict=True):
            np.testing.assert_array_equal(part, wanted)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("value", [0.0, 1e-38])
def test_nothing_stays_nothing(name: str, value: float) -> None:
    back = dequantize(quantize(np.full((70, 3), value, np.float32), FORMATS[name]), 70, FORMATS[name])
    assert (back == 0).all()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("value", [-3.0, 0.5])
def test_equal_weights_are_as_exact_as_a_scale(name: str, value: float) -> None:
    back = dequantize(quantize(np.full((70, 3), value, np.float32), FORMATS[name]), 70, FORMATS[name])
    np.testing.assert_allclose(back, value, rtol=2**-11)  # of which eleven bits count


def test_eight_bit_codes_are_symmetric_around_128() -> None:
    codes, _ = quantize(RNG(0).standard_normal((96, 5), np.float32), FORMATS["int8-b32"])
    assert codes.min() == 1 and codes.max() == 255


def test_four_bit_codes_lie_low_half_first() -> None:
    """Sixteen weights that sixteen codes can name exactly."""
    weight = (np.arange(16, dtype=np.float32) - 3)[:, None]
    codes, scales, zeros = quantize(weight, FORMATS["int4-b16"])
    np.testing.assert_array_equal(codes[0, 0], [low | low + 1 << 4 for low in range(0, 16, 2)])
    assert (scales[0], zeros[0]) == (1.0, 3)


def test_an_odd_number_of_zero_points_is_padded_by_column() -> None:
    fmt, weight = FORMATS["int4-b16"], RNG(0).uniform(0.5, 1, (48, 2)).astype(np.float32)
    weight[:, 1] *= -1
    *_, zeros = quantize(weight, fmt)
    np.testing.assert_array_equal(zeros, [0, 0, 0xFF, 0x0F])


@pytest.mark.parametrize(
    ("tails", "gain"), [("normal", 0.81), ("heavy", 0.75)], ids=["normal weights", "heavy-tailed weights"]
)
def test_the_search_beats_rounding_to_nearest(tails: str, gain: float) -> None:
    fmt, rng = FORMATS["int4-b32"], RNG(0)
    weight = rng.standard_normal((1024, 64)) if tails == "normal" else rng.standard_t(4, (1024, 64))
    weight = weight.astype(np.float32)
    ours = relative(dequantize(quantize(weight, fmt), 1024, fmt), weight)
    assert ours < gain * relative(to_nearest(weight, fmt), weight)


def test_no_scale_is_better_than_the_one_found_by_much() -> None:
    """Against a search of 200 scales and every zero point, block by block."""
    fmt, weight = FORMATS["int4-b32"], RNG(5).standard_normal((32, 24), np.float32)
    ours = relative(dequantize(quantize(weight, fmt), 32, fmt), weight)
    scales = (np.ptp(weight, axis=0) / 15 * np.linspace(0.5, 1.2, 200)[:, None])[:, None, :, None]
    zeros = np.arange(16)[:, None, None]
    values = (np.clip(np.rint(weight.T / scales) + zeros, 0, 15) - zeros) * scales
    squares = np.square(values - weight.T).sum(3).min((0, 1))
    assert ours < 1.02 * np.sqrt(squares.sum() / np.square(weight).sum())


@pytest.mark.parametrize("name", ["int8-b32", "int4-b32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_is_refused(name: str, value: float) -> None:
    weight = RNG(0).standard_normal((40, 6)).astype(np.float32)
    weight[39, 5] = value
    with pytest.raises(CheckpointError, match="NaN, Inf"):
        quantize(weight, FORMATS[name])
