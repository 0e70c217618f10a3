"""Measuring in turns: every round measures all, so that what disturbs the machine disturbs all."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

REST_S = 0.05  # between turns: threads of the one before stop spinning

Turns = dict[str, list[float]]


def take_turns(calls: Mapping[str, Callable[[], float]], rounds: int) -> Turns:
    """Call everything once to warm up, then `rounds` times in turns; return what the calls returned, by name."""
    found: Turns = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            if sys.stderr.isatty():
                print(f"\rround {number} of {rounds}: {name:<40}", end="", file=sys.stderr, flush=True)
            time.sleep(REST_S)
            value = call()
            if number:
                found[name].append(value)
    if sys.stderr.isatty():
        print("\r" + " " * 64 + "\r", end="", file=sys.stderr, flush=True)
    return found


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median over rounds of ours / theirs."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
