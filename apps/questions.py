"""Questions: written in a file with the time they are asked at, or typed while the camera runs."""

from __future__ import annotations

import json
import queue
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from runtime.errors import ConfigError

KEYS = {"time_s", "question", "answer", "earlier_s", "follow_up"}
FORM = '{"questions": [{"time_s": 1.0, "question": "What colour is the ball?", "answer": "red"}]}'


@dataclass(frozen=True)
class Question:
    """A question and, where they are known, the moment it is about and its true answer.

    `earlier_s` are moments whose frames are shown before the one at `time_s` ("what has changed?").
    `follow_up` goes on in the conversation of the question before.
    """

    text: str
    time_s: float | None = None
    expected: str | None = None
    earlier_s: tuple[float, ...] = ()
    follow_up: bool = False


def read_questions(path: Path) -> list[Question]:
    """Read a question file, in the order of time; raises `ConfigError` naming the entry that is wrong."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as questions: {error}", wanted=FORM) from None
    entries = data.get("questions") if isinstance(data, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path} holds no list of questions", wanted=FORM)
    return sorted((_question(e, f"{path}: question {i}") for i, e in enumerate(entries)), key=_moment)


def is_right(answer: str, expected: str) -> bool:
    """True when both say the same, leaving aside case, outer spaces and a full stop at the end."""
    return _plain(answer) == _plain(expected)


class Inbox:
    """Lines typed (or piped) into a text stream, read in a thread so that the camera is never waited for."""

    def __init__(self, stream: TextIO) -> None:
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._kept: list[str] = []
        self.ended = False
        threading.Thread(target=self._read, args=(stream,), name="questions", daemon=True).start()

    def get(self, timeout: float) -> str | None:
        """Return the next line without its end, or None when there is none within `timeout` seconds."""
        if self._kept:
            return self._kept.pop(0)
        if self.ended:
            return None
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            return None
        self.ended = line is None
        return line

    def interrupted(self) -> bool:
        """True when /stop or /quit was typed while an answer streams; other lines wait their turn."""
        while not self.ended:
            try:
                line = self._lines.get_nowait()
            except queue.Empty:
                break
            if line is None:
                self.ended = True
            elif line == "/stop":
                return True
            else:
                self._kept.append(line)
        return "/quit" in self._kept

    def _read(self, stream: TextIO) -> None:
        try:
            for line in stream:
                self._lines.put(line.strip())
        except (OSError, ValueError):  # a closed or detached terminal is the end of the input
            pass
        self._lines.put(None)


def _question(entry: Any, where: str) -> Question:
    if not isinstance(entry, dict) or set(entry) - KEYS or not {"time_s", "question"} <= set(entry):
        raise ConfigError(f"{where} is {str(entry)[:80]}", wanted=f"keys among {sorted(KEYS)}; {FORM}")
    text, expected, follow_up = entry["question"], entry.get("answer"), entry.get("follow_up", False)
    earlier, moment = entry.get("earlier_s", []), entry["time_s"]
    if not isinstance(text, str) or not text.strip() or not isinstance(expected, str | None):
        raise ConfigError(f"{where} has question {text!r} and answer {expected!r}", wanted="texts")
    if not isinstance(earlier, list) or not all(_is_moment(t) for t in [*earlier, moment]):
        raise ConfigError(f"{where} has time_s {moment!r} and earlier_s {earlier!r}", wanted="seconds from 0")
    if not isinstance(follow_up, bool):
        raise ConfigError(f"{where} has follow_up {follow_up!r}", wanted="true or false")
    return Question(text, float(moment), expected, tuple(float(t) for t in earlier), follow_up)


def _is_moment(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


def _moment(question: Question) -> float:
    return question.time_s or 0.0


def _plain(text: str) -> str:
    return text.strip().rstrip(".。!！ ").casefold()
