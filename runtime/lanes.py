"""One step of the graph for several sequences: their states lie side by side in one batch, each in its lane.

A state stays in its lane from step to step, so that a step copies nothing. Its own buffers are then out of date, and
whoever reads them first (`State.inputs`) brings the values home. States are copied only where the members of a step
change: those who leave go home, those who join take their place.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence

import numpy as np

from runtime.engine import Engine
from runtime.state import State


class Lanes:
    """The batch of one engine. `step` needs the engine's lock; `bring_home` does not, and comes from any thread."""

    def __init__(self, engine: Engine) -> None:
        """Hold nothing until the first step."""
        self._engine = engine
        self._lock = threading.Lock()
        self._batch: State | None = None
        self._seats: list[weakref.ref[State] | None] = []  # by lane; the state of a dropped session is not kept alive

    @property
    def nbytes(self) -> int:
        """Bytes held: nothing when no state is here, otherwise one state for each member of the last step."""
        return self._batch.nbytes if self._batch else 0

    def step(self, rows: Sequence[np.ndarray], states: Sequence[State]) -> list[np.ndarray]:
        """Feed one token to each of several sequences.

        Args:
            rows: embeddings [1, C] float32 with ln0 applied, one for each state.
            states: different ones, of one sequence each; all are advanced, or none if the step fails.

        Returns:
            Their logits [V] float32, the caller's own, in the order of `states`.
        """
        with self._lock:
            batch, lanes = self._seat(states)
            x = np.empty((len(rows), rows[0].shape[1]), np.float32)
            for row, lane in zip(rows, lanes, strict=True):
                x[lane] = row[0]
            logits = self._engine.step(x, batch)
            return [logits[lane].copy() for lane in lanes]

    def bring_home(self, state: State) -> None:
        """Copy a state's values back into its own buffers, and free its lane."""
        with self._lock:
            if state.away is self:
                self._leave(self._occupants().index(state))
                if not any(self._seats):
                    self._batch, self._seats = None, []

    def _occupants(self) -> list[State | None]:
        return [seat() if seat is not None else None for seat in self._seats]

    def _seat(self, states: Sequence[State]) -> tuple[State, list[int]]:
        """Make the batch hold exactly `states`; return it, and the lane of each."""
        members = set(map(id, states))
        for lane, state in enumerate(self._occupants()):
            if state is None:
                self._seats[lane] = None
            elif id(state) not in members or len(states) != len(self._seats):
                self._leave(lane)
        if self._batch is None or len(states) != len(self._seats):
            self._batch = None  # before the new one is made: never two at a time
            self._batch, self._seats = self._engine.new_state(len(states)), [None] * len(states)
        free = [lane for lane, seat in enumerate(self._seats) if seat is None]
        for state in states:
            if state.away is not self:
                lane = free.pop()
                self._batch.take_in(lane, state)
                self._seats[lane], state.away = weakref.ref(state), self
        where = {id(state): lane for lane, state in enumerate(self._occupants())}
        return self._batch, [where[id(state)] for state in states]

    def _leave(self, lane: int) -> None:
        seat = self._seats[lane]
        state = seat() if seat is not None else None
        if state is not None and self._batch is not None:
            self._batch.give_back(lane, state)
            state.away = None
        self._seats[lane] = None
