"""One protocol for every camera: what each adapter returns goes into a watch and into webcam_qa's reader."""

from __future__ import annotations

import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from apps import robot
from apps.latest import LatestFrame
from apps.robot import Mailbox, Pairs, Source, adapters, from_text, stamped
from runtime.camera import Camera, opener
from runtime.errors import ConfigError, SourceError
from runtime.frames import FrameRing
from tests.apps.fakes import FakeCapture, number_of, picture


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        cv2.imwrite(str(folder / f"frame{number}.png"), picture(number))
    return folder


def test_the_protocol_is_that_of_the_readers(video: Path, pictures: Path) -> None:
    sources: list[Source] = [
        robot.video(video),
        robot.folder(pictures),
        robot.arrays([picture(0), picture(1)]),
        Pairs(lambda: [(0.5, picture(0)), (0.75, picture(1))], live=False),
    ]
    for source in sources:
        frames, live, again = opener(source)  # what `session.watch` makes of it
        assert not live and not again
        assert [f.number for f in islice(frames(), 2)] == [0, 1]
        with LatestFrame(source, paced=False) as reader:
            frame = reader.latest(timeout=10)
            assert frame is not None and frame.image.shape == (48, 64, 3)
    assert [(t, number_of(image)) for t, image in stamped(sources[3])] == [(0.5, 0), (0.75, 1)]
    assert [t for t, _ in stamped(robot.folder(pictures, fps=4))] == [0, 0.25, 0.5]


def test_frames_arrive_in_a_watch_with_their_times() -> None:
    ring = FrameRing(4, 1)
    camera = Camera(Pairs(lambda: [(0.5, picture(3)), (0.75, picture(4))], live=False), ring)
    taken = []
    while len(taken) < 2:
        slot = camera.take(newest=False, timeout=1)
        if slot is not None:
            taken.append((slot.time_s, number_of(slot.image)))
            ring.give_back(slot)
    camera.close()
    assert taken == [(0.5, 3), (0.75, 4)]


def test_pairs_refuse_what_is_no_picture() -> None:
    with pytest.raises(SourceError, match="float64"):
        list(Pairs(lambda: [(0.0, np.zeros((4, 4, 3)))], name="lidar").frames())


def test_v4l2_asks_for_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []

    class Device(FakeCapture):
        def set(self, prop: int, value: float) -> bool:
            opened.append((prop, value))
            return True

    def capture(device: Any, backend: int) -> Device:
        opened.append((device, backend))
        return Device(iter([picture(1)]))

    monkeypatch.setattr(adapters.cv2, "VideoCapture", capture)
    source = robot.v4l2("/dev/video2", size=(1280, 720), fps=30, fourcc="MJPG")
    assert source.name == "camera /dev/video2" and source.live
    assert number_of(next(iter(source.frames())).image) == 1
    assert opened[0] == ("/dev/video2", cv2.CAP_V4L2)
    assert dict(opened[1:]) == {
        cv2.CAP_PROP_FOURCC: cv2.VideoWriter.fourcc(*"MJPG"),
        cv2.CAP_PROP_FRAME_WIDTH: 1280,
        cv2.CAP_PROP_FRAME_HEIGHT: 720,
        cv2.CAP_PROP_FPS: 30,
        cv2.CAP_PROP_BUFFERSIZE: 1,
    }
    with pytest.raises(ConfigError, match="four letters"):
        robot.v4l2(fourcc="MJPEG")


def test_a_network_camera_keeps_its_password_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    urls: list[str] = []

    def stream(url: str) -> FakeCapture:
        urls.append(url)
        return FakeCapture(iter([picture(1)]))

    monkeypatch.setattr("apps.sources._open_stream", stream)
    source = robot.rtsp("rtsp://camera.local/stream", user="ann", password="p@ss/word")
    assert "p@ss" not in source.name and "p%40ss" not in source.name
    next(iter(source.frames()))
    assert urls == ["rtsp://ann:p%40ss%2Fword@camera.local/stream"]
    with pytest.raises(ConfigError) as refused:
        robot.rtsp("http://camera.local/secret")
    assert "secret" not in str(refused.value)


