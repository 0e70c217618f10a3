"""The watchdog: a look at the state itself, before what went wrong in it reaches an answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from runtime.errors import ConfigError
from runtime.state import State


@dataclass(frozen=True)
class Watchdog:
    """How often a state is checked, and how large its values may be.

    A check reads the state once (13 MB for a 1.5 B model, about 1 ms). The values of a sound state are small (at most
    202 in 50 conversations of the demo model): shifts come out of a normalisation, and what the recurrence holds
    decays. The limit is far above that, so that it tells damage from a long day.

    Raises `ConfigError` for values out of range.
    """

    every: int = 64  # tokens of an answer between two checks; pictures and answers are checked at their end anyway
    limit: float = 1e6  # largest absolute value of any slot

    def __post_init__(self) -> None:
        """Check both."""
        if self.every < 1 or not self.limit > 0:
            raise ConfigError(f"a watchdog every {self.every} tokens, limit {self.limit}", wanted="both positive")

    def fault(self, state: State) -> str | None:
        """Tell what is wrong with a state; None if every value is finite and within the limit."""
        for name, buffer in state.inputs.items():
            array = buffer.read()
            if not array.size:
                continue
            with np.errstate(invalid="ignore"):
                sound = array.max() <= self.limit and array.min() >= -self.limit  # neither is true of NaN
            if not sound:
                return f"slot {name!r} {self._describe(array)}"
        return None

    def _describe(self, array: np.ndarray) -> str:
        with np.errstate(invalid="ignore"):
            bad = np.argwhere(~(np.abs(array) <= self.limit))
        first = tuple(map(int, bad[0]))
        return f"holds {len(bad)} values beyond {self.limit:g}, the first is {array[first]} at {list(first)}"
