"""Calibrated rounding: less error on inputs like those seen, in the same stored format."""

from __future__ import annotations

import numpy as np
import pytest

from quant.gptq import compensate
from quant.weights import FORMATS, dequantize, quantize
from runtime.errors import CheckpointError

RNG = np.random.default_rng


def inputs(rows: int, k: int, seed: int) -> np.ndarray:
    """Inputs as models have them: most of their variance in few directions."""
    rng = RNG(1)
    mixing = rng.standard_normal((k // 8, k)).astype(np.float32)
    noise = RNG(seed)
    return noise.standard_normal((rows, k // 8), np.float32) @ mixing + 0.3 * noise.standard_normal(
        (rows, k), np.float32
    )


def error(x: np.ndarray, found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(x @ found - x @ wanted) / np.linalg.norm(x @ wanted))


def blocks(x: np.ndarray, size: int) -> list[np.ndarray]:
    parts = [x[:, i : i + size] for i in range(0, x.shape[1], size)]
    return [part.T @ part for part in parts]


@pytest.mark.parametrize(("name", "gain"), [("int4-b32", 0.7), ("int8-b32", 0.7)])
def test_products_with_inputs_never_seen_err_less(name: str, gain: float) -> None:
    fmt, weight = FORMATS[name], RNG(0).standard_normal((256, 96), np.float32)
    seen, held = inputs(2000, 256, 2), inputs(500, 256, 3)
    plain = dequantize(quantize(weight, fmt), 256, fmt)
    ours = dequantize(compensate(weight, blocks(seen, 256), fmt), 256, fmt)
    assert error(held, ours, weight) < gain * error(held, plain, weight)
    assert error(np.eye(256, dtype=np.float32), ours, weight) > error(np.eye(256, dtype=np.float32), plain, weight)


@pytest.mark.parametrize("name", FORMATS)
def test_independent_inputs_leave_nothing_to_make_up_for(name: str) -> None:
    fmt, weight = FORMATS[name], RNG(4).standard_normal((256, 20), np.float32)
    for part, wanted in zip(
        compensate(weight, [np.eye(256, dtype=np.float32)], fmt), quantize(weight, fmt), strict=True
    ):
        np.testing.assert_allclose(part, wanted, rtol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("k", [128, 200, 331])
def test_the_layout_is_that_of_plain_rounding(name: str, k: int) -> None:
    fmt, weight, x = FORMATS[name], RNG(5).standard_normal((k, 33), np.float32), inputs(900, 336, 6)[:, :k]
    parts = compensate(weight, blocks(x, 128), fmt)
    assert [(part.shape, part.dtype) for part in parts] == [(p.shape, p.dtype) for p in quantize(weight, fmt)]
    step = np.repeat(parts[1].reshape(33, -1), fmt.block, 1)[:, :k].T
    moved = np.abs(dequantize(parts, k, fmt) - weight) / step
    assert np.median(moved) < 1  # errors are moved about, yet every weight stays near its own


def test_columns_are_independent_of_how_many_are_rounded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fmt, weight, moments = (
        FORMATS["int4-b32"],
        RNG(7).standard_normal((96, 50), np.float32),
        blocks(inputs(400, 96, 8), 96),
    )
    whole = compensate(weight, moments, fmt)
    monkeypatch.setattr("quant.gptq._COLUMNS", 7)
    again = compensate(weight, moments, fmt)
    assert (again[0] != whole[0]).mean() < 0.01  # sums in another order may turn a code that is on the edge
    np.testing.assert_allclose(again[1], whole[1], rtol=1e-3)


def test_inputs_that_are_always_zero_are_no_trouble() -> None:
    fmt, weight, x = FORMATS["int4-b32"], RNG(9).standard_normal((128, 8), np.float32), inputs(300, 128, 10)
    x[:, 5] = 0
    for moments in (blocks(x, 128), [np.zeros((128, 128), np.float32)]):
        back = dequantize(compensate(weight, moments, fmt), 128, fmt)
        assert np.isfinite(back).all() and error(np.eye(128, dtype=np.float32), back, weight) < 0.3


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_what_is_not_finite_is_refused(value: float) -> None:
    weight = RNG(0).standard_normal((64, 6)).astype(np.float32)
    weight[40, 5] = value
    with pytest.raises(CheckpointError, match="NaN, Inf"):
        compensate(weight, [np.eye(64, dtype=np.float32)], FORMATS["int8-b32"])
