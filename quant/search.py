"""The smallest bundle within a stated loss: which matrix can be kept in how few bits.

Every matrix is rounded by itself, in every format, and the error of the logits noted (`quant.probe`). Errors of
different matrices are nearly independent, so their squares add up. From the smallest format everywhere, the matrix
that gains most per byte goes up one format until the sum is within the loss; what all of them do together is then
measured, and where the sum was too hopeful the search goes on with a smaller one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from quant.graph import Rounding
from quant.probe import Probe
from quant.recipe import PATHS, Recipe, Rule
from quant.weights import FORMATS
from runtime.errors import ConfigError

LADDER = ("int4-b32", "int4-b16", "int8-b32", "float32")  # by size
ATTEMPTS = 6
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Found:
    """What a search ended with."""

    recipe: Recipe
    loss: float  # relative error of the logits, through the weights alone
    bytes: int  # of the matrices in question
    alone: dict[str, dict[str, float]]  # matrix -> format -> error of the logits where nothing else is rounded


def search(
    probe: Probe,
    loss: float,
    rounding: Rounding,
    *,
    progress: Progress = lambda stage, done, total: None,
) -> Found:
    """Find the smallest formats whose weights together cost at most `loss`.

    Args:
        probe: a float model.
        loss: relative error of the logits, e.g. 0.05.
        rounding: how a matrix is rounded.
        progress: called with (stage, matrices done, matrices).

    Raises:
        ConfigError: a loss that is not positive.
    """
    if not loss > 0:
        raise ConfigError(f"a loss of {loss}", wanted="a relative error of the logits above 0, such as 0.05")
    sizes = {name: {fmt: _bytes(weight.shape, fmt) for fmt in LADDER} for name, weight in probe.weights.items()}
    alone: dict[str, dict[str, float]] = {}
    for done, name in enumerate(probe.weights):
        alone[name] = {"float32": 0.0}
        for fmt in LADDER[:-1]:
            alone[name][fmt] = probe.error({name: probe.rounded(name, FORMATS[fmt], rounding)})
        progress("round each matrix alone", done + 1, len(probe.weights))
    allowed, measured = loss, math.inf
    chosen: dict[str, str] = {}
    for attempt in range(ATTEMPTS):
        progress("measure them together", attempt, ATTEMPTS)
        chosen = smallest(alone, sizes, allowed)
        measured = probe.error(
            {n: probe.rounded(n, FORMATS[fmt], rounding) for n, fmt in chosen.items() if fmt in FORMATS}
        )
        if measured <= loss:
            break
        allowed *= 0.95 * loss / measured
    progress("measure them together", ATTEMPTS, ATTEMPTS)
    if measured > loss:  # nothing rounded loses nothing
        chosen, measured = dict.fromkeys(sizes, "float32"), 0.0
    return Found(as_recipe(chosen, alone), measured, sum(sizes[name][fmt] for name, fmt in chosen.items()), alone)


def smallest(alone: dict[str, dict[str, float]], sizes: dict[str, dict[str, int]], loss: float) -> dict[str, str]:
    """Return a format for each matrix, so that the root of the sum of squared errors is at most `loss`."""
    chosen = dict.fromkeys(alone, LADDER[0])

    def total() -> float:
        return sum(alone[name][fmt] ** 2 for name, fmt in chosen.items())

    while total() > loss**2:
        steps = [
            ((alone[name][fmt] ** 2 - alone[name][up] ** 2) / (sizes[name][up] - sizes[name][fmt]), name, up)
            for name, fmt in chosen.items()
            for up in LADDER[LADDER.index(fmt) + 1 :]
        ]
        _, name, up = max(steps)
        chosen[name] = up
    return chosen


def as_recipe(chosen: dict[str, str], alone: dict[str, dict[str, float]]) -> Recipe:
    """Return a recipe of one rule per matrix; it is called by the precision whose limits hold for it."""
    name = "int4" if any(fmt.startswith("int4") for fmt in chosen.values()) else "int8"
    rules = (
        Rule(matrix, fmt, f"alone it costs {100 * alone[matrix][fmt]:.2g} % of the logits")
        for matrix, fmt in chosen.items()
    )
    return Recipe(name, (*rules, *PATHS), "float16")


def _bytes(shape: tuple[int, ...], fmt: str) -> int:
    k, n = shape
    if fmt == "float32":
        return 4 * k * n
    return sum(int(np.prod(part)) * (4 if i == 1 else 1) for i, part in enumerate(FORMATS[fmt].shapes(k, n)))
