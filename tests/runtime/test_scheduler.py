"""Many callers on one engine: who shares a step, who comes next, and what happens when something fails."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends.fake import FakeBackend
from runtime.bundle import Bundle
from runtime.engine import Engine
from runtime.errors import ConfigError, StateError
from runtime.lanes import Lanes
from runtime.scheduler import Scheduler
from tests.runtime.fake_bundle import write_fake_bundle
from tests.runtime.recording import RecordingEngine, RecordingState


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "it never happens"
        time.sleep(1e-4)


class Callers:
    """Threads that call one scheduler; the first holds the engine until all others wait."""

    def __init__(self, engine: RecordingEngine, max_batch: int = 8) -> None:
        self.engine, self.scheduler = engine, Scheduler(engine, max_batch=max_batch)  # type: ignore[arg-type]
        self.states: list[RecordingState] = []
        self.found: dict[int, Any] = {}
        self.threads: list[threading.Thread] = []

    def start(self, *calls: list[int]) -> None:
        """Start a thread for each list of ids, which it feeds in one call; all are waiting afterwards."""
        for ids in calls:
            index = len(self.threads)
            self.states.append(self.engine.new_state())
            self.threads.append(threading.Thread(target=self._call, args=(index, ids)))
            self.threads[-1].start()
            wait_until(lambda: self._begun() == len(self.threads))

    def join(self) -> None:
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive()

    def _begun(self) -> int:
        scheduler = self.scheduler
        return scheduler._busy + len(scheduler._calls) + len(scheduler._turns)

    def _call(self, index: int, ids: list[int]) -> None:
        try:
            self.found[index] = int(self.scheduler.advance(ids, self.states[index]).argmax())  # type: ignore[arg-type]
        except BaseException as error:
            self.found[index] = error


@pytest.fixture
def engine() -> RecordingEngine:
    return RecordingEngine()


def alone(ids: list[int]) -> int:
    engine = RecordingEngine()
    return int(engine.advance(ids, engine.new_state()).argmax())


def test_those_who_wait_share_a_step(engine: RecordingEngine) -> None:
    callers = Callers(engine)
    with engine.lock:
        callers.start(*[[i] for i in range(6)])
    callers.join()
    assert engine.log == [("feed", 1), ("step", 5)]  # the first was alone when it came
    assert [callers.found[i] for i in range(6)] == [alone([i]) for i in range(6)]
    assert [state.fed for state in callers.states] == [[i] for i in range(6)]


def test_a_batch_is_bounded_and_first_come_first_served(engine: RecordingEngine) -> None:
    callers = Callers(engine, max_batch=3)
    order: list[list[int]] = []
    step = engine.step
    engine.step = lambda rows, state: order.append(sorted(rows[:, 0].astype(int))) or step(rows, state)  # type: ignore[func-returns-value,method-assign]
    with engine.lock:
        callers.start(*[[i] for i in range(7)])
    callers.join()
    assert order == [[1, 2, 3], [4, 5, 6]]


def test_without_batches_everyone_runs_alone(engine: RecordingEngine) -> None:
    callers = Callers(engine, max_batch=1)
    with engine.lock:
        callers.start(*[[i] for i in range(4)])
    callers.join()
    assert engine.log == [("feed", 1)] * 4
    for bad in (0, -1, True, 2.0, "8"):
        with pytest.raises(ConfigError, match="max_batch"):
            Scheduler(engine, max_batch=bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("newcomers", [1, 3])
def test_after_every_segment_those_who_decode_have_a_step(engine: RecordingEngine, newcomers: int) -> None:
    engine.segment, steps, segments = 4, 8, 2
    callers, scheduler = Callers(engine), None
    scheduler = callers.scheduler
    decoding = threading.Semaphore(0)

    def decode(state: RecordingState) -> None:
        for token in range(steps):
            scheduler.advance([token], state)  # type: ignore[arg-type]
        decoding.release()

    def all_are_back() -> None:
        if engine.log[-1] == ("feed", 4):  # a segment takes long enough for everyone to come back
            wait_until(lambda: len(scheduler._calls) == 2 or decoding._value > 0)

    states = [engine.new_state() for _ in range(2)]
    threads = [threading.Thread(target=decode, args=(state,)) for state in states]
    engine.before_step = all_are_back
    with engine.lock:
        callers.start(*[[7] * 4 * segments] * newcomers)
        for thread in threads:
            thread.start()
        wait_until(lambda: len(scheduler._calls) == 2)
    callers.join()
    for thread in threads:
        thread.join(20)
    assert engine.log[: 4 * newcomers] == [("feed", 4), ("step", 2)] * segments * newcomers
    assert [state.fed for state in states] == [list(range(steps))] * 2
    assert all(callers.found[i] == alone([7] * 4 * segments) for i in range(newcomers))


def test_one_thread_in_turns_waits_for_nobody(engine: RecordingEngine) -> None:
    scheduler, states = engine.scheduler, [engine.new_state() for _ in range(3)]
    start = time.monotonic()
    for token in range(10):
        for state in states:
            scheduler._step_s = 1000.0  # waiting for another thread would take minutes
            scheduler.advance([token], state)  # type: ignore[arg-type]
    assert time.monotonic() - start < 60
    assert engine.log == [("feed", 1)] * 30
    assert scheduler.nbytes == 0


def test_who_does_not_come_back_is_waited_for_once(engine: RecordingEngine) -> None:
    callers = Callers(engine)
    with engine.lock:
        callers.start([1], [2])
    callers.join()
    scheduler, state = callers.scheduler, engine.new_state()
    assert callers.threads[1].ident in scheduler._expected
    scheduler._step_s = 0.2
    start = time.monotonic()
    scheduler.advance([3], state)  # type: ignore[arg-type]
    assert time.monotonic() - start >= 0.25 * 0.2
    for _ in range(20):
        scheduler._step_s = 1000.0
        scheduler.advance([3], state)  # type: ignore[arg-type]
    assert time.monotonic() - start < 60


def test_a_batch_that_fails_is_run_one_by_one(engine: RecordingEngine) -> None:
    callers = Callers(engine)

    def fail() -> None:
        if engine.log[-1][0] == "step":
            raise MemoryError("no room for a batch")

    engine.before_step = fail
    with engine.lock:
        callers.start(*[[i] for i in range(4)])
    callers.join()
    assert engine.log == [("feed", 1), ("step", 3), *[("feed", 1)] * 3]
    assert callers.found == {i: alone([i]) for i in range(4)}


def test_one_that_fails_fails_alone(engine: RecordingEngine) -> None:
    callers, advance, step = Callers(engine), engine.advance, engine.step

    def checked(run: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        def call(rows: np.ndarray, *rest: Any) -> np.ndarray:
            if (np.asarray(rows)[:, 0] == 2).any():
                raise RuntimeError("number 2")
            return run(rows, *rest)

        return call

    engine.advance, engine.step = checked(advance), checked(step)  # type: ignore[method-assign]
    with engine.lock:
        callers.start(*[[i] for i in range(4)])
    callers.join()
    assert isinstance(callers.found.pop(2), RuntimeError)
    assert callers.found == {i: alone([i]) for i in (0, 1, 3)}
    assert [state.fed for state in callers.states] == [[0], [1], [], [3]]


def test_an_interrupt_in_one_thread_leaves_nobody_waiting(engine: RecordingEngine) -> None:
    callers = Callers(engine)

    def interrupt() -> None:
        if engine.log[-1][0] == "step":
            raise KeyboardInterrupt

    engine.before_step = interrupt
    with engine.lock:
        callers.start(*[[i] for i in range(4)])
    callers.join()
    assert callers.found.pop(0) == alone([0])
    assert sorted(type(error).__name__ for error in callers.found.values()) == [
        "KeyboardInterrupt",
        *["StateError"] * 2,
    ]
    assert any(isinstance(error, StateError) and "interrupted" in str(error) for error in callers.found.values())
    engine.before_step = lambda: None
    assert callers.scheduler.advance([9], engine.new_state()).argmax() == alone([9])  # type: ignore[arg-type]


def test_a_turn_that_fails_is_over(engine: RecordingEngine) -> None:
    engine.fail_encode = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.scheduler.encode({"pixels": np.zeros((1, 3, 4, 4), np.float32)})
    assert engine.scheduler.advance([1, 2], engine.new_state()).argmax() == alone([1, 2])  # type: ignore[arg-type]


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(Bundle.open(write_fake_bundle(tmp_path / "bundle")), FakeBackend(), prefill_segment=16)
    yield engine
    engine.close()


def test_a_batched_step_is_many_single_ones(real: Engine) -> None:
    rows = real.embed([3, 200, 7])
    batch, singles = real.new_state(3), [real.new_state() for _ in range(3)]
    for _ in range(3):
        found = real.step(rows, batch).copy()
        wanted = [real.advance(row[None], state).copy() for row, state in zip(rows, singles, strict=True)]
        np.testing.assert_array_equal(found, wanted)
    for lane, state in enumerate(singles):
        np.testing.assert_array_equal(batch.array("att_shift")[:, lane], state.array("att_shift")[:, 0])


def test_lanes_hold_one_state_for_each_member_and_no_more(real: Engine) -> None:
    lanes, states, row = Lanes(real), [real.new_state() for _ in range(4)], real.embed([5])
    assert lanes.nbytes == 0
    lanes.step([row] * 4, states)
    assert lanes.nbytes == 4 * states[0].nbytes
    lanes.step([row] * 2, states[:2])
    assert lanes.nbytes == 2 * states[0].nbytes
    assert states[2].away is None
    states[0].snapshot()
    assert states[0].away is None
    dropped = weakref.ref(states.pop(1))
    gc.collect()
    assert dropped() is None
    lanes.step([row] * 2, states[1:])
    for state in states:
        state.zero()
    assert lanes.nbytes == 0


def test_an_unchanged_batch_neither_copies_nor_allocates(real: Engine) -> None:
    lanes, states, row = Lanes(real), [real.new_state() for _ in range(3)], real.embed([5])
    lanes.step([row] * 3, states)
    copied: list[object] = []
    for state in states:
        state.take_in = state.give_back = lambda *a: copied.append(a)  # type: ignore[method-assign]
    allocate = real.backend.allocate
    real.backend.allocate = lambda *a: copied.append(a) or allocate(*a)  # type: ignore[method-assign,func-returns-value]
    for turn in range(6):
        lanes.step([row] * 3, states[turn % 3 :] + states[: turn % 3])  # in whatever order they come
    assert not copied
