"""The ROS 2 example, on a stand-in for rclpy and the real demo model."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from tests.apps.robot import fake_ros
from tests.apps.robot.fake_ros import CompressedImage, Header, Image, Stamp, String

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "examples" / "ros2" / "visualrwkv_ros"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PACKAGE))
    for known in [module for module in sys.modules if module.startswith("visualrwkv_ros")]:
        monkeypatch.delitem(sys.modules, known)
    return importlib.import_module(f"visualrwkv_ros.{name}")


def message(array: np.ndarray, encoding: str, *, step: int | None = None, big: bool = False) -> Image:
    rows = array.reshape(array.shape[0], -1).view(np.uint8)
    step = step or rows.shape[1]
    data = np.pad(rows, ((0, 0), (0, step - rows.shape[1]))).tobytes()
    return Image(Header(Stamp(12, 500_000_000)), array.shape[0], array.shape[1], encoding, int(big), step, data)


@pytest.fixture
def scene() -> np.ndarray:
    capture = cv2.VideoCapture(str(ROOT / "apps" / "demo" / "sample.mp4"))
    good, frame = capture.read()
    capture.release()
    assert good
    return frame


@pytest.fixture
def node(demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    fake_ros.install(monkeypatch)
    monkeypatch.setattr(fake_ros.Node, "overrides", {"bundle": str(demo_bundle), "threads": 1})
    running = load("node", monkeypatch).VisualRWKVNode()
    yield running
    if not running.destroyed:
        running.destroy_node()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(0.01)


def sent(node: Any, topic: str) -> list[str]:
    return [m.data for m in node.publishers_[topic].sent]


def test_it_watches_and_answers(node: Any, scene: np.ndarray) -> None:
    assert node.subscribed["image"][2] == "sensor data", "best effort: a slow model holds no camera back"
    node.deliver("image", message(scene, "bgr8"))
    until(lambda: node._watch.stats.fed == 1)
    node.deliver("question", String("How many circles are there?"))
    until(lambda: len(sent(node, "answer")) == 1)
    (answer,) = sent(node, "answer")
    assert answer and "".join(sent(node, "answer/partial")) == answer
    ((period, tell),) = node.timers_
    tell()
    (told,) = sent(node, "status")
    status = json.loads(told)
    assert period == 1.0 and status["fed"] == 1 and status["answers"] == 1 and status["tokens"] > 0


def test_the_same_picture_compressed_gives_the_same_answer(node: Any, scene: np.ndarray) -> None:
    coded = cv2.imencode(".png", scene)[1].tobytes()
    node.deliver("image/compressed", CompressedImage(Header(), "png", coded))
    until(lambda: node._watch.stats.fed == 1)
    node.deliver("image", message(scene, "bgr8"))
    until(lambda: node._watch.stats.fed == 2)
    assert node._watch.stats.same == 1, "nothing new was seen in the second"


def test_bad_messages_are_left_out_and_told_once(node: Any, scene: np.ndarray) -> None:
    for _ in range(3):
        node.deliver("image", message(scene, "bayer_rggb8"))
    node.deliver("image/compressed", CompressedImage(Header(), "jpeg", b"nothing"))
    until(lambda: node._mailbox.corrupt == 1)
    warnings = [text for level, text in node.logger.lines if level == "warning"]
    assert len(warnings) == 1 and "bayer_rggb8" in warnings[0]
    assert node._watch.stats.read == 0


def test_too_many_questions_are_refused_and_failures_are_told(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.errors import StateError

    asked: list[str] = []
    go: list[bool] = []

    def ask(question: str, options: object) -> Iterator[Any]:
        asked.append(question)
        until(lambda: bool(go))
        raise StateError("the state went bad")
        yield

    monkeypatch.setattr(node._watch, "ask", ask)
    node.deliver("question", String("0"))
    until(lambda: asked == ["0"])
    for number in range(1, 6):
        node.deliver("question", String(str(number)))
    assert sent(node, "answer") == ["(too busy: 4 questions are waiting)"]
    go.append(True)
    until(lambda: len(sent(node, "answer")) == 6)
    assert asked == ["0", "1", "2", "3", "4"]
    assert sent(node, "answer")[1:] == ["(no answer: the state went bad)"] * 5


def test_it_stops_with_questions_waiting(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(4):
        node.deliver("question", String("How many circles are there?"))
    node.destroy_node()
    assert node.destroyed and not node._worker.is_alive() and node._watch.ended


@pytest.mark.parametrize("stop", [KeyboardInterrupt, fake_ros.ExternalShutdownException])
def test_main_ends_in_order(stop: type[BaseException], demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes: list[Any] = []

    def spin(node: Any) -> None:
        nodes.append(node)
        raise stop

    calls = fake_ros.install(monkeypatch, spin)
    monkeypatch.setattr(fake_ros.Node, "overrides", {"bundle": str(demo_bundle), "threads": 1, "window": 2})
    load("node", monkeypatch).main()
    assert calls == ["init", "shutdown"] and nodes[0].destroyed


def test_a_bundle_that_is_missing_shuts_ros_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.errors import BundleError

    calls = fake_ros.install(monkeypatch)
    monkeypatch.setattr(fake_ros.Node, "overrides", {"bundle": str(tmp_path / "none")})
    with pytest.raises(BundleError):
        load("node", monkeypatch).main()
    assert calls == ["init", "shutdown"]


@pytest.fixture
def colours() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (4, 6, 3), np.uint8)


@pytest.mark.parametrize(
    ("encoding", "made"),
    [
        ("bgr8", lambda bgr: bgr),
        ("rgb8", lambda bgr: bgr[..., ::-1].copy()),
        ("bgra8", lambda bgr: np.dstack([bgr, bgr[..., :1]])),
        ("rgba8", lambda bgr: np.dstack([bgr[..., ::-1], bgr[..., :1]])),
    ],
)
@pytest.mark.parametrize("padding", [0, 5])
def test_colours_arrive_as_they_were(
    encoding: str, made: Any, padding: int, colours: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_bgr = load("images", monkeypatch).to_bgr
    array = made(colours)
    image = to_bgr(message(array, encoding, step=6 * array.shape[2] + padding))
    np.testing.assert_array_equal(image, colours)
    assert image.flags.owndata and image.flags.writeable, "the driver may use its buffer again"


def test_grey_16_bits_and_yuv(colours: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    images = load("images", monkeypatch)
    grey = colours[..., 0].copy()
    for big in (False, True):
        wide = (grey.astype(np.uint16) << 8 | 7).astype(">u2" if big else "<u2")
        np.testing.assert_array_equal(images.to_bgr(message(wide, "mono16", big=big))[..., 1], grey)
    np.testing.assert_array_equal(images.to_bgr(message(grey[..., None], "mono8"))[..., 2], grey)
    flat = np.dstack([np.full((4, 6), 180, np.uint8), np.full((4, 6), 128, np.uint8)])  # Y, then U or V: a light grey
    light = images.to_bgr(message(flat, "yuv422_yuy2"))
    assert light.shape == (4, 6, 3) and light.std() < 2 and 180 < light.mean() < 200
    assert images.seconds(Stamp(3, 250_000_000)) == 3.25


@pytest.mark.parametrize(
    "changed", [{"encoding": "bayer"}, {"height": 5}, {"step": 17}, {"width": 0}, {"data": b""}], ids=str
)
def test_messages_that_contradict_themselves(
    changed: dict[str, Any], colours: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = message(colours, "bgr8")
    vars(wrong).update(changed)
    with pytest.raises(ValueError, match=r"encoding|bytes"):
        load("images", monkeypatch).to_bgr(wrong)


def test_the_package_is_whole() -> None:
    from xml.etree import ElementTree

    package = ElementTree.parse(PACKAGE / "package.xml").getroot()
    assert package.findtext("name") == "visualrwkv_ros"
    needs = {entry.text for entry in package.findall("exec_depend")}
    source = (PACKAGE / "visualrwkv_ros" / "node.py").read_text()
    assert needs == {"rclpy", "sensor_msgs", "std_msgs"} and all(f"from {n}" in source or n == "rclpy" for n in needs)
    assert (PACKAGE / "resource" / "visualrwkv_ros").is_file()
    assert "visualrwkv_ros.node:main" in (PACKAGE / "setup.py").read_text()
