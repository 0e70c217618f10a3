"""Who may use the engine when: calls of many sessions on one model, from any thread.

Sessions that decode at the same time, each in its own thread, share steps: their next tokens go through the graph as
one batch, which reads the weights once. Whoever completes a batch runs it, in its own thread, for all of them; there
is no thread of ours. A thread that has just been given logits will most likely ask for another step as soon as it has
picked a token, so a batch waits for those threads, for a bounded short time. A caller who is alone waits for nobody.

Everything else (segments of prompts, pictures) takes turns with the steps: after each, those who decode have a step.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from runtime.engine import Embeddings, Encoded, Engine, Tokens
from runtime.errors import ConfigError, StateError
from runtime.lanes import Lanes
from runtime.state import State

MAX_BATCH = 8
PATIENCE = 0.25  # of the last step's time: how long a batch waits for those who will probably join


@dataclass(eq=False)
class _Call:
    """One session's wish for a step."""

    row: np.ndarray  # [1, C] float32
    state: State
    ready: threading.Condition
    thread: int = field(default_factory=threading.get_ident)
    logits: np.ndarray | None = None
    error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self.logits is not None or self.error is not None


class Scheduler:
    """Runs the engine for any number of sessions. Thread-safe; a state is for one call at a time.

    Memory, beyond the sessions' own states: while several decode together, one more state and one row of logits for
    each, at most `max_batch` of them; a prompt adds the activations of one segment, whoever feeds it.
    """

    def __init__(self, engine: Engine, *, max_batch: int = MAX_BATCH) -> None:
        """Take over an engine; nobody else may use it from now on, but under its lock.

        Args:
            engine: a loaded model.
            max_batch: most sessions that share a step. 1 turns sharing off.

        Raises:
            ConfigError: `max_batch` is not a whole number of at least 1.
        """
        if type(max_batch) is not int or max_batch < 1:
            raise ConfigError(f"max_batch is {max_batch!r}", wanted="a whole number, 1 or more")
        self._engine, self.max_batch = engine, max_batch
        self.manifest = engine.manifest
        self._lanes = Lanes(engine)
        self._mutex = threading.Lock()  # over all below; never held while the engine runs
        self._busy = False
        self._calls: deque[_Call] = deque()  # steps waiting, in order of arrival
        self._turns: deque[threading.Condition] = deque()  # everything else waiting
        self._step_next = False  # the last turn was no step: if steps wait, one is next
        self._expected: set[int] = set()  # threads that were given logits and have not come back yet
        self._since = 0.0  # when the waiting steps could have begun
        self._step_s = 0.0  # how long a step takes

    @property
    def nbytes(self) -> int:
        """Bytes held for shared steps at this moment."""
        return self._lanes.nbytes

    def new_state(self) -> State:
        """Return a state before the first token."""
        return self._engine.new_state()

    def embed(self, tokens: Tokens) -> Embeddings:
        """`Engine.embed`."""
        return self._engine.embed(tokens)

    def zero_embeddings(self, count: int) -> Embeddings:
        """`Engine.zero_embeddings`."""
        return self._engine.zero_embeddings(count)

    def encode(self, views: Mapping[str, np.ndarray]) -> Encoded:
        """`Engine.encode_with_features`, of the pictures of one session."""
        with self._turn():
            return self._engine.encode_with_features(views)

    def context(self, features: np.ndarray) -> dict[str, np.ndarray]:
        """`Engine.context`."""
        with self._turn():
            return self._engine.context(features)

    def advance(self, x: Tokens | Embeddings, state: State, image: tuple[int, int] | None = None) -> np.ndarray:
        """`Engine.advance`; the logits [V] are the caller's own.

        A single token may go through the graph together with other sessions' tokens. What it gives is the same: to the
        bit on the native step (`tests/native/test_step.py`) and with RWKV-7 (`tests/test_shared_steps.py`), up to the
        order of sums with RWKV-6 on onnxruntime (`tests/test_families.py`).
        """
        segments = self._engine.cut(x, image)
        if len(segments) == 1 and len(segments[0][0]) == 1 and segments[0][1] is None:
            return self._decode(np.asarray(segments[0][0], np.float32), state)
        for rows, span in segments:
            with self._turn():
                logits = self._engine.advance(rows, state, span).copy()
        return logits

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Hold the engine for something that is not a shared step, when it is its turn."""
        with self._mutex:
            self._expected.discard(threading.get_ident())
            ticket = threading.Condition(self._mutex)
            self._turns.append(ticket)
            try:
                while self._busy or self._turns[0] is not ticket or (self._step_next and self._calls):
                    ticket.wait()
            except BaseException:  # Ctrl-C: nobody waits behind a thread that has gone
                self._turns.remove(ticket)
                self._pass_on()
                raise
            self._turns.popleft()
            self._busy = True
        try:
            with self._engine.lock:
                yield
        finally:
            with self._mutex:
                self._busy, self._step_next = False, True
                self._since = time.perf_counter()
                self._pass_on()

    def _decode(self, row: np.ndarray, state: State) -> np.ndarray:
        """Feed one token, with whoever else wants a step."""
        call = _Call(row, state, threading.Condition(self._mutex))
        with self._mutex:
            self._expected.discard(call.thread)
            if not self._calls:
                self._since = time.perf_counter()
            self._calls.append(call)
            try:
                while not call.done:
                    wait = self._wait(call)
                    if wait is None or wait > 0:
                        call.ready.wait(wait)
                    else:
                        self._lead()
            except BaseException:
                if call in self._calls:
                    self._calls.remove(call)
                self._pass_on()
                raise
        if call.error is not None:
            raise call.error
        assert call.logits is not None
        return call.logits

    def _wait(self, call: _Call) -> float | None:
        """Seconds until this thread should look again, None until it is woken, 0 to run the waiting steps now."""
        if self._busy or (self._turns and not self._step_next):
            return None
        if len(self._calls) >= self.max_batch or not self._expected:
            return 0.0
        left = self._since + PATIENCE * self._step_s - time.perf_counter()
        if left <= 0:
            self._expected.clear()  # not expected again before their next step: slow readers hold nobody up
            return 0.0
        return left if call is self._calls[0] else None

    def _lead(self) -> None:
        """Run the oldest waiting steps. Called, and returns, with the mutex held."""
        calls = [self._calls.popleft() for _ in range(min(len(self._calls), self.max_batch))]
        self._busy = True
        self._mutex.release()
        start = time.perf_counter()
        try:
            with self._engine.lock:
                self._run(calls)
        finally:
            self._mutex.acquire()
            now = time.perf_counter()
            self._busy, self._step_next, self._since, self._step_s = False, False, now, now - start
            for call in calls:
                if not call.done:  # Ctrl-C reached the thread that ran the step
                    call.error = StateError("the step was interrupted", hint="reset() the session, or restore() it")
                self._expected.add(call.thread)
                call.ready.notify()
            self._pass_on()

    def _run(self, calls: list[_Call]) -> None:
        """Give every call its logits, or the error that it alone has."""
        if len(calls) > 1:
            try:
                found = self._lanes.step([call.row for call in calls], [call.state for call in calls])
            except Exception:  # no state has moved: whose fault it is shows when each runs alone
                pass
            else:
                for call, logits in zip(calls, found, strict=True):
                    call.logits = logits
                return
        for call in calls:
            try:
                call.logits = self._engine.advance(call.row, call.state).copy()
            except Exception as error:
                call.error = error

    def _pass_on(self) -> None:
        """Wake whoever is next. With the mutex held."""
        if self._busy:
            return
        if self._turns and not (self._step_next and self._calls):
            self._turns[0].notify()
        elif self._calls:
            self._calls[0].ready.notify()
