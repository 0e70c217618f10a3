"""Cameras and backends that fail while a session watches: what happens is stated, and nothing seen is lost."""

from __future__ import annotations

import io
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runtime import VisualRWKV, camera
from runtime.backends.fake import FakeBackend
from runtime.camera import MAX_CORRUPT, MAX_STUCK, Timing
from runtime.errors import ConfigError, SourceError, StateError
from runtime.frames import as_picture
from runtime.logs import JsonFormatter
from tests.runtime.fake_model import bits, fake_model, frame, say
from tests.runtime.test_watch import seen
from tests.runtime.watching import PATIENCE, Clock, Feed, begin, grey, until


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VisualRWKV]:
    monkeypatch.setattr(camera, "CLOSE_S", 0.02)  # the tests' sources never return by themselves
    with fake_model(tmp_path / "bundle") as opened:
        yield opened


def backend(model: VisualRWKV) -> FakeBackend:
    found = model.engine.backend
    assert isinstance(found, FakeBackend)
    return found


def test_unplugged_cameras_are_opened_again_with_growing_pauses_and_nothing_is_forgotten(model: VisualRWKV) -> None:
    clock, feed, session = Clock(), Feed(), model.session()
    with begin(session, feed, clock, policy="every", timing=Timing(1e9, (0.5, 2.0))) as watch:
        feed.put(frame(0), OSError("unplugged"))
        until(lambda: watch.stats.fed == 1 and watch._camera._link is None)
        for count, pause in enumerate((0.5, 1.0, 2.0, 2.0), 1):
            opened = feed.openings
            clock.now += 0.99 * pause
            threading.Event().wait(0.02)  # it could open, if it did not wait
            assert feed.openings == opened
            feed.put(SourceError("no such device"))
            clock.now += 0.02 * pause
            until(lambda count=count: watch.stats.reconnects == count and watch._camera._link is None)  # type: ignore[misc]
        clock.now += 2.0
        feed.put(frame(1))
        until(lambda: watch.stats.fed == 2)
        assert say(session, "What?") == say(seen(model, frame(0), frame(1)), "What?")
        feed.put(SourceError("unplugged again"))
        until(lambda: watch._camera._link is None)
        assert watch._camera._pause == 0.5  # it had come back
    assert bits(session) == bits(seen(model, frame(0), frame(1)))


def test_a_source_that_never_gave_a_frame_fails_at_once(model: VisualRWKV) -> None:
    session = model.session()

    def opening() -> Any:
        raise OSError("no route to rtsp://user:secret@camera")

    with session.watch(opening) as watch:
        assert watch.wait(PATIENCE)
        assert isinstance(watch.error, SourceError)
        assert say(session, "Nothing?")
    session.see(frame(1))


class Capture:
    """What a driver gives: (good, frame) pairs, then (False, None)."""

    def __init__(self, *frames: np.ndarray, opened: bool = True) -> None:
        self.frames, self.opened, self.released = list(frames), opened, False

    def isOpened(self) -> bool:
        return self.opened

    def read(self) -> tuple[bool, np.ndarray | None]:
        return (True, self.frames.pop(0)) if self.frames else (False, None)

    def release(self) -> None:
        self.released = True


def test_captures_are_opened_again_by_the_function_that_opened_them_and_released(model: VisualRWKV) -> None:
    captures = [Capture(frame(0)), Capture(opened=False), Capture(frame(1), frame(2))]
    left, session = captures[:], model.session()

    def opening() -> Capture:
        return left.pop(0) if left else Capture(opened=False)

    with session.watch(opening, policy="every", timing=Timing(1e9, (0.001, 0.001))) as watch:
        until(lambda: watch.stats.fed == 3)
        assert watch.stats.reconnects >= 2
    assert all(capture.released for capture in captures)
    assert bits(session) == bits(seen(model, *map(frame, range(3))))
    own = Capture(frame(3))
    with session.watch(own, policy="every") as watch:
        assert watch.wait(PATIENCE)
        assert "stopped sending" in str(watch.error)  # there is no way to open it again
    assert not own.released
    assert bits(session) == bits(seen(model, *map(frame, range(4))))


