"""The page on the demo model, spoken to as a browser does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("starlette", reason='the page needs the server packages: pip install ".[serve]"')

from starlette.testclient import TestClient, WebSocketTestSession

from apps.page.cameras import encode
from apps.page.rooms import Rooms
from apps.page.server import page_app
from runtime import GenerateOptions, VisualRWKV
from tests.conftest import ROOT

SAMPLE = ROOT / "apps" / "demo" / "sample.mp4"


@pytest.fixture(scope="session")
def demo(demo_bundle: Path) -> Iterator[VisualRWKV]:
    with VisualRWKV.load(demo_bundle, threads=1) as model:
        yield model


@pytest.fixture(scope="session")
def scenes() -> dict[str, np.ndarray]:
    """Two frames of the sample video: a star over a yellow circle at the bottom left, and a green 3 at night."""
    capture = cv2.VideoCapture(str(SAMPLE))
    frames = [capture.read()[1] for _ in range(110)]
    capture.release()
    return {"star": frames[8], "three": frames[88]}


def connect(client: TestClient) -> WebSocketTestSession:
    """Open the page's WebSocket, to be used in a `with`."""
    return client.websocket_connect("ws://127.0.0.1:8000/socket")


def wait_for(ready: Callable[[], Any]) -> Any:
    """Return what `ready` returns once that is true."""
    end = time.monotonic() + 60
    while not (value := ready()):
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)
    return value


class Page:
    """One open WebSocket."""

    def __init__(self, socket: WebSocketTestSession, room: str = "") -> None:
        self.socket = socket
        self.send("hello", room=room)
        self.welcome = self.next()
        self.room: str = self.welcome.get("room", "")
        self.tabs: dict[int, dict[str, Any]] = {tab["tab"]: tab for tab in self.welcome.get("tabs", [])}

    def send(self, kind: str, **message: Any) -> None:
        self.socket.send_text(json.dumps({"type": kind, **message}))

    def show(self, image: np.ndarray) -> None:
        """Send a frame, as the page's camera does."""
        self.socket.send_bytes(encode(image, 512, 90))

    def next(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.socket.receive_text())
        if message["type"] == "figures":
            self.tabs = {tab["tab"]: tab for tab in message["tabs"]}
        return message

    def until(self, *kinds: str, **wanted: Any) -> dict[str, Any]:
        """Read on to a message of one of these types that says so; errors nobody waits for fail."""
        while True:
            message = self.next()
            if message["type"] in kinds and wanted.items() <= message.items():
                return message
            assert message["type"] != "error", message

    def figures(self, good: Callable[[dict[int, dict[str, Any]]], bool]) -> dict[int, dict[str, Any]]:
        """Read on until the tabs are as wanted."""
        while not good(self.tabs):
            assert self.next()["type"] != "error"
        return self.tabs

    def ask(self, text: str, tab: int = 1, camera: str = "page") -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Ask; return the answer, what was said when it was taken in, and the end."""
        self.send("ask", tab=tab, text=text, camera=camera)
        asked, said = self.until("asked", tab=tab), ""
        while (message := self.until("text", "done", tab=tab))["type"] == "text":
            said += message["text"]
        return said, asked, message


@pytest.fixture
def rooms(demo: VisualRWKV) -> Rooms:
    return Rooms(demo, GenerateOptions(max_tokens=32))


@pytest.fixture
def client(rooms: Rooms) -> Iterator[TestClient]:
    with TestClient(page_app(rooms), base_url="http://127.0.0.1:8000") as client:
        yield client


@pytest.fixture
def page(client: TestClient) -> Iterator[Page]:
    with connect(client) as socket:
        yield Page(socket)
