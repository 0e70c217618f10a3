"""From logits to the next token: options, penalties, and the official top-p sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime.errors import ConfigError, StateError

NUCLEUS_GUESS = 512  # how many candidates are sorted before all are: a confident model needs few


@dataclass(frozen=True)
class GenerateOptions:
    """How an answer is generated; the defaults are those of the official evaluation (greedy).

    The public demo uses temperature 0.2, top_p 0.3, frequency_penalty 1.0, penalty_decay 0.996.
    Raises `ConfigError` naming the value that is out of range.
    """

    max_tokens: int = 128
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 keeps all
    repetition_penalty: float = 1.0  # divides positive and multiplies negative logits of ids already emitted
    presence_penalty: float = 0.0  # subtracted once from ids already emitted
    frequency_penalty: float = 0.0  # subtracted as often as the id was emitted
    penalty_decay: float = 1.0  # multiplies those counts at every step
    seed: int | None = None  # None draws another answer each time
    stop: tuple[str, ...] = ()  # end the answer before any of these, besides the model's own end
    ignore_stop: bool = False  # always generate max_tokens (for measuring)

    def __post_init__(self) -> None:
        """Check every value."""
        _check("max_tokens", self.max_tokens, 1, math.inf, whole=True)
        _check("temperature", self.temperature, 0, 100)
        _check("top_p", self.top_p, 0, 1)
        _check("top_k", self.top_k, 0, math.inf, whole=True)
        _check("repetition_penalty", self.repetition_penalty, 0.01, 100)
        _check("presence_penalty", self.presence_penalty, -100, 100)
        _check("frequency_penalty", self.frequency_penalty, -100, 100)
        _check("penalty_decay", self.penalty_decay, 0, 1)
        if self.seed is not None:
            _check("seed", self.seed, 0, math.inf, whole=True)
        if not isinstance(self.ignore_stop, bool):
            raise ConfigError(f"ignore_stop is {self.ignore_stop!r}", wanted="True or False")
        stop: object = self.stop
        if isinstance(stop, list):
            object.__setattr__(self, "stop", tuple(stop))
        elif not isinstance(stop, tuple):
            raise ConfigError(f"stop is {stop!r}", wanted="a tuple of strings", hint='stop=("###",)')
        if not all(isinstance(text, str) and text for text in self.stop):
            raise ConfigError(f"stop is {self.stop!r}", wanted="strings that are not empty")


class Sampler:
    """Picks the tokens of one answer; remembers which ids it has emitted."""

    def __init__(self, options: GenerateOptions, vocab_size: int, *, forbidden: Sequence[int] = ()) -> None:
        """Prepare for logits of `vocab_size`; `forbidden` ids (an image placeholder) are never picked."""
        self._options = options
        self._forbidden = np.array([i for i in forbidden if 0 <= i < vocab_size], np.int64)
        self._counts: dict[int, float] = {}
        self._random = np.random.default_rng(options.seed)
        self._scratch = np.empty(vocab_size, np.float32)

    def pick(self, logits: np.ndarray) -> int:
        """Return the next id for logits [V] float32, which are not modified.

        Order, as in the public demo: penalties, softmax, top_p, top_k, temperature, draw. Greedy takes the
        first of equal maxima.

        Raises:
            StateError: a logit is NaN or infinite, or their number is not `vocab_size`.
        """
        if logits.shape != self._scratch.shape or not np.isfinite(logits).all():
            found = "not finite" if logits.shape == self._scratch.shape else f"of shape {logits.shape}"
            raise StateError(
                f"the logits are {found}",
                wanted=f"{len(self._scratch)} finite numbers",
                hint="reset the session or restore an earlier snapshot",
            )
        np.copyto(self._scratch, logits)
        self._penalise(self._scratch)
        token = int(self._scratch.argmax()) if self._options.temperature == 0 else self._draw(self._scratch)
        for known in self._counts:
            self._counts[known] *= self._options.penalty_decay
        self._counts[token] = self._counts.get(token, 0.0) + 1.0
        return token

    def _penalise(self, logits: np.ndarray) -> None:
        options = self._options
        if self._counts:
            ids = np.fromiter(self._counts, np.int64, len(self._counts))
            counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            seen = logits[ids]
            if options.repetition_penalty != 1.0:
                seen = np.where(seen > 0, seen / options.repetition_penalty, seen * options.repetition_penalty)
            logits[ids] = seen - options.presence_penalty - counts * options.frequency_penalty
        logits[self._forbidden] = -np.inf

    def _draw(self, logits: np.ndarray) -> int:
        options = self._options
        logits -= logits.max()
        ids = None  # all
        if options.top_p < 1:
            weights = np.exp(logits)
            ids = np.flatnonzero(weights >= _nucleus_floor(weights, options.top_p))
            logits = logits[ids]
        if 0 < options.top_k < len(logits):
            largest = np.argpartition(logits, -options.top_k)[-options.top_k :]
            ids, logits = largest if ids is None else ids[largest], logits[largest]
        # Dividing the logits is raising the kept probabilities to 1 / temperature.
        cumulative = np.exp(logits / np.float32(options.temperature)).cumsum(dtype=np.float64)
        place = int(cumulative.searchsorted(self._random.random() * cumulative[-1], side="right"))
        place = min(place, len(cumulative) - 1)
        return place if ids is None else int(ids[place])


def _nucleus_floor(weights: np.ndarray, top_p: float) -> float:
    """Return the weight at which the descending cumulative sum first reaches `top_p` of the total."""
    goal = top_p * float(weights.sum(dtype=np.float64))
    for size in (min(NUCLEUS_GUESS, len(weights)), len(weights)):
        largest = np.sort(np.partition(weights, -size)[-size:])[::-1]
        reached = np.cumsum(largest, dtype=np.float64) >= goal
        if reached.any():
            return float(largest[reached.argmax()])
    return 0.0  # rounding: the sum of all stayed below the goal


def _check(name: str, value: float, low: float, high: float, *, whole: bool = False) -> None:
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        span = f"at least {low}" if high == math.inf else f"from {low} to {high}"
        raise ConfigError(f"{name} is {value!r}", wanted=f"{kind} {span}")