def test_a_stalled_camera_is_given_up_and_its_late_frames_are_ignored(model: VisualRWKV) -> None:
    clock, feed, session = Clock(), Feed(), model.session()
    hangs = [threading.Event() for _ in range(MAX_STUCK)]
    with begin(session, feed, clock, policy="every", timing=Timing(10.0, (0.5, 0.5))) as watch:
        feed.put(frame(0))
        until(lambda: watch.stats.fed == 1)
        for count, hang in enumerate(hangs, 1):
            feed.put(hang)
            until(lambda: not feed.items and watch._camera._link is not None)
            clock.now += 10.1
            until(lambda count=count: watch.stats.stalls == count)  # type: ignore[misc]
            clock.now += 0.6
        openings = feed.openings
        assert openings == MAX_STUCK
        threading.Event().wait(0.02)
        assert feed.openings == openings  # so many threads are stuck in the driver, no more are started
        assert say(session, "Still there?") == say(seen(model, frame(0)), "Still there?")
        for hang in hangs:
            hang.set()
        until(lambda: feed.openings == openings + 1)
        feed.put(frame(1))
        until(lambda: watch.stats.fed == 2)
        assert watch.error is None
    assert bits(session) == bits(seen(model, frame(0), frame(1)))


def test_resolution_colours_and_clocks_that_change_underway(model: VisualRWKV) -> None:
    frames = [grey(1), grey(2, 20, 30), np.full((5, 5), 3, np.uint8), np.full((4, 9, 4), 4, np.uint8), grey(5, 2, 2)]
    session = model.session()
    timed = [(t, one) for t, one in zip((5.0, -1e9, 7.0, float("nan"), 6.0), frames, strict=True)]
    with session.watch(timed, policy="every", ring=2) as watch:
        assert watch.wait(PATIENCE)
        assert (watch.stats.fed, watch.error) == (5, None)
    assert bits(session) == bits(seen(model, *frames))


def test_the_time_of_day_may_jump(model: VisualRWKV, monkeypatch: pytest.MonkeyPatch) -> None:
    feed, session = Feed(), model.session()
    with session.watch(feed, policy="every", fps=500.0) as watch:
        for count, now in enumerate((0.0, 1e12, -1e12), 1):
            monkeypatch.setattr(time, "time", lambda now=now: now)
            feed.put(frame(count))
            until(lambda count=count: watch.stats.fed == count)  # type: ignore[misc]
        assert (watch.stats.stalls, watch.stats.reconnects) == (0, 0)


