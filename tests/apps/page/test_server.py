"""Addresses of the page: its files, its headers, snapshots down and up, who is kept out."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from apps import webcam_qa
from apps.page.rooms import Rooms
from apps.page.server import STATIC, page_app
from runtime import VisualRWKV
from tests.apps.page.conftest import Page
from tests.conftest import ROOT

Scenes = dict[str, np.ndarray]


def snapshot(client: TestClient, page: Page, tab: int = 1) -> bytes:
    answer = client.get("/snapshot", headers={"x-room": page.room, "x-tab": str(tab)})
    assert answer.status_code == 200, answer.text
    return answer.content


def upload(client: TestClient, page: Page, data: bytes) -> Any:
    return client.post("/snapshot", headers={"x-room": page.room}, content=data)


def test_a_downloaded_conversation_goes_on_where_it_was_uploaded(
    client: TestClient, page: Page, scenes: Scenes
) -> None:
    page.show(scenes["star"])
    page.ask("Where is the circle?")
    data = snapshot(client, page)
    assert upload(client, page, data).status_code == 204
    opened = page.until("opened")
    assert [entry["question"] for entry in opened["entries"]] == ["Where is the circle?"]
    assert page.ask("What is at the bottom left?", tab=opened["tab"], camera="none")[0] == "yellow circle"


def test_a_tab_that_watches_can_be_downloaded(client: TestClient, page: Page, scenes: Scenes, tmp_path: Path) -> None:
    page.send("watch", tab=1, camera="page")
    page.show(scenes["star"])
    page.figures(lambda tabs: tabs[1]["fed"] == 1)
    (tmp_path / "a.state").write_bytes(snapshot(client, page))
    assert upload(client, page, (tmp_path / "a.state").read_bytes()).status_code == 204
    assert page.ask("Where is the circle?", tab=page.until("opened")["tab"], camera="none")[0] == "bottom left"


def test_bad_uploads_are_refused_and_say_why(client: TestClient, page: Page, scenes: Scenes) -> None:
    page.show(scenes["star"])
    page.ask("Where is the circle?")
    data = snapshot(client, page)
    changed = bytearray(data)
    changed[-100] ^= 1
    for bad in (b"", b"not a state", data[: len(data) // 2], bytes(changed)):
        answer = upload(client, page, bad)
        assert answer.status_code == 422
        message = answer.json()["error"]["message"]
        assert "this file" in message
        assert "/tmp" not in message, "where the server keeps files is nobody's business"
    other = data.replace(b'"fingerprint":"', b'"fingerprint":"0', 1)
    assert upload(client, page, other).status_code == 422
    assert client.post("/snapshot", headers={"x-room": "guess"}, content=data).status_code == 422
    assert client.get("/snapshot", headers={"x-room": page.room, "x-tab": "9" * 30}).status_code == 422
    page.send("act", tab=1, what="fork")
    assert page.until("forked")["tab"] == 2, "no tab was opened by any of these"


def test_an_upload_without_end_is_cut_off(client: TestClient, page: Page) -> None:
    def flood() -> Iterator[bytes]:
        for _ in range(64):
            yield b"x" * (1 << 20)

    answer = client.post("/snapshot", headers={"x-room": page.room}, content=flood())
    assert answer.status_code == 413


def test_every_answer_has_the_headers_and_the_page_obeys_them(client: TestClient) -> None:
    class Scripts(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            names = dict(attrs)
            assert not any(name.startswith("on") or name == "style" for name in names), (tag, attrs)
            assert tag not in ("style", "iframe", "base"), tag
            assert tag != "script" or names.get("src"), "no script in the page itself"
            for name in ("src", "href"):
                assert not re.match(r"(?i)\s*(\w+:|//)", names.get(name) or ""), f"{tag} loads {names[name]}"

    for path in ("/", "/ready", "/static/page.js", "/static/nothing", "/snapshot", "/favicon.ico"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
    html = client.get("/").text
    Scripts().feed(html)
    for file in re.findall(r'(?:src|href)="(static/[^"]+)"', html):
        assert client.get(f"/{file}").status_code == 200, file
    for file in STATIC.iterdir():
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", file.read_text()), file.name


@pytest.mark.parametrize(
    "path", ["/static/../server.py", "/static/..%2fserver.py", "/static/%2e%2e/server.py", "/etc/passwd"]
)
def test_only_the_page_s_files_are_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_with_a_token_nothing_answers_without_it(rooms: Rooms) -> None:
    token = "t0ken-of-more-than-16"
    with TestClient(page_app(rooms, token=token), base_url="http://robot.local", follow_redirects=False) as client:
        for path in ("/", "/ready", "/static/page.js", "/snapshot"):
            assert client.get(path).status_code == 401
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("ws://robot.local/socket"):
            pass
        answer = client.get(f"/?token={token}", headers={"accept": "text/html"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert client.get("/static/page.js").status_code == 200, "the cookie is enough from here on"
        with client.websocket_connect("ws://robot.local/socket") as socket:
            assert Page(socket).welcome["type"] == "welcome"


def test_other_pages_cannot_use_the_server(client: TestClient) -> None:
    evil = {"origin": "https://evil.example"}
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("ws://127.0.0.1:8000/socket", headers=evil):
        pass
    answer = client.post("/snapshot", content=b"", headers=evil)
    assert answer.status_code == 403
    assert client.get("/", headers={"host": "evil.example"}).status_code == 403


def test_the_command_line_serves_until_control_c(demo_bundle: Path) -> None:
    argv = [sys.executable, "-m", "apps.webcam_qa", "--serve", "--port", "0", "--threads", "1", "--bundle"]
    # A shell that starts the tests in the background has SIGINT ignored, and Python then leaves it so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        server = subprocess.Popen(
            [*argv, str(demo_bundle)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        [address] = re.findall(r"http://127\.0\.0\.1:\d+/", line)
        with urllib.request.urlopen(address, timeout=30) as page:
            assert b"VisualRWKV" in page.read()
        server.send_signal(signal.SIGINT)
        out, errors = server.communicate(timeout=60)
    finally:
        server.kill()
    assert (server.returncode, out, errors) == (0, "stopped\n", "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--serve", "--host", "0.0.0.0"], "there is no token"),
        (["--serve", "--host", "0.0.0.0", "--token", "short"], "can be guessed"),
        (["--port", "8000"], "add --serve"),
        (["--serve", "--question", "Why?", "--every", "3"], "--question and --every with --serve"),
    ],
)
def test_contradictions_are_refused_before_the_model_is_loaded(arguments: list[str], says: str, capsys: Any) -> None:
    assert webcam_qa.main(arguments, load=_never) == 2
    assert says in capsys.readouterr().err


def test_the_token_may_come_from_the_environment(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(webcam_qa.KEY, "guessed")
    assert webcam_qa.main(["--serve", "--host", "0.0.0.0"], load=_never) == 2
    assert "a token of 7 characters" in capsys.readouterr().err
    monkeypatch.setenv(webcam_qa.KEY, "a-token-that-is-long-enough")
    assert webcam_qa.main(["--serve", "--host", "0.0.0.0", "--source", "nothing.mp4"], load=_never) == 1
    assert "there is no nothing.mp4" in capsys.readouterr().err


def _never(*_: Any, **__: Any) -> VisualRWKV:
    raise AssertionError("loaded")
