"""The background reader: newest frame only, honest counts, and a source that comes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from apps.latest import MAX_STUCK, Frame, LatestFrame
from apps.sources import ArraySource, open_source
from runtime.errors import ConfigError, SourceError
from tests.apps.fakes import FlakyCamera, number_of, picture

FAST = {"backoff_s": (0.01, 0.04), "stall_s": 0.2}


def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def steady(numbers: list[int], pause: float = 0.01) -> Iterator[Any]:
    for number in numbers:
        time.sleep(pause)
        yield picture(number)


def test_only_the_newest_frame_is_kept_and_the_others_are_counted() -> None:
    with LatestFrame(ArraySource(picture(n) for n in range(20)), paced=False) as reader:
        until(lambda: reader.ended)
        frame = reader.latest()
        assert frame is not None
        assert number_of(frame.image) == 19
        assert reader.latest() is frame, "the newest stays the newest"
        counts = reader.counts
        assert (counts.read, counts.used, counts.dropped) == (20, 1, 19)
        assert reader.latest(after=frame.number) is None, "there will be no newer one"


def test_every_frame_is_either_used_or_dropped() -> None:
    with LatestFrame(ArraySource(steady(list(range(20))), fps=1000)) as reader:
        after = -1
        while (frame := reader.latest(after=after)) is not None:
            assert frame.number > after
            after = frame.number
            time.sleep(0.02)
    counts = reader.counts
    assert counts.read == counts.used + counts.dropped == 20
    assert counts.dropped > 0


def test_a_file_is_shown_at_its_own_pace(video: Path) -> None:
    began = time.monotonic()
    with LatestFrame(open_source(str(video))) as reader:
        until(lambda: reader.ended)
    assert time.monotonic() - began >= 19 / 20 - 0.01
    began = time.monotonic()
    with LatestFrame(open_source(str(video)), paced=False) as reader:
        until(lambda: reader.ended)
    assert time.monotonic() - began < 0.8


def test_frames_of_wanted_times_are_kept_however_late_they_are_asked_for() -> None:
    source = ArraySource((picture(n) for n in range(20)), fps=10)
    with LatestFrame(source, paced=False, keep_at=[1.0, 0.0, 0.55]) as reader:
        until(lambda: reader.ended)
        kept = [reader.at(t) for t in (0.0, 0.55, 1.0)]
        assert [number_of(f.image) for f in kept if f] == [0, 6, 10]
        assert reader.counts.used == 3
        with pytest.raises(SourceError, match=r"ended at 1\.9 s\s+wanted: a frame at 7\.0 s"):
            reader.at(7.0)


def test_waiting_for_a_time_gives_up() -> None:
    with LatestFrame(FlakyCamera([picture(1), 0.5]).source(), keep_at=[60.0], stall_s=9) as reader:
        assert reader.at(60.0, timeout=0.05) is None


def test_a_camera_that_disappears_is_opened_again() -> None:
    camera = FlakyCamera([picture(1), None], None, None, [picture(2), 0.3], [])
    with LatestFrame(camera.source(), **FAST) as reader:
        until(lambda: reader.counts.read == 2)
        frame = reader.latest(after=0, timeout=1)
        assert frame is not None
        assert number_of(frame.image) == 2
        assert reader.counts.reconnects == 3
        told = "\n".join(reader.notices())
        assert "camera 7 stopped sending frames; opening it again in 0.01 s" in told
        assert "camera 7 cannot be opened; opening it again in 0.04 s" in told
        assert "camera 7 is back" in told
        assert reader.notices() == [], "told once"
    assert all(c.released for c in camera.captures[: camera.opened])


def test_the_last_frame_stays_while_the_camera_is_away() -> None:
    camera = FlakyCamera([picture(5), None], *[None] * 50)
    with LatestFrame(camera.source(), **FAST) as reader:
        until(lambda: reader.counts.reconnects > 1)
        frame = reader.latest()
        assert frame is not None
        assert number_of(frame.image) == 5
        assert reader.age_s > 0
        assert not reader.ended


def test_a_silent_camera_is_abandoned_and_its_late_frame_ignored() -> None:
    def hangs() -> Iterator[Any]:
        yield picture(1)
        time.sleep(0.5)
        yield picture(9)

    camera = FlakyCamera([], list(steady([2])) * 100)
    camera.captures[0].script = hangs()
    with LatestFrame(camera.source(), **FAST) as reader:
        until(lambda: reader.counts.reconnects == 1)
        assert "sent nothing for 0.2 s" in reader.notices()[0]
        until(lambda: camera.captures[0].released)
        frame = reader.latest()
        assert frame is not None
        assert number_of(frame.image) == 2


def test_threads_stuck_in_a_driver_stay_few() -> None:
    camera = FlakyCamera([picture(1), 3.0], *[[3.0] for _ in range(20)])
    with LatestFrame(camera.source(), backoff_s=(0.01, 0.01), stall_s=0.06) as reader:
        time.sleep(0.9)
        assert camera.opened == MAX_STUCK
        assert not reader.ended


def test_a_camera_that_never_worked_is_an_error_at_once() -> None:
    with (
        LatestFrame(FlakyCamera(None, [picture(1)]).source(), **FAST) as reader,
        pytest.raises(SourceError, match="camera 7 cannot be opened"),
    ):
        reader.latest(timeout=2)


def test_a_driver_that_raises_is_a_failure_like_any_other() -> None:
    def explodes() -> Iterator[Any]:
        yield picture(1)
        raise RuntimeError("USB is on fire")

    camera = FlakyCamera([], [picture(2), 9.0])
    camera.captures[0].script = explodes()
    with LatestFrame(camera.source(), **FAST) as reader:
        until(lambda: reader.counts.read == 2)
        assert "RuntimeError: USB is on fire" in reader.notices()[0]


def test_resolution_may_change() -> None:
    camera = FlakyCamera([picture(1), None], [picture(2, 32, 96), 9.0])
    with LatestFrame(camera.source(), **FAST) as reader:
        until(lambda: reader.counts.read == 2)
        frame = reader.latest()
        assert frame is not None
        assert frame.image.shape == (96, 32, 3)


def test_max_frames_ends_it_and_every_frame_goes_to_the_callback() -> None:
    seen: list[Frame] = []
    source = ArraySource(steady(list(range(20))), fps=1000)
    with LatestFrame(source, on_frame=seen.append, max_frames=3) as reader:
        until(lambda: reader.ended)
    assert [f.number for f in seen] == [0, 1, 2]
    assert reader.full


def test_an_error_of_the_callback_ends_it_even_for_a_camera() -> None:
    def refuses(frame: Frame) -> None:
        raise ConfigError("the disk is full")

    with LatestFrame(FlakyCamera([picture(1)] * 9).source(), on_frame=refuses, **FAST) as reader:
        until(lambda: reader.ended)
        assert isinstance(reader.error, ConfigError)


def test_closing_is_quick_and_releases_the_camera() -> None:
    camera = FlakyCamera(list(steady(list(range(5)), 0)) * 1000)
    camera.captures[0].script = steady(list(range(5)) * 1000)
    with LatestFrame(camera.source()) as reader:
        until(lambda: reader.counts.read > 2)
        began = time.monotonic()
    assert time.monotonic() - began < 1
    assert camera.captures[0].released