def jpeg(picture: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", picture)[1].tobytes()


def test_corrupt_jpegs_are_left_out_and_many_in_a_row_open_the_camera_again(model: VisualRWKV) -> None:
    good, clock, feed, session = jpeg(grey(70)), Clock(), Feed(), model.session()
    bad = [good[:40], b"", b"\xff\xd8 nothing", None, np.zeros((0, 0, 3), np.uint8), np.zeros((2, 2, 3)), "text"]
    with begin(session, feed, clock, policy="every", timing=Timing(1e9, (0.5, 0.5))) as watch:
        feed.put(good, *bad, good)
        until(lambda: watch.stats.fed == 2)
        assert (watch.stats.corrupt, watch.stats.reconnects, feed.openings) == (len(bad), 0, 1)
        feed.put(*[b"junk"] * MAX_CORRUPT)
        until(lambda: watch._camera._link is None)
        clock.now += 0.6
        feed.put(good)
        until(lambda: watch.stats.fed == 3)
        assert (watch.stats.corrupt, watch.stats.reconnects) == (len(bad) + MAX_CORRUPT, 1)
    picture = as_picture(good)
    assert picture is not None
    assert bits(session) == bits(seen(model, picture, picture, picture))


@pytest.mark.parametrize("undo_bytes", [1 << 20, 0])
def test_a_backend_error_in_a_frame_is_tried_again(tmp_path: Path, undo_bytes: int) -> None:
    with fake_model(tmp_path / "bundle", undo_bytes=undo_bytes) as model:
        session, advance, failing = model.session(), model.engine.advance, [True]

        def flaky(x: Any, state: Any, image: Any = None) -> Any:
            logits = advance(x, state, image)
            if failing and session.frames == 2:
                failing.pop()
                raise RuntimeError("device lost for a moment")
            return logits

        model.engine.advance = flaky  # type: ignore[method-assign]
        with session.watch([frame(i) for i in range(5)], policy="every", keep=0) as watch:
            assert watch.wait(PATIENCE)
            assert (watch.stats.fed, watch.stats.errors, watch.stats.failed, watch.error) == (5, 1, 0, None)
        kept = range(5) if undo_bytes else range(2, 5)  # without a way back it starts from its clean state
        assert bits(session) == bits(seen(model, *(frame(i) for i in kept)))


def test_a_backend_that_stays_broken_ends_the_watch_behind_the_last_good_frame(model: VisualRWKV) -> None:
    feed, session = Feed(), model.session()
    with session.watch(feed, policy="every") as watch:
        feed.put(frame(0))
        until(lambda: watch.stats.fed == 1)
        backend(model).fail = RuntimeError("device lost")
        feed.put(*(frame(i) for i in range(1, 4)))
        assert watch.wait(PATIENCE)
        assert isinstance(watch.error, StateError)
        assert "3 frames in a row" in str(watch.error)
        assert (watch.stats.failed, watch.stats.errors) == (3, 6)
        backend(model).fail = None
        assert say(session, "What?") == say(seen(model, frame(0)), "What?")
    assert bits(session) == bits(seen(model, frame(0)))
    assert model.metrics.value("vrwkv_errors_total", "frame") == 6


def test_a_state_gone_bad_is_rolled_back(model: VisualRWKV) -> None:
    feed, session, encode = Feed(), model.session(), model.engine.encode_with_features

    def bad(views: Any) -> Any:
        encoded = encode(views)
        if views["siglip"].mean() > 0.9:
            encoded.embeddings[:] = np.nan
        return encoded

    model.engine.encode_with_features = bad  # type: ignore[method-assign]
    with session.watch(feed, policy="every") as watch:
        feed.put(frame(0), grey(255), frame(1))
        until(lambda: watch.stats.fed == 2)
        assert (watch.stats.rollbacks, watch.stats.failed, session.rollbacks) == (2, 1, 2)
    assert bits(session) == bits(seen(model, frame(0), frame(1)))
    assert model.metrics.value("vrwkv_rollbacks_total") == 2


def test_a_backend_error_in_the_middle_of_an_answer_is_the_answers_alone(model: VisualRWKV) -> None:
    feed, session = Feed(), model.session()
    with session.watch(feed, policy="every") as watch:
        feed.put(frame(0))
        until(lambda: watch.stats.fed == 1)
        stream = session.ask("What?")
        next(stream)
        backend(model).fail = RuntimeError("device lost")
        with pytest.raises(RuntimeError, match="device lost"):
            list(stream)
        backend(model).fail = None
        feed.put(frame(1))
        until(lambda: watch.stats.fed == 2)
        assert say(session, "What?") == say(seen(model, frame(0), frame(1)), "What?")
        assert watch.stats.errors == 0
    assert bits(session) == bits(seen(model, frame(0), frame(1)))


def test_no_memory_at_the_beginning_leaves_the_session_as_it_was(
    model: VisualRWKV, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = seen(model, frame(0))

    def full(shape: Any, dtype: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(backend(model), "allocate", full)
        with pytest.raises(ConfigError, match="no memory for 3 more states"):
            session.watch([frame(1)], answers=3)
        with pytest.raises(MemoryError):
            model.session()
    with session.watch([frame(1)]) as watch:
        assert watch.wait(PATIENCE)
    assert bits(session) == bits(seen(model, frame(0), frame(1)))


def test_a_memory_limit_counts_the_states_of_answers(tmp_path: Path) -> None:
    with fake_model(tmp_path / "bundle") as free:
        room = free.budget(2).total
    with fake_model(tmp_path / "bundle", memory_limit=room) as model:
        session = model.session()
        with pytest.raises(ConfigError, match="memory_limit"):
            session.watch([frame(0)], answers=2)
        with session.watch([frame(0)]) as watch:
            assert watch.wait(PATIENCE)


def test_closing_does_not_wait_for_a_source_or_an_answer(model: VisualRWKV) -> None:
    feed, session = Feed(), model.session()
    watch = session.watch(feed)
    feed.put(frame(0))
    until(lambda: watch.stats.fed == 1)
    stream = session.ask("What?")
    next(stream)
    closer = threading.Thread(target=watch.close)
    closer.start()
    until(lambda: watch.ended or watch._border.closing)
    feed.put(frame(1))  # the driver returns
    closer.join(PATIENCE)
    watch.close()
    assert list(stream)[-1].finish_reason is not None
    session.see(frame(2))
    assert bits(session) == bits(seen(model, frame(0), frame(2)))


def test_what_goes_wrong_stands_in_the_log_as_json_without_passwords(model: VisualRWKV) -> None:
    text = io.StringIO()
    handler, log = logging.StreamHandler(text), logging.getLogger("runtime")
    handler.setFormatter(JsonFormatter())
    log.addHandler(handler)
    try:
        feed = Feed()
        with model.session().watch(feed, policy="every") as watch:
            feed.put(frame(0), OSError("lost rtsp://user:secret@camera/1"))
            until(lambda: "source_lost" in text.getvalue())
            assert watch.error is None
    finally:
        log.removeHandler(handler)
    assert "secret" not in text.getvalue()
    (lost,) = [line for line in text.getvalue().splitlines() if '"source_lost"' in line]
    assert '"again_in_s": 0.5' in lost and '"level": "warning"' in lost and "rtsp://***@camera/1" in lost
