"""Every kind of source, with the input people really have: corrupt, empty, renamed, missing."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from apps.sources import (
    MAX_CORRUPT,
    ArraySource,
    CaptureSource,
    FolderSource,
    as_bgr,
    first_camera,
    open_source,
    redact,
)
from runtime.errors import SourceError
from tests.apps.fakes import FakeCapture, FlakyCamera, number_of, picture


def test_video_file_yields_every_frame_with_its_time(video: Path) -> None:
    source = open_source(str(video))
    frames = list(source.frames())
    assert [number_of(f.image) for f in frames] == list(range(20))
    assert [f.number for f in frames] == list(range(20))
    assert source.fps == 20 and not source.live
    np.testing.assert_allclose([f.time_s for f in frames], np.arange(20) / 20)
    assert [f.number for f in source.frames()] == list(range(20)), "reading it again starts over"


def test_looped_video_goes_on_in_time(video: Path) -> None:
    frames = open_source(str(video), loop=True).frames()
    taken = [next(frames) for _ in range(45)]
    assert [number_of(f.image) for f in taken] == [*range(20), *range(20), *range(5)]
    assert taken[-1].time_s == pytest.approx(44 / 20)


def test_file_that_is_no_video_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.mp4"
    path.write_text("not a video")
    with pytest.raises(SourceError, match="cannot be opened"):
        next(open_source(str(path)).frames())


def test_truncated_video_is_refused_or_ends(video: Path) -> None:
    data = video.read_bytes()
    video.write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match=r"video\.mp4"):
        list(open_source(str(video)).frames())


def test_capture_without_a_single_frame_is_refused() -> None:
    source = CaptureSource("empty.mp4", lambda: FakeCapture(iter([])), live=False)
    with pytest.raises(SourceError, match="no frame that can be decoded"):
        list(source.frames())


def test_folder_in_natural_order_at_its_pace(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        cv2.imwrite(str(tmp_path / f"frame{number}.png"), picture(number))
    (tmp_path / "readme.txt").write_text("no picture")
    (tmp_path / "frame3.jpg").write_text("no picture either")
    source = open_source(str(tmp_path), fps=2)
    assert isinstance(source, FolderSource)
    frames = list(source.frames())
    assert [number_of(f.image) for f in frames] == [1, 2, 10]
    assert [f.time_s for f in frames] == [0, 0.5, 1.0]


def test_folders_without_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no picture"):
        open_source(str(tmp_path))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(SourceError, match="none of the 1 pictures"):
        list(open_source(str(tmp_path)).frames())


def test_looped_folder_goes_on(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "only.png"), picture(4))
    frames = open_source(str(tmp_path), loop=True).frames()
    assert [next(frames).time_s for _ in range(3)] == [0, 1, 2]


def test_arrays_of_ones_own() -> None:
    frames = list(ArraySource([picture(1), picture(2)[:, :, 0]], fps=10).frames())
    assert [f.image.shape for f in frames] == [(48, 64, 3), (48, 64, 3)]
    with pytest.raises(SourceError, match=r"array 1 is float64 \(2, 2\)"):
        list(ArraySource([picture(1), np.zeros((2, 2))]).frames())


@pytest.mark.parametrize(
    ("raw", "shape"),
    [
        (np.zeros((4, 5), np.uint8), (4, 5, 3)),
        (np.zeros((4, 5, 1), np.uint8), (4, 5, 3)),
        (np.zeros((4, 5, 3), np.uint8), (4, 5, 3)),
        (np.zeros((4, 5, 4), np.uint8), (4, 5, 3)),
        (np.zeros((4, 5, 2), np.uint8), None),
        (np.zeros((0, 5, 3), np.uint8), None),
        (np.zeros((4, 5, 3), np.float32), None),
        (None, None),
    ],
)
def test_as_bgr(raw: np.ndarray | None, shape: tuple[int, ...] | None) -> None:
    image = as_bgr(raw)
    assert (None if image is None else image.shape) == shape


def test_sixteen_bits_keep_their_brightness() -> None:
    image = as_bgr(np.full((2, 2), 0x80FF, np.uint16))
    assert image is not None
    assert (image == 0x80).all()


def test_camera_frames_carry_a_clock_that_goes_on_when_it_is_opened_again() -> None:
    camera = FlakyCamera([picture(1), None], [picture(2), None])
    source = camera.source()
    numbers, times = [], []
    for _ in range(2):
        with pytest.raises(SourceError, match="camera 7 stopped sending frames"):
            for frame in source.frames():
                numbers.append(frame.number)
                times.append(frame.time_s)
    assert numbers == [0, 1]
    assert 0 == times[0] < times[1]
    assert all(capture.released for capture in camera.captures)


def test_corrupt_frames_are_skipped_and_counted_until_there_are_too_many() -> None:
    source = FlakyCamera([picture(1), "corrupt", picture(2), *["corrupt"] * MAX_CORRUPT]).source()
    frames = source.frames()
    assert [number_of(next(frames).image) for _ in range(2)] == [1, 2]
    with pytest.raises(SourceError, match="30 corrupt frames in a row"):
        next(frames)
    assert source.corrupt == MAX_CORRUPT + 1


def test_a_file_behind_http_ends_instead_of_being_reopened() -> None:
    capture = FakeCapture(iter([picture(1)]), properties={cv2.CAP_PROP_FRAME_COUNT: 1.0})
    assert len(list(CaptureSource("http://host/a.mp4", lambda: capture, live=True).frames())) == 1


def test_what_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"there is no .*nothing\.mp4"):
        open_source(str(tmp_path / "nothing.mp4"))
    with pytest.raises(SourceError, match="ls /dev/video"):
        open_source("/dev/video99")


def test_text_is_told_apart(tmp_path: Path) -> None:
    assert open_source("3").name == "camera 3"
    assert open_source("3").live
    stream = open_source("RTSP://me:secret@camera.local:554/a@b")
    assert stream.live
    assert stream.name == "RTSP://***@camera.local:554/a@b"
    assert redact("http://camera.local/@home") == "http://camera.local/@home"


def test_stream_that_refuses_the_connection_says_so() -> None:
    with pytest.raises(SourceError, match=r"http://127\.0\.0\.1:9/stream cannot be opened"):
        next(open_source("http://127.0.0.1:9/stream").frames())


def test_first_camera_takes_the_first_that_delivers(monkeypatch: pytest.MonkeyPatch) -> None:
    cameras = {0: FlakyCamera(None), 1: FlakyCamera([None]), 2: FlakyCamera([picture(1)])}
    monkeypatch.setattr("apps.sources._open_camera", lambda index: cameras[index]())
    assert first_camera([0, 1, 2]) == 2
    monkeypatch.setattr("apps.sources._open_camera", lambda index: FlakyCamera(None)())
    assert first_camera([0, 1]) is None
