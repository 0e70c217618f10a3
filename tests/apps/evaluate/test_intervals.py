"""Intervals and differences."""

from __future__ import annotations

import numpy as np
import pytest

from apps.evaluate.intervals import difference, figures, mcnemar, wilson
from apps.evaluate.judges import EachAlone, Verdict

JUDGE = EachAlone(lambda answer, truth: float(answer == truth))


def verdicts(*groups: list[float]) -> list[Verdict]:
    return [Verdict(list(scores), {"accuracy": sum(scores), "asked": len(scores)}) for scores in groups]


@pytest.mark.parametrize(
    ("right", "asked", "low", "high"),
    [(0, 0, 0, 1), (5, 10, 0.237, 0.763), (100, 100, 0.963, 1), (0, 10, 0, 0.278)],
)
def test_wilson(right: int, asked: int, low: float, high: float) -> None:
    assert wilson(right, asked) == pytest.approx((low, high), abs=1e-3)


@pytest.mark.parametrize(
    ("lost", "won", "p"),
    # Twice the tail of a fair coin: 2 * 1/2^5, 2 * (1 + 6)/2^6, never more than 1.
    [(0, 5, 2 / 32), (1, 5, 2 * 7 / 64), (3, 3, 1.0), (0, 0, 1.0)],
)
def test_mcnemar(lost: int, won: int, p: float) -> None:
    assert mcnemar(lost, won) == mcnemar(won, lost) == pytest.approx(p)


def test_mcnemar_of_many_answers() -> None:
    assert 0 < mcnemar(40_000, 41_000) < 0.001


def test_an_interval_covers_and_does_not_change() -> None:
    rng = np.random.default_rng(1)
    groups = verdicts(*[[float(x)] for x in rng.random(400) < 0.8])
    found, again = figures(JUDGE, groups)["accuracy"], figures(JUDGE, groups)["accuracy"]
    assert found == again
    low, high = wilson(found.value * 400, 400)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)


def test_questions_about_one_picture_make_it_wider() -> None:
    rng = np.random.default_rng(2)
    right = rng.random(100) < 0.5
    together = figures(JUDGE, verdicts(*[[float(x)] * 10 for x in right]))["accuracy"]
    apart = figures(JUDGE, verdicts(*[[float(x)] for x in right for _ in range(10)]))["accuracy"]
    assert together.value == apart.value
    assert together.high - together.low > 2.5 * (apart.high - apart.low)  # sqrt(10) in theory


def test_all_right_is_not_certain() -> None:
    found = figures(JUDGE, verdicts(*[[1.0]] * 50))["accuracy"]
    assert found.value == found.high == 1 and found.low == pytest.approx(0.929, abs=1e-3)


def test_a_difference_is_paired() -> None:
    rng = np.random.default_rng(3)
    first = (rng.random(1000) < 0.6).astype(float)
    second = first.copy()
    second[np.flatnonzero(first == 0)[:20]] = 1  # 20 answers mended, none broken
    found = difference(JUDGE, verdicts(*[[x] for x in first]), verdicts(*[[x] for x in second]))
    assert found.value == pytest.approx(0.02) and (found.only_first, found.only_second) == (0, 20)
    assert 0.01 < found.low < 0.02 < found.high < 0.03  # unpaired, it would reach 0.04 to either side
    assert found.p == pytest.approx(2 / 2**20)


def test_soft_scores_have_no_mcnemar() -> None:
    found = difference(JUDGE, verdicts([0.3], [1.0]), verdicts([0.6], [1.0]))
    assert found.p is None and found.value == pytest.approx(0.15)
