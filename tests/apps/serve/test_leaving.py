"""Clients that leave, answers that take too long, a server that stops: the slot is free at the next token."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import VisualRWKV
from tests.apps.serve.conftest import MODEL, Serve, Server
from tests.runtime.fake_model import fake_model

LONG = 8000  # tokens: the fake model never stops by itself


class Gate:
    """Counts the steps of a model, and holds them up when closed."""

    def __init__(self, model: VisualRWKV) -> None:
        self.steps, self.pause_s = 0, 0.0
        self.open, self.held = threading.Event(), threading.Event()
        self.open.set()
        engine = model.engine
        for name in ("advance", "step"):
            setattr(engine, name, self._held_up(getattr(engine, name)))

    def _held_up(self, run: Any) -> Any:
        def held_up(*args: Any) -> np.ndarray:
            self.steps += 1
            time.sleep(self.pause_s)
            if not self.open.is_set():
                self.held.set()
                assert self.open.wait(30)
            return run(*args)

        return held_up

    def close(self) -> None:
        """Return when a step is held up."""
        self.held.clear()
        self.open.clear()
        assert self.held.wait(20)


@pytest.fixture
def model(tmp_path: Path) -> Iterator[VisualRWKV]:
    with fake_model(tmp_path / "bundle", undo_bytes=0) as model:
        yield model


@pytest.fixture
def gate(model: VisualRWKV) -> Iterator[Gate]:
    gate = Gate(model)
    gate.pause_s = 1e-3
    yield gate
    gate.open.set()


def ask(server: Server, *, stream: bool, question: str = "Hello") -> socket.socket:
    """Send a request by hand; the connection is the caller's."""
    host, port = server.address.removeprefix("http://").split(":")
    body = json.dumps(
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": LONG,
            "stream": stream,
        }
    )
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection((host, int(port)), 30)
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    return connection


def read_events(connection: socket.socket, count: int) -> bytes:
    got = b""
    while got.count(b"data: ") < count:
        piece = connection.recv(4096)
        assert piece, got
        got += piece
    return got


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_frees_the_slot_within_one_token(serve: Serve, model: VisualRWKV, gate: Gate, stream: bool) -> None:
    server = serve(model, slots=1)
    connection = ask(server, stream=stream)
    if stream:
        read_events(connection, 4)
    else:
        server.wait("answering", 1)
    gate.close()
    steps = gate.steps  # the last of them is being computed
    connection.close()
    server.wait("disconnects_total", 1)
    assert server.metric("answering") == 1
    gate.open.set()
    server.wait("answering", 0)
    assert gate.steps == steps
    assert server.metric("states ") == 0  # half an answer is nothing to go on from
    status, answer = server.chat("Next", max_tokens=3)
    assert (status, len(answer["choices"][0]["message"]["content"])) == (200, 3)


def test_who_leaves_the_line_was_never_there(serve: Serve, model: VisualRWKV, gate: Gate) -> None:
    server = serve(model, slots=1)
    first, second, third = (ask(server, stream=True) for _ in range(3))
    read_events(first, 4)
    server.wait("waiting", 2)
    second.close()
    server.wait("waiting", 1)
    first.close()
    read_events(third, 4)
    assert server.metric("answering") == 1
    third.close()
    server.wait("answering", 0)


def test_others_go_on(serve: Serve, model: VisualRWKV, gate: Gate) -> None:
    server = serve(model, slots=2)
    wanted = server.chat("Stay", max_tokens=200)[1]["choices"][0]["message"]["content"]
    leaving, found = ask(server, stream=True), []
    read_events(leaving, 4)
    staying = threading.Thread(target=lambda: found.append(server.chat("Stay", max_tokens=200)))
    staying.start()
    server.wait("answering", 2)
    leaving.close()
    staying.join(60)
    assert found[0][1]["choices"][0]["message"]["content"] == wanted
    server.wait("answering", 0)


def test_an_answer_may_take_so_long(serve: Serve, model: VisualRWKV, gate: Gate) -> None:
    server = serve(model, slots=1, answer_s=0.3)
    assert server.refused("Hello", max_tokens=LONG) == (504, "timeout")
    with ask(server, stream=True) as connection:
        got = b""
        while piece := connection.recv(65536):
            got += piece
            if b'"timeout"' in got:
                break
    events = [line[6:] for line in got.split(b"\n") if line.startswith(b"data: ")]
    assert json.loads(events[-1])["error"]["code"] == "timeout"
    server.wait("answering", 0)
    assert server.metric("timeouts_total") == 2


def test_the_line_is_bounded(serve: Serve, model: VisualRWKV, gate: Gate) -> None:
    server = serve(model, slots=1, waiting=1)
    first, second = ask(server, stream=True), ask(server, stream=True)
    server.wait("waiting", 1)
    status, _, headers = server.call("POST", "/v1/chat/completions", {"any": "thing"})
    assert status == 429 and 1 <= int(headers["retry-after"]) <= 60
    large = b"x" * 1_000_000  # read and dropped: its sender sees the answer, not a broken pipe
    status, found, _ = server.call("POST", "/v1/chat/completions", raw=large)
    assert (status, found["error"]["code"]) == (429, "too_many_requests")
    assert server.call("GET", "/healthz")[0] == 200
    first.close()
    second.close()
    server.wait("answering", 0)


def test_nobody_waits_for_ever(serve: Serve, model: VisualRWKV, gate: Gate) -> None:
    server = serve(model, slots=1, queue_s=0.1)
    with ask(server, stream=True) as first:
        read_events(first, 2)
        assert server.refused("Hello") == (429, "too_many_requests")
        assert server.metric("waiting") == 0
    server.wait("answering", 0)


def test_a_server_that_stops_says_so(model: VisualRWKV, gate: Gate) -> None:
    from apps.serve.app import create_app
    from apps.serve.settings import Settings
    from apps.web.bind import background

    app = create_app(model, Settings(name=MODEL, slots=1))
    with background(app, stopping=lambda: app.stop(0.2)) as address:
        connection = ask(Server(address), stream=True)
        got = read_events(connection, 4)
    with connection:
        while piece := connection.recv(65536):
            got += piece
    assert b'"code": "stopping"' in got and b"[DONE]" not in got
