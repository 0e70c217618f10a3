"""The WebSocket: what a page asks for happens, what it should not ask for is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from apps.page.cameras import FRAME_BYTES, encode
from apps.page.room import MAX_TABS
from apps.page.rooms import Rooms
from apps.page.server import page_app
from runtime import GenerateOptions, VisualRWKV
from runtime.errors import StateError
from runtime.guard import Watchdog
from tests.apps.page.conftest import Page, connect, wait_for

Scenes = dict[str, np.ndarray]


def test_a_page_is_welcomed_with_all_it_needs(page: Page) -> None:
    welcome = page.welcome
    assert welcome["type"] == "welcome"
    assert not welcome["known"]
    assert welcome["model"]["precision"] == "int8"
    assert "drawn scenes only" in welcome["about"]
    assert welcome["robot"] == ""
    assert [tab["name"] for tab in welcome["tabs"]] == ["Main"]
    assert len(page.room) >= 32, "the key of a room must not be guessed"


def test_the_answer_streams_with_its_frame_and_figures(page: Page, scenes: Scenes) -> None:
    page.show(scenes["star"])
    page.send("ask", tab=1, text="Where is the circle?", camera="page")
    assert page.until("ack")
    asked = page.until("asked")
    assert asked["picture"].startswith("data:image/jpeg;base64,")
    assert asked["kept"]
    pieces = [page.until("text", "done")]
    while pieces[-1]["type"] == "text":
        pieces.append(page.until("text", "done"))
    assert "".join(piece.get("text", "") for piece in pieces) == "bottom left"
    assert len(pieces) >= 3, "the text comes in pieces"
    assert pieces[-1]["finish"] == "stop"
    figures = pieces[-1]["figures"]
    assert 0 < figures["ttft_s"] < 60
    assert figures["tokens_per_s"] > 0
    assert figures["tokens"] == 3
    tab = page.figures(lambda tabs: tabs[1]["undo"] == 1)[1]
    assert tab["tokens"] > 16
    assert tab["pictures"] == 1


def test_a_frame_is_shown_once_and_the_newest_counts(page: Page, scenes: Scenes) -> None:
    page.show(scenes["star"])
    page.ask("How many circles are there?")
    page.ask("How many circles are there?")
    assert page.figures(lambda tabs: tabs[1]["undo"] == 2)[1]["pictures"] == 1
    page.show(scenes["star"])
    page.show(scenes["three"])
    assert page.ask("Which number is in the picture?")[0] == "3"
    assert page.figures(lambda tabs: tabs[1]["undo"] == 3)[1]["pictures"] == 2


def test_undo_takes_the_state_back_and_fork_leaves_it(page: Page, scenes: Scenes) -> None:
    page.show(scenes["star"])
    page.ask("Where is the circle?")
    before = page.figures(lambda tabs: tabs[1]["undo"] == 1)[1]
    page.send("act", tab=1, what="fork")
    forked = page.until("forked")
    assert (forked["from"], forked["tab"], forked["undo"]) == (1, 2, 0)
    page.show(scenes["three"])
    assert page.ask("Which number is in the picture?", tab=2)[0] == "3"
    assert page.figures(lambda tabs: tabs[2]["undo"] == 1)[1]["tokens"] == before["tokens"]
    page.send("act", tab=2, what="undo")
    page.until("undone", tab=2)
    assert page.figures(lambda tabs: tabs[2]["undo"] == 0)[2]["tokens"] == before["tokens"]
    assert page.ask("What is at the bottom left?", tab=2, camera="none")[0] == "yellow circle", "it remembers the star"
    page.send("act", tab=2, what="close")
    page.until("closed", tab=2)
    assert list(page.figures(lambda tabs: len(tabs) == 1)) == [1]


def test_watching_feeds_the_state_and_questions_leave_no_trace(page: Page, scenes: Scenes) -> None:
    page.send("watch", tab=1, camera="page")
    page.show(scenes["three"])
    page.figures(lambda tabs: tabs[1]["fed"] == 1)
    page.show(scenes["star"])
    fed = page.figures(lambda tabs: tabs[1]["fed"] == 2)[1]
    said, asked, _ = page.ask("Where is the circle?")
    assert said == "bottom left"
    assert asked["picture"]
    assert not asked["kept"]
    page.send("act", tab=1, what="undo")
    assert "stop watching" in page.until("error")["hint"]
    page.send("act", tab=1, what="fork")
    assert page.until("forked")["tokens"] == fed["tokens"]
    page.send("watch", tab=1, camera="none")
    tab = page.figures(lambda tabs: tabs[1]["watching"] == "none")[1]
    assert tab["tokens"] == fed["tokens"]
    assert (tab["fed"], tab["undo"]) == (2, 0)
    assert page.ask("What is at the bottom left?", camera="none")[0] == "yellow circle"


def test_a_model_that_wants_the_question_first_is_watched_with_a_window(demo: VisualRWKV, scenes: Scenes) -> None:
    rooms = Rooms(demo, GenerateOptions(), padding="left16")
    with TestClient(page_app(rooms)) as client, connect(client) as socket:
        page = Page(socket)
        page.send("watch", tab=1, camera="page")
        page.show(scenes["star"])
        tab = page.figures(lambda tabs: tabs[1]["fed"] == 1)[1]
        assert (tab["window"], tab["tokens"]) == (4, 0)
        assert page.ask("Where is the circle?")[0] == "bottom left"


def test_start_over_forgets_and_goes_on_watching(page: Page, scenes: Scenes) -> None:
    page.send("watch", tab=1, camera="page")
    page.show(scenes["three"])
    page.figures(lambda tabs: tabs[1]["fed"] == 1)
    page.send("act", tab=1, what="reset")
    page.until("cleared")
    page.show(scenes["star"])
    tab = page.figures(lambda tabs: tabs[1]["fed"] >= 2)[1]
    assert tab["watching"] == "page"
    assert tab["pictures"] <= 2, "what was seen before is gone"


def test_stop_ends_an_answer_and_the_conversation_goes_on(demo: VisualRWKV, scenes: Scenes) -> None:
    endless = Rooms(demo, GenerateOptions(max_tokens=100_000, ignore_stop=True))
    with TestClient(page_app(endless)) as client, connect(client) as socket:
        page = Page(socket)
        page.show(scenes["star"])
        page.send("ask", tab=1, text="Where is the circle?", camera="page")
        page.until("text")
        page.send("ask", tab=1, text="And now?", camera="page")
        assert "answering already" in page.until("error")["found"]
        page.send("act", tab=1, what="stop")
        assert page.until("done")["finish"] == "cancelled"
        page.send("act", tab=1, what="undo")
        page.until("undone")


def test_a_page_that_leaves_ends_its_answers(demo: VisualRWKV, scenes: Scenes) -> None:
    endless = Rooms(demo, GenerateOptions(max_tokens=1_000_000, ignore_stop=True))
    with TestClient(page_app(endless)) as client:
        with connect(client) as socket:
            page = Page(socket)
            page.show(scenes["star"])
            page.send("ask", tab=1, text="Where is the circle?", camera="page")
            page.until("text")
            socket.close()
            room = endless.find(page.room)
            assert room is not None
            wait_for(lambda: not room.tabs[1].answering)
        with connect(client) as socket:
            again = Page(socket, page.room)
            assert again.welcome["known"]
            [tab] = again.welcome["tabs"]
            assert not tab["answering"]
            [entry] = tab["entries"]
            assert (entry["question"], entry["finish"]) == ("Where is the circle?", "cancelled")
            assert tab["undo"] == 1
            again.send("act", tab=1, what="undo")
            again.until("undone")


def test_a_page_that_comes_back_finds_its_tabs(client: TestClient, scenes: Scenes) -> None:
    with connect(client) as socket:
        page = Page(socket)
        page.show(scenes["star"])
        page.ask("Where is the circle?")
        page.send("act", tab=1, what="fork")
        page.until("forked")
    with connect(client) as socket:
        again = Page(socket, page.room)
        assert again.welcome["known"]
        assert [len(tab["entries"]) for tab in again.welcome["tabs"]] == [1, 1]
        assert again.welcome["tabs"][1]["entries"][0]["answer"] == "bottom left"
        assert again.ask("What is at the bottom left?", tab=2, camera="none")[0] == "yellow circle"
    with connect(client) as socket:
        assert not Page(socket, "a-key-of-another-server").welcome["known"]


def test_a_second_window_takes_the_conversation_over(client: TestClient) -> None:
    with connect(client) as first:
        page = Page(first)
        with connect(client) as second:
            assert Page(second, page.room).welcome["known"]
            with pytest.raises(WebSocketDisconnect) as closed:
                while True:
                    page.next()
            assert closed.value.code == 4001


def test_without_a_free_room_a_page_is_told_to_wait(demo: VisualRWKV) -> None:
    rooms = Rooms(demo, GenerateOptions(), most=1)
    with TestClient(page_app(rooms)) as client:
        with connect(client) as socket:
            first = Page(socket)
            with connect(client) as other:
                assert "1 pages are open already" in Page(other).welcome["found"]
                with pytest.raises(WebSocketDisconnect) as closed:
                    other.receive_text()
                assert closed.value.code == 4003
        with connect(client) as socket:  # the first has left: its place is given away
            assert not Page(socket).welcome["known"]
        with connect(client) as socket:
            assert not Page(socket, first.room).welcome["known"]
        assert len(rooms) == 1


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("nonsense", "JSONDecodeError"),
        ("[1]", "message that cannot be read"),
        ('{"type": "ask"}', "missing keys"),
        ('{"type": "dance", "tab": 1}', "KeyError"),
        ('{"type": "act", "tab": 1, "what": "rm"}', "message.what"),
        ('{"type": "ask", "tab": true, "text": "Why?", "camera": "none"}', "message.tab"),
        ('{"type": "ask", "tab": 7, "text": "Why?", "camera": "none"}', "this tab is closed"),
        ('{"type": "ask", "tab": 1, "text": "  ", "camera": "none"}', "a question of 2 characters"),
        ('{"type": "ask", "tab": 1, "text": "\\ud800", "camera": "none"}', "half a character"),
        ('{"type": "ask", "tab": 1, "text": "Why?", "camera": "robot"}', "without a camera"),
        ('{"type": "watch", "tab": 1, "camera": "robot"}', "without a camera"),
        ("[" * 19_000, "message that cannot be read"),
        ('"' + "x" * 30_000 + '"', "30002 characters"),
    ],
)
def test_bad_messages_are_answered_and_change_nothing(page: Page, message: str, says: str) -> None:
    page.socket.send_text(message)
    error = page.until("error")
    assert says in error["found"] + error["wanted"] + error["hint"]
    page.send("act", tab=1, what="fork")
    assert page.until("forked")["tab"] == 2


def test_bad_pictures_are_answered(page: Page, scenes: Scenes) -> None:
    page.socket.send_bytes(b"GIF89a no picture")
    page.until("ack")
    page.send("ask", tab=1, text="What is this?", camera="page")
    assert "no JPEG" in page.until("error")["found"]
    header = bytearray(encode(scenes["star"], 64, 50))
    at = header.index(b"\xff\xc0") + 5  # height and width, as the file claims them
    header[at : at + 4] = b"\x0f\xa0\x0f\xa0"
    page.socket.send_bytes(bytes(header))
    page.send("ask", tab=1, text="What is this?", camera="page")
    assert "4000 x 4000" in page.until("error")["found"]
    page.socket.send_bytes(b"\xff" * (FRAME_BYTES + 1))
    assert "at most" in page.until("error")["wanted"]
    page.show(scenes["star"])
    assert page.ask("Where is the circle?")[0] == "bottom left"
    assert page.figures(lambda tabs: tabs[1]["undo"] == 1), "the failed questions are nothing to undo"


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), StateError("the engine is gone")])
def test_an_engine_that_fails_is_mended_by_undo(
    page: Page, demo: VisualRWKV, scenes: Scenes, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    page.show(scenes["star"])
    page.ask("How many circles are there?")
    with monkeypatch.context() as broken:
        broken.setattr(demo.scheduler, "advance", fail)
        page.send("ask", tab=1, text="Where is the circle?", camera="page")
        told = page.until("error")
        assert told["kept"], "half an answer stays to be seen, and to be taken back"
        assert "RuntimeError" in told["found"] or "engine is gone" in told["found"]
    page.send("ask", tab=1, text="Where is the circle?", camera="page")
    told = page.until("error")
    assert "broke in the middle of a step" in told["found"]
    assert not told["kept"]
    page.send("act", tab=1, what="undo")
    page.until("undone")
    assert page.ask("Where is the circle?")[0] == "bottom left"
    assert page.figures(lambda tabs: tabs[1]["undo"] == 2)


def test_a_state_that_went_bad_is_as_before(page: Page, scenes: Scenes, monkeypatch: pytest.MonkeyPatch) -> None:
    page.show(scenes["star"])
    page.ask("How many circles are there?")
    before = page.figures(lambda tabs: tabs[1]["undo"] == 1)[1]["tokens"]
    with monkeypatch.context() as bad:
        bad.setattr(Watchdog, "fault", lambda self, state: "wkv is not finite")
        page.send("ask", tab=1, text="Where is the circle?", camera="page")
        told = page.until("error")
    assert "the state went bad" in told["found"]
    assert not told["kept"]
    tab = page.figures(lambda tabs: not tabs[1]["answering"])[1]
    assert (tab["tokens"], tab["undo"]) == (before, 1)
    assert page.ask("Where is the circle?")[0] == "bottom left"


def test_asking_before_the_camera_has_shown_anything(page: Page) -> None:
    page.send("ask", tab=1, text="What is this?", camera="page")
    error = page.until("error")
    assert "no picture has come" in error["found"]
    assert error["question"] == "What is this?", "the page gives it back to the person"


def test_tabs_are_limited_and_one_stays(page: Page) -> None:
    page.send("act", tab=1, what="close")
    assert "only tab" in page.until("error")["found"]
    for _ in range(MAX_TABS - 1):
        page.send("act", tab=1, what="fork")
        page.until("forked")
    page.send("act", tab=1, what="fork")
    assert f"{MAX_TABS} tabs are open" in page.until("error")["found"]
    page.send("act", tab=1, what="undo")
    assert "nothing to undo" in page.until("error")["found"]


@pytest.mark.parametrize("first", ['{"type": "more"}', "not json", b"\xff\xd8"])
def test_who_does_not_say_hello_is_shown_out(client: TestClient, first: Any) -> None:
    with connect(client) as socket:
        socket.send_bytes(first) if isinstance(first, bytes) else socket.send_text(first)
        with pytest.raises(WebSocketDisconnect) as closed:
            json.loads(socket.receive_text())
        assert closed.value.code == 4008
