"""How sure a figure is: 95 % intervals, and paired differences between two bundles.

Questions about one picture stand or fall together, so whole groups are drawn again (a cluster bootstrap; Efron and
Tibshirani, An Introduction to the Bootstrap, chapter 6). A difference draws the same groups for both bundles, and
where answers are either right or wrong, McNemar's exact test says how often chance alone would part them as far.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from apps.evaluate.judges import Judge, Verdict

ROUNDS = 2000
AT_ONCE = 2_000_000  # weights in memory
SEED = 20_240_613


@dataclass(frozen=True)
class Figure:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """How the second bundle's headline differs from the first's, and of how many answers each alone was right."""

    value: float
    low: float
    high: float
    only_first: int
    only_second: int
    p: float | None  # of McNemar's test; None where answers are worth something between 0 and 1


def wilson(right: float, asked: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a proportion."""
    if not asked:
        return 0.0, 1.0
    z, p = 1.96, right / asked
    middle = p + z * z / (2 * asked)
    reach = z * math.sqrt(p * (1 - p) / asked + z * z / (4 * asked * asked))
    scale = 1 + z * z / asked
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


def figures(judge: Judge, verdicts: Sequence[Verdict]) -> dict[str, Figure]:
    """Return every figure of a judge with its interval; a proportion that every round agrees on gets Wilson's."""
    names, table = _table(verdicts)
    once = _figures(judge, names, table.sum(0)[None])
    rounds: dict[str, list[np.ndarray]] = {name: [] for name in once}
    for weights in _draws(len(table)):
        for name, values in _figures(judge, names, weights @ table).items():
            rounds[name].append(values)
    found = {}
    for name, value in once.items():
        low, high = np.quantile(np.concatenate(rounds[name]), (0.025, 0.975))
        one = float(value[0])
        if low == high and one in (0.0, 1.0):  # nothing to draw from: only the number of groups says how sure it is
            low, high = wilson(one * len(table), len(table))
        found[name] = Figure(one, min(float(low), one), max(float(high), one))
    return found


def difference(judge: Judge, first: Sequence[Verdict], second: Sequence[Verdict]) -> Difference:
    """Compare two bundles on the same groups, in the same order."""
    (names, a), (others, b) = _table(first), _table(second)
    headline = judge.headline

    def gap(weights: np.ndarray) -> np.ndarray:
        now = _figures(judge, others, weights @ b)[headline]
        return now - _figures(judge, names, weights @ a)[headline]

    low, high = np.quantile(np.concatenate([gap(weights) for weights in _draws(len(a))]), (0.025, 0.975))
    value = float(gap(np.ones((1, len(a))))[0])
    pairs = [
        (x, y) for one, two in zip(first, second, strict=True) for x, y in zip(one.scores, two.scores, strict=True)
    ]
    lost, won = sum(x > y for x, y in pairs), sum(y > x for x, y in pairs)
    sharp = all(score in (0.0, 1.0) for pair in pairs for score in pair)
    return Difference(value, float(low), float(high), lost, won, mcnemar(lost, won) if sharp else None)


def mcnemar(lost: int, won: int) -> float:
    """Return the two-sided p of McNemar's exact test: a fair coin parting `lost` + `won` answers so far or farther."""
    count, few = lost + won, min(lost, won)
    if not count:
        return 1.0
    tail = sum(math.exp(_log_choose(count, k) - count * math.log(2)) for k in range(few + 1))
    return min(1.0, 2 * tail)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _table(verdicts: Sequence[Verdict]) -> tuple[list[str], np.ndarray]:
    """Names of the counts, and [groups, counts]."""
    names = sorted({name for verdict in verdicts for name in verdict.counts})
    return names, np.array([[v.counts.get(name, 0.0) for name in names] for v in verdicts], np.float64)


def _figures(judge: Judge, names: Sequence[str], sums: np.ndarray) -> dict[str, np.ndarray]:
    return judge.figures({name: sums[:, i] for i, name in enumerate(names)})


def _draws(groups: int) -> Iterator[np.ndarray]:
    """How often each group is drawn in each round, [rounds, groups], a part of the rounds at a time."""
    rng = np.random.default_rng(SEED)
    share = np.full(groups, 1 / groups)
    part = max(1, AT_ONCE // groups)
    for start in range(0, ROUNDS, part):
        yield rng.multinomial(groups, share, size=min(part, ROUNDS - start)).astype(np.float64)
