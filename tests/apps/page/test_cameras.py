"""Cameras: the newest picture only, and the robot's source for every page."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from apps.latest import LatestFrame
from apps.page.cameras import PageCamera, RobotCamera, Tap, decode, encode, thumbnail
from apps.page.rooms import Rooms
from apps.page.server import page_app
from apps.sources import ArraySource, CaptureSource, open_source
from runtime import GenerateOptions, VisualRWKV
from runtime.errors import InputError, SourceError
from tests.apps.fakes import FlakyCamera, number_of, picture
from tests.apps.page.conftest import SAMPLE, Page, connect, wait_for


def jpeg(number: int) -> bytes:
    return encode(picture(number), 64, 95)


def test_a_page_s_camera_keeps_the_newest_picture_only() -> None:
    camera = PageCamera()
    assert camera.newest() is None
    for number in (1, 2, 3):
        camera.put(jpeg(number))
    shot = camera.newest()
    assert shot is not None
    assert (shot.number, number_of(shot.image)) == (2, 3)
    assert camera.newest(after=shot.number) is None
    assert camera.newest(after=1) is not None


def test_whoever_waits_gets_the_next_picture() -> None:
    camera = PageCamera()
    threading.Timer(0.05, camera.put, (jpeg(5),)).start()
    shot = camera.newest(timeout=30.0)
    assert shot is not None
    assert number_of(shot.image) == 5


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\xff\xd8\xff", jpeg(1)[:200], b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_what_is_no_jpeg_is_refused(data: bytes) -> None:
    with pytest.raises(InputError):
        decode(data)


def test_pictures_are_made_smaller_never_larger() -> None:
    wide = np.zeros((100, 800, 3), np.uint8)
    assert decode(encode(wide, 400, 80)).shape == (50, 400, 3)
    assert decode(encode(wide, 4000, 80)).shape == wide.shape
    assert decode(encode(np.zeros((1, 5000, 3), np.uint8), 100, 80)).shape == (1, 100, 3)
    assert len(thumbnail(wide)) < 10_000


def test_a_tap_yields_every_newer_picture_and_passes_bad_ones() -> None:
    camera, shown = PageCamera(), []
    tap = Tap(camera, lambda shot: shown.append(shot.number))
    frames = tap.frames()
    camera.put(jpeg(1))
    first = next(frames)
    assert first is not None
    assert number_of(first) == 1
    camera.put(b"broken")
    assert next(frames) is None
    camera.put(jpeg(4))
    second = next(frames)
    assert second is not None
    assert number_of(second) == 4
    assert shown == [0, 2]
    tap.close()
    assert list(frames) == []


def test_the_robot_s_previews_are_coded_once_for_all_pages() -> None:
    with LatestFrame(ArraySource([picture(3)], fps=50)) as reader:
        robot = RobotCamera(reader)
        assert robot.newest(timeout=30.0) is not None
        first, second = robot.preview(-1), robot.preview(-1)
        assert first is not None
        assert second is not None
        assert first[1] is second[1]
        assert robot.preview(first[0]) is None


def test_a_lost_and_a_failed_source_are_told_to_every_page() -> None:
    camera = FlakyCamera([picture(1), None], [picture(2), 30.0])
    with LatestFrame(camera.source(), backoff_s=(0.01, 0.01)) as reader:
        robot = RobotCamera(reader)
        assert robot.newest(after=0, timeout=30.0) is not None
        told = wait_for(lambda: robot.notices(0) if len(robot.notices(0)) == 2 else None)
        assert ["opening it again" in told[0][1], "is back" in told[1][1]] == [True, True]
        assert robot.notices(told[0][0]) == told[1:]
    with LatestFrame(FlakyCamera(None).source()) as reader:
        robot = RobotCamera(reader)
        told = wait_for(lambda: robot.notices(0))
        assert "cannot be opened" in told[0][1]
        assert robot.notices(0) == told, "said once"
        assert robot.preview(-1) is None
        with pytest.raises(SourceError):
            robot.newest()


def test_only_the_name_of_a_file_is_told(tmp_path: Path) -> None:
    def name(source: Any) -> str:
        return RobotCamera(LatestFrame(source)).name

    assert name(open_source(str(SAMPLE))) == "sample.mp4"
    assert name(open_source("rtsp://user:secret@camera.local/1")) == "rtsp://***@camera.local/1"
    assert name(CaptureSource("camera 0", FlakyCamera(), live=True)) == "camera 0"


@pytest.fixture
def robot_page(demo: VisualRWKV, scenes: dict[str, np.ndarray]) -> Iterator[Page]:
    """A page of a server whose robot looks at the star, picture after picture."""
    with LatestFrame(ArraySource(_forever(scenes["star"]), fps=20, name="arm camera")) as reader:
        rooms = Rooms(demo, GenerateOptions(max_tokens=32), robot=RobotCamera(reader))
        with TestClient(page_app(rooms)) as client, connect(client) as socket:
            yield Page(socket)


def test_the_robot_s_camera_is_shown_asked_and_watched(robot_page: Page) -> None:
    page = robot_page
    assert page.welcome["robot"] == "arm camera"
    page.send("more")
    while (message := page.socket.receive()).get("bytes") is None:
        assert message["type"] == "websocket.send"
    assert decode(message["bytes"]).shape == (512, 512, 3)
    said, asked, _ = page.ask("Where is the circle?", camera="robot")
    assert said == "bottom left"
    assert asked["picture"]
    page.send("watch", tab=1, camera="robot")
    tab = page.figures(lambda tabs: tabs[1]["unchanged"] > 2)[1]
    assert tab["fed"] == 1, "an unchanged scene is fed once"
    assert page.ask("What is at the bottom left?")[0] == "yellow circle"


def _forever(image: np.ndarray) -> Iterator[np.ndarray]:
    while True:
        yield image