def test_files_and_folders_that_are_not_there(tmp_path: Path) -> None:
    for make in (robot.video, robot.folder):
        with pytest.raises(SourceError, match="there is no"):
            make(tmp_path / "nothing")
    with pytest.raises(SourceError, match="holds no picture"):
        robot.folder(tmp_path)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("v4l2:/dev/video3?size=640x480&fps=15&fourcc=YUYV", "camera /dev/video3"),
        ("v4l2:2", "camera 2"),
        ("v4l2:", "camera 0"),
        ("csi:1?size=1920x1080&fps=60&flip=2", "CSI camera 1"),
        ("csi:", "CSI camera 0"),
        ("gst:640x480:videotestsrc ! timeoverlay", "GStreamer pipeline"),
        ("0", "camera 0"),
        ("rtsp://a:b@camera.local/x", "rtsp://***@camera.local/x"),
    ],
)
def test_sources_as_people_type_them(text: str, name: str) -> None:
    source = from_text(text)
    assert source.name == name and source.live


@pytest.mark.parametrize(
    "text",
    ["csi:0?size=big", "csi:x", "v4l2:0?flip=2", "gst:videotestsrc", "gst:8x8:", "csi:0?flip=9", "v4l2:0?fps=fast"],
)
def test_forms_that_are_none_are_told(text: str) -> None:
    with pytest.raises(ConfigError):
        from_text(text)


def test_a_mailbox_keeps_the_newest() -> None:
    box = Mailbox(clock=lambda: 5.0)
    for number in range(3):
        box.put(picture(number))
    frames = box.frames()
    frame = next(frames)
    assert (frame.time_s, frame.number, number_of(frame.image)) == (5.0, 0, 2)
    box.put(picture(7), time_s=1.25)
    frame = next(frames)
    assert (frame.time_s, frame.number, number_of(frame.image)) == (1.25, 1, 7)
    assert (box.received, box.dropped, box.corrupt) == (4, 2, 0)


def test_a_mailbox_decodes_files_and_leaves_out_nonsense() -> None:
    box = Mailbox()
    frames = box.frames()
    taken: list[int] = []
    reader = threading.Thread(target=lambda: taken.append(number_of(next(frames).image)))
    box.put(b"no picture")
    reader.start()
    while box.corrupt == 0:
        time.sleep(0.01)
    box.put(cv2.imencode(".png", picture(6))[1].tobytes())
    reader.join(10)
    assert taken == [6] and box.corrupt == 1


def test_the_later_reader_of_a_mailbox_takes_over() -> None:
    box = Mailbox("front")
    old, new = box.frames(), box.frames()
    ended: list[list[Any]] = []
    thread = threading.Thread(target=lambda: ended.append(list(old)))
    thread.start()
    while box._readers == 0:
        time.sleep(0.01)
    box_ready = threading.Thread(target=lambda: ended.append([next(new).number]))
    box_ready.start()
    thread.join(10)
    assert ended == [[]], "the first reader is let go as soon as the second comes"
    box.put(picture(1))
    box_ready.join(10)
    assert ended == [[], [0]]
    box.close()
    box.close()
    box.put(picture(2))
    assert box.received == 1
    with pytest.raises(SourceError, match="front is closed"):
        next(new)


def test_a_mailbox_can_be_watched() -> None:
    """Pushed by a driver's thread, taken by the reader's."""
    box = Mailbox()
    with LatestFrame(box) as reader:
        box.put(picture(4))
        frame = reader.latest(timeout=10)
        assert frame is not None and number_of(frame.image) == 4
        box.put(picture(5))
        frame = reader.latest(after=frame.number, timeout=10)
        assert frame is not None and number_of(frame.image) == 5
        box.close()
