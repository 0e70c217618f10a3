"""Watching: what is fed, what is left out, and what a question sees, in the order the test says."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import VisualRWKV, camera
from runtime.camera import Timing
from runtime.errors import ConfigError, InputError, StateError
from runtime.feeding import Feeder
from runtime.sampling import GenerateOptions
from runtime.session import Session
from tests.runtime.fake_bundle import TOKENS
from tests.runtime.fake_model import Counter, bits, fake_model, frame, say
from tests.runtime.watching import PATIENCE, Clock, Feed, Gate, begin, grey, until


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VisualRWKV]:
    monkeypatch.setattr(camera, "CLOSE_S", 0.02)  # the tests' sources never return by themselves
    with fake_model(tmp_path / "bundle") as opened:
        yield opened


def seen(model: VisualRWKV, *frames: np.ndarray) -> Session:
    """A session that has seen frames without a watch."""
    session = model.session()
    for one in frames:
        session.see(one)
    return session


def test_every_frame_of_a_list_is_fed_as_by_hand(model: VisualRWKV) -> None:
    frames = [frame(i) for i in range(30)]
    wanted = seen(model, *frames)
    session = model.session()
    with session.watch(frames, policy="every", ring=3) as watch:
        assert watch.wait(PATIENCE)
        assert (watch.stats.read, watch.stats.fed, watch.stats.dropped, watch.error) == (30, 30, 0, None)
        assert watch.tokens == wanted.tokens
        assert say(session, "What was first?") == say(wanted.fork(), "What was first?")
    assert bits(session) == bits(wanted)
    assert session.frames == 30
    assert say(session, "And now?") == say(wanted, "And now?")
    session.undo()
    session.undo()  # the last frame
    assert session.tokens == seen(model, *frames[:-1]).tokens


def test_a_question_is_answered_on_a_copy_and_the_session_is_refused_to_all_else(model: VisualRWKV) -> None:
    feed, session = Feed(), model.session()
    wanted = seen(model, frame(1), frame(2))
    with session.watch(feed, policy="every") as watch:
        feed.put(frame(1))
        until(lambda: watch.stats.fed == 1)
        stream = session.ask("What?", options=GenerateOptions(max_tokens=4))
        first = next(stream)
        feed.put(frame(2))
        until(lambda: watch.stats.fed == 2)  # while the answer runs
        text = first.text + "".join(chunk.text for chunk in stream)
        assert text == say(seen(model, frame(1)), "What?", max_tokens=4)
        for refused in (session.snapshot, session.fork, session.reset, session.undo, lambda: session.see(frame(3))):
            with pytest.raises(StateError, match="watching"):
                refused()
        with pytest.raises(StateError, match="watching already"):
            session.watch(feed)
    assert bits(session) == bits(wanted)
    assert session.history == []
    with pytest.raises(StateError, match="closed"):
        next(watch.ask("Late?"))


def test_what_was_seen_can_be_saved_while_watching(model: VisualRWKV, tmp_path: Path) -> None:
    feed, session = Feed(), model.session()
    with session.watch(feed, policy="every") as watch:
        feed.put(frame(1))
        until(lambda: watch.stats.fed == 1)
        snapshot = watch.snapshot()
        watch.save(tmp_path / "kitchen.vrs")
        feed.put(frame(2))
        until(lambda: watch.stats.fed == 2)
    assert bits(model.session(tmp_path / "kitchen.vrs")) == bits(seen(model, frame(1)))
    session.restore(snapshot)
    assert say(session, "What?") == say(seen(model, frame(1)), "What?")


def test_questions_inside_asyncio(model: VisualRWKV) -> None:
    session = model.session()

    async def ask(question: str) -> str:
        options = GenerateOptions(max_tokens=6)
        return "".join([chunk.text async for chunk in session.ask_async(question, options=options)])

    async def both() -> list[str]:
        return await asyncio.gather(ask("One?"), ask("Two?"))

    with session.watch([frame(1)], answers=2) as watch:
        watch.wait(PATIENCE)
        assert asyncio.run(both()) == [say(seen(model, frame(1)), q) for q in ("One?", "Two?")]


def test_answers_at_a_time_are_bounded_and_an_abandoned_one_makes_room(model: VisualRWKV) -> None:
    session = model.session()
    with session.watch([frame(1)], answers=1) as watch:
        watch.wait(PATIENCE)
        stream = session.ask("One?")
        next(stream)
        with pytest.raises(StateError, match="1 questions are being answered"):
            next(session.ask("Two?"))
        stream.close()  # type: ignore[attr-defined]
        assert say(session, "Two?") == say(seen(model, frame(1)), "Two?")
        stream = session.ask("Long?", options=GenerateOptions(max_tokens=100_000))
        next(stream)
        session.cancel()
        assert [chunk.finish_reason for chunk in stream][-1] == "cancelled"
        with pytest.raises(InputError, match="question of type"):
            session.ask(3)  # type: ignore[arg-type]
        assert watch.stats.answers == 3


def held_up(model: VisualRWKV) -> Gate:
    """Make the next picture wait in the vision encoder."""
    gate, encode = Gate(), model.engine.encode_with_features

    def slow(views: Any) -> Any:
        gate.wait()
        return encode(views)

    model.engine.encode_with_features = slow  # type: ignore[method-assign]
    return gate


@pytest.mark.parametrize(
    ("policy", "options", "fed"),
    [("latest", {}, [0, 5]), ("every", {"ring": 2}, [0, 4, 5]), ("every", {"ring": 8}, [0, 1, 2, 3, 4, 5])],
)
def test_frames_that_come_meanwhile(model: VisualRWKV, policy: str, options: dict[str, Any], fed: list[int]) -> None:
    gate, feed, session = held_up(model), Feed(), model.session()
    with session.watch(feed, policy=policy, **options) as watch:
        feed.put(frame(0))
        assert gate.reached.wait(PATIENCE)
        feed.put(*(frame(i) for i in range(1, 6)))
        until(lambda: watch.stats.read == 6)
        gate.open.set()
        until(lambda: watch.stats.fed == len(fed))
        assert watch.stats.dropped == 6 - len(fed)
    assert bits(session) == bits(seen(model, *(frame(i) for i in fed)))


def test_what_the_driver_does_with_its_buffer_afterwards_is_not_seen(model: VisualRWKV) -> None:
    gate, session, buffer = held_up(model), model.session(), grey(10)

    def camera() -> Iterator[np.ndarray]:
        for level in (10, 20):
            buffer[:] = level
            yield buffer

    with session.watch(camera(), policy="every") as watch:
        until(lambda: watch.stats.read == 2)
        buffer[:] = 99
        gate.open.set()
        watch.wait(PATIENCE)
    assert bits(session) == bits(seen(model, grey(10), grey(20)))


def test_adaptive_feeds_what_is_new_and_one_frame_after_a_while(model: VisualRWKV) -> None:
    clock, feed, session = Clock(), Feed(), model.session()
    with begin(session, feed, clock, policy="adaptive", threshold=2.0, at_least_s=60.0, timing=Timing(1e9)) as watch:

        def show(level: int, passed: float) -> tuple[int, int]:
            clock.now += passed
            before = watch.stats
            feed.put(grey(level))
            until(lambda: watch.stats.fed + watch.stats.unchanged > before.fed + before.unchanged)
            return watch.stats.fed, watch.stats.unchanged

        assert show(100, 0) == (1, 0)
        assert show(101, 1) == (1, 1)
        assert show(103, 1) == (2, 1)  # 3 levels from the last fed one, 2 from the last
        assert show(104, 50) == (2, 2)
        assert show(104, 10) == (3, 2)  # 60 s and more after the last
        assert watch.stats.same == 3
    assert bits(session) == bits(seen(model, grey(100), grey(103), grey(104)))


def test_no_more_frames_a_second_than_asked_for(model: VisualRWKV) -> None:
    clock, feed, session = Clock(), Feed(), model.session()
    with begin(session, feed, clock, policy="every", fps=2.0) as watch:
        feed.put(*(frame(i) for i in range(4)))
        until(lambda: watch.stats.read == 4 and watch.stats.fed == 1)
        for fed, now in ((1, 0.4), (2, 0.5), (2, 0.9), (3, 1.0)):
            clock.now = 1000.0 + now
            until(lambda fed=fed: watch.stats.fed >= fed)  # type: ignore[misc]
            threading.Event().wait(0.02)  # it could, if it were not held back
            assert watch.stats.fed == fed


def test_a_list_is_shown_at_the_pace_asked_for(model: VisualRWKV) -> None:
    clock, session = Clock(), model.session()
    with begin(session, [frame(i) for i in range(3)], clock, fps=10.0) as watch:
        for read in (1, 2, 3):
            until(lambda read=read: watch.stats.fed == read)  # type: ignore[misc]
            assert watch.stats.read == read
            clock.now += 0.1
        assert watch.wait(PATIENCE)


def test_going_back_to_a_clean_state_keeps_within_the_horizon(model: VisualRWKV) -> None:
    frames = [frame(i) for i in range(40)]
    session = model.session()
    say(session, "You are a guard.")
    clean, horizon = session.fork(), session.tokens + 30
    ages, feed = [], Feed()
    with session.watch(feed, policy="every", horizon=horizon, keep=2) as watch:
        for count, one in enumerate(frames, 1):
            feed.put(one)
            until(lambda count=count: watch.stats.fed == count)  # type: ignore[misc]
            ages.append(watch.tokens)
        refreshes = watch.stats.refreshes
    assert max(ages) <= horizon
    assert refreshes == sum(later < earlier for earlier, later in itertools.pairwise(ages)) > 3
    last = max(i for i in range(1, 40) if ages[i] < ages[i - 1])
    for one in frames[last - 2 :]:
        clean.see(one)
    assert bits(session) == bits(clean)
    assert session.tokens == clean.tokens


def test_a_window_shows_the_last_frames_to_a_clean_session_and_encodes_each_once(tmp_path: Path) -> None:
    with fake_model(tmp_path / "bundle", "last") as model:  # pictures behind the text: nothing can be fed before
        frames = [frame(i) for i in range(12)]
        session, counter = model.session(), Counter(model)
        with pytest.raises(ConfigError, match="window=4"):
            session.watch(frames)
        with session.watch(frames, policy="every", window=3) as watch:
            watch.wait(PATIENCE)
            assert (counter.pictures, counter.calls) == (12, 0)
            found = [say(session, question) for question in ("One?", "Two?")]
            assert counter.pictures == 12
            with pytest.raises(StateError, match="watching"):
                session.reset()
        assert session.tokens == 0
        assert found == [say(seen(model, *frames[-3:]), question) for question in ("One?", "Two?")]


def test_a_question_and_a_frame_cost_the_same_however_long_it_has_watched(
    model: VisualRWKV, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, counter, feed = model.session(), Counter(model), Feed()
    costs, sizes, laid_out, pieces = [], [], [], []
    place = Feeder.place
    monkeypatch.setattr(Feeder, "place", lambda *args: (pieces.append(len(args[-1])), place(*args))[-1])
    with session.watch(feed, policy="every", ring=500) as watch:
        for frames in (5, 50, 500):
            feed.put(*(frame(i) for i in range(watch.stats.fed, frames - 1)))
            until(lambda frames=frames: watch.stats.fed == frames - 1)  # type: ignore[misc]
            before = counter.positions
            feed.put(frame(frames))
            until(lambda frames=frames: watch.stats.fed == frames)  # type: ignore[misc]
            of_frame, before = counter.positions - before, counter.positions
            laid_out.append(pieces[-1])
            say(session, "What?")
            costs.append((of_frame, counter.positions - before))
            sizes.append((watch.nbytes, session.nbytes, len(session._undo)))
    assert len(set(costs)) == len(set(sizes[1:])) == 1
    assert laid_out == [2, 2, 2]  # a separator and the picture
    assert costs[0][0] == TOKENS + 1


def test_bytes_held_are_counted_exactly(model: VisualRWKV) -> None:
    session = model.session()
    state = session.snapshot().state.nbytes
    with session.watch([frame(1)], policy="every", ring=3, keep=2, horizon=100, answers=2) as watch:
        watch.wait(PATIENCE)
        frames = (3 + 2 + 1) * frame(1).nbytes
        assert watch.nbytes == frames + 32 * 32 * 4 + state + 2 * 2 * state  # both buffer sets of each answer
        assert session._shared.metrics.value("vrwkv_watch_bytes") == watch.nbytes


def test_a_frame_that_waited_for_one_question_goes_before_the_next(model: VisualRWKV) -> None:
    feed, session = Feed(), model.session()
    advance, gate, order = model.engine.advance, Gate(), []

    def recorded(x: Any, state: Any, image: Any = None) -> Any:
        if not order and len(x) > 6:  # the first question's prompt
            order.append("question")
            gate.wait()
        elif len(x) == TOKENS + 1:
            order.append("frame")
        elif len(x) > 6:
            order.append("question")
        return advance(x, state, image)

    with session.watch(feed, policy="latest", answers=2) as watch:
        feed.put(frame(0))
        until(lambda: watch.stats.fed == 1)
        model.engine.advance = recorded  # type: ignore[method-assign]
        asked = [threading.Thread(target=say, args=(session, "One, if you please?"))]
        asked[0].start()
        assert gate.reached.wait(PATIENCE)
        feed.put(frame(1))
        until(lambda: watch._border._blocked)
        # The second question has its copy before the first has its token, so that both go before the frame.
        asked.append(threading.Thread(target=say, args=(session, "Two, if you please?")))
        asked[1].start()
        until(lambda: watch._border.asking == 2)
        gate.open.set()
        for thread in asked:
            thread.join(PATIENCE)
        until(lambda: watch.stats.fed == 2)
    assert sorted(order) == ["frame", "question", "question"]
    assert order[0] == "question"


@pytest.mark.parametrize(
    "options",
    [
        {"policy": "some"},
        {"fps": 0},
        {"fps": float("nan")},
        {"ring": 0},
        {"keep": -1},
        {"answers": 0},
        {"window": 0},
        {"horizon": 2.5},
        {"threshold": -1},
        {"threshold": float("nan")},
        {"window": 2, "horizon": 50},
        {"horizon": 4 * TOKENS},
    ],
)
def test_options_out_of_range_are_refused_and_change_nothing(model: VisualRWKV, options: dict[str, Any]) -> None:
    session = model.session()
    with pytest.raises(ConfigError):
        session.watch([], **options)
    session.see(frame(1))


def test_a_session_that_cannot_watch_says_why(model: VisualRWKV) -> None:
    padded = model.session(padding="left16")
    with pytest.raises(ConfigError, match="padding='none'"):
        padded.watch([])
    far = model.session()
    far.see(*(frame(i) for i in range(10)))
    with pytest.raises(ConfigError, match="reset"):
        far.watch([], horizon=30)
    stream = far.ask("Busy?")
    next(stream)
    with pytest.raises(StateError, match="busy"):
        far.watch([])
    with pytest.raises(ConfigError, match="a source of type int"):
        model.session().watch(3)  # type: ignore[arg-type]
