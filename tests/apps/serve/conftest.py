"""Servers to talk to: a model behind a real port."""

from __future__ import annotations

import base64
import importlib.util
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runtime import VisualRWKV

HERE = Path(__file__).parent
INSTALLED = all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn"))
# Without the server packages there is nothing to test; test_installed.py says so.
collect_ignore = [] if INSTALLED else [f.name for f in HERE.glob("test_*.py") if f.name != "test_installed.py"]

SAMPLE = HERE.parents[2] / "apps" / "demo" / "sample.mp4"
MODEL = "model"  # what the served model is called here


class Server:
    """An address, and how to call it by hand."""

    def __init__(self, address: str) -> None:
        self.address = address

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        raw: bytes | None = None,
    ) -> tuple[int, Any, dict[str, str]]:
        """Return status, JSON (or text) and headers."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **(headers or {})}
        request = urllib.request.Request(self.address + path, data, sent, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                status, text, found = reply.status, reply.read().decode(), reply.headers
        except urllib.error.HTTPError as error:
            with error:
                status, text, found = error.code, error.read().decode(), error.headers
        lower = {name.lower(): value for name, value in found.items()}
        return status, json.loads(text) if "json" in lower.get("content-type", "") else text, lower

    def chat(self, *messages: Any, headers: dict[str, str] | None = None, **fields: Any) -> tuple[int, Any]:
        """Ask; strings are the user's messages."""
        said = [{"role": "user", "content": m} if isinstance(m, str) else m for m in messages]
        body = {"model": MODEL, "messages": said, **fields}
        return self.call("POST", "/v1/chat/completions", body, headers=headers)[:2]

    def refused(self, *messages: Any, **fields: Any) -> tuple[int, str]:
        """Ask what is refused: return status and code."""
        status, found = self.chat(*messages, **fields)
        assert set(found) == {"error"} and set(found["error"]) == {"message", "type", "param", "code"}
        return status, found["error"]["code"]

    def metric(self, name: str) -> float:
        """A number of /metrics."""
        text = self.call("GET", "/metrics")[1]
        return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"vrwkv_server_{name}"))

    def wait(self, name: str, value: float) -> None:
        """Wait until a number of /metrics is `value`."""
        end = time.monotonic() + 20
        while self.metric(name) != value:
            assert time.monotonic() < end, f"{name} is {self.metric(name)}"
            time.sleep(0.005)


Serve = Callable[..., Server]


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    """Serve a model, with settings; until the module's tests are over."""
    from apps.serve.app import create_app
    from apps.serve.settings import Settings
    from apps.web.bind import background

    with ExitStack() as stack:

        def run(model: VisualRWKV, **settings: Any) -> Server:
            app = create_app(model, Settings(**{"name": MODEL, **settings}))
            return Server(stack.enter_context(background(app)))

        yield run


@pytest.fixture(scope="session")
def demo(demo_bundle: Path) -> Iterator[VisualRWKV]:
    """The demo model, as the server loads it."""
    with VisualRWKV.load(demo_bundle, threads=1, undo_bytes=0) as model:
        yield model


@pytest.fixture(scope="module")
def server(serve: Serve, demo: VisualRWKV) -> Server:
    """The demo model, served with the default settings."""
    return serve(demo)


def frame_at(seconds: float) -> np.ndarray:
    """A frame of the sample video."""
    capture = cv2.VideoCapture(str(SAMPLE))
    capture.set(cv2.CAP_PROP_POS_MSEC, 1000 * seconds)
    found, frame = capture.read()
    capture.release()
    assert found
    return frame


def data_url(picture: np.ndarray, kind: str = "png") -> str:
    data = cv2.imencode(f".{kind}", picture)[1].tobytes()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def show(text: str, *urls: str) -> dict[str, Any]:
    """A message of the user with pictures."""
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}


def said(text: str) -> dict[str, Any]:
    """A message of the model."""
    return {"role": "assistant", "content": text}
