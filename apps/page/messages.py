"""What a page may send over its WebSocket: JSON texts, checked before anything is done. Pictures come as bytes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from runtime.errors import InputError, SchemaError, VisualRWKVError
from runtime.spec import parse

QUESTION_CHARS = 2000
MESSAGE_CHARS = 20_000  # of any text, before it is read

Camera = Literal["page", "robot", "none"]


@dataclass(frozen=True)
class Hello:
    """The first message: `room` of an earlier welcome, or an empty text."""

    room: str


@dataclass(frozen=True)
class Ask:
    """A question about the newest picture of `camera`."""

    tab: int
    text: str
    camera: Camera


@dataclass(frozen=True)
class Watch:
    """From now on the newest pictures of `camera` are fed to a tab's state; "none" ends that."""

    tab: int
    camera: Camera


@dataclass(frozen=True)
class Act:
    """One of the things that need only a tab."""

    tab: int
    what: Literal["stop", "undo", "fork", "reset", "close"]


@dataclass(frozen=True)
class More:
    """The page has drawn the last picture of the robot's camera, or begins to show it, and can take another."""


Message = Hello | Ask | Watch | Act | More
_KINDS: dict[str, type[Message]] = {"hello": Hello, "ask": Ask, "watch": Watch, "act": Act, "more": More}


def read(text: str) -> Message:
    """Return the message in a text. Raises `InputError` for anything else."""
    try:
        if len(text) > MESSAGE_CHARS:
            raise ValueError(f"{len(text)} characters")
        data = json.loads(text)
        kind = _KINDS[data.pop("type")]
        message = parse(kind, data, "message")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SchemaError) as error:
        reason = error.found if isinstance(error, SchemaError) else f"{type(error).__name__}: {error}"
        raise InputError(
            f"a message that cannot be read: {reason[:200]}",
            wanted=f"a JSON object whose type is one of {', '.join(_KINDS)}",
            hint="reload the page: it may be older than the server",
        ) from None
    if isinstance(message, Ask):
        _check_question(message.text)
    return message


def explain(error: Exception) -> dict[str, str]:
    """Return what a page tells of an error: what was found, what was wanted, what to do."""
    if isinstance(error, VisualRWKVError):
        return {"found": error.found, "wanted": error.wanted, "hint": error.hint}
    hint = "undo the question, or start over; the server's log has the reason"
    return {"found": f"the model failed: {type(error).__name__}", "wanted": "", "hint": hint}


def _check_question(text: str) -> None:
    if not text.strip() or len(text) > QUESTION_CHARS:
        raise InputError(f"a question of {len(text)} characters", wanted=f"1 to {QUESTION_CHARS}")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise InputError("a question with half a character in it", hint="type it again")
