"""Question files, answers compared, lines typed while the camera runs."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from apps.questions import Inbox, Question, is_right, read_questions
from runtime.errors import ConfigError


def write(path: Path, *entries: Any) -> Path:
    path.write_text(json.dumps({"questions": list(entries)}, ensure_ascii=False), encoding="utf-8")
    return path


def test_questions_are_read_in_the_order_of_time(tmp_path: Path) -> None:
    path = write(
        tmp_path / "q.json",
        {"time_s": 3, "question": "现在呢？", "answer": "红色", "earlier_s": [1], "follow_up": True},
        {"time_s": 0.5, "question": "How many?"},
    )
    assert read_questions(path) == [
        Question("How many?", 0.5),
        Question("现在呢？", 3.0, "红色", (1.0,), True),
    ]


@pytest.mark.parametrize(
    ("entry", "wrong"),
    [
        ("What?", "question 1 is What"),
        ({"question": "What?"}, "question 1 is"),
        ({"time_s": 1, "question": "What?", "anwser": "x"}, "anwser"),
        ({"time_s": 1, "question": "  "}, "question '  '"),
        ({"time_s": 1, "question": "What?", "answer": 3}, "answer 3"),
        ({"time_s": -1, "question": "What?"}, "time_s -1"),
        ({"time_s": True, "question": "What?"}, "time_s True"),
        ({"time_s": float("nan"), "question": "What?"}, "time_s nan"),
        ({"time_s": 1, "question": "What?", "earlier_s": 0}, "earlier_s 0"),
        ({"time_s": 1, "question": "What?", "follow_up": "yes"}, "follow_up 'yes'"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, entry: Any, wrong: str) -> None:
    path = write(tmp_path / "q.json", {"time_s": 0, "question": "Fine?"}, entry)
    with pytest.raises(ConfigError, match=wrong):
        read_questions(path)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"questions": []}', b'{"questions": {}}', b"\xff\xfe\x00"])
def test_a_file_without_questions_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "q.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"q\.json"):
        read_questions(tmp_path / "q.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_questions(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("Red.", "red", True),
        (" 红色。", "红色", True),
        ("STOP", "stop", True),
        ("dark red", "red", False),
        ("", "red", False),
        ("3", "13", False),
    ],
)
def test_is_right(answer: str, expected: str, right: bool) -> None:
    assert is_right(answer, expected) is right


def test_inbox_gives_lines_then_ends() -> None:
    inbox = Inbox(io.StringIO("one\n\n  two \n"))
    assert [inbox.get(1.0) for _ in range(3)] == ["one", "", "two"]
    assert not inbox.ended
    assert inbox.get(1.0) is None
    assert inbox.ended
    assert inbox.get(1.0) is None


def test_inbox_does_not_wait_for_a_silent_terminal() -> None:
    read, write_end = os.pipe()
    with os.fdopen(read) as stream, os.fdopen(write_end, "w") as typist:
        inbox = Inbox(stream)
        began = time.monotonic()
        assert inbox.get(0.05) is None
        assert time.monotonic() - began < 1
        assert not inbox.ended
        typist.write("hello\n")
        typist.flush()
        assert inbox.get(2.0) == "hello"
        typist.close()
        assert inbox.get(2.0) is None
        assert inbox.ended


@pytest.mark.parametrize(
    ("typed", "interrupted", "left"),
    [
        ("next\n/stop\nmore\n", True, ["next", "more"]),
        ("next\n/quit\n", True, ["next", "/quit"]),
        ("next\n", False, ["next"]),
        ("", False, []),
    ],
)
def test_an_answer_is_interrupted_and_other_lines_wait(typed: str, interrupted: bool, left: list[str]) -> None:
    inbox = Inbox(io.StringIO(typed))
    time.sleep(0.05)
    assert inbox.interrupted() is interrupted
    assert [inbox.get(1.0) for _ in left] == left
    assert inbox.get(1.0) is None


def test_a_terminal_that_breaks_is_the_end_of_input() -> None:
    class Broken(io.StringIO):
        def __next__(self) -> str:
            raise OSError("the terminal hung up")

    inbox = Inbox(Broken())
    assert inbox.get(1.0) is None
    assert inbox.ended
