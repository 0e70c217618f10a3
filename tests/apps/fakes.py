"""Captures that misbehave, and a model that answers without being one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from apps.sources import CaptureSource
from runtime.reply import Chunk, Stats


def picture(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A flat grey picture that says its number, also after a lossy codec: 10 grey levels per step."""
    return np.full((height, width, 3), 10 * (number % 25), np.uint8)


def number_of(image: np.ndarray) -> int:
    """The number `picture` was made with."""
    return round(float(image.mean()) / 10)


@dataclass
class FakeCapture:
    """A camera that follows a script of pictures, None (read fails), "corrupt" and seconds to hang."""

    script: Iterator[Any]
    opened: bool = True
    properties: dict[int, float] = field(default_factory=dict)
    released: bool = False

    def isOpened(self) -> bool:
        return self.opened

    def read(self) -> tuple[bool, Any]:
        entry = next(self.script, None)
        if isinstance(entry, float):
            time.sleep(entry)
            return False, None
        if isinstance(entry, str):
            return True, np.zeros((0, 0, 3), np.uint8)
        return entry is not None, entry

    def get(self, prop: int, /) -> float:
        return self.properties.get(prop, 0.0)

    def release(self) -> None:
        self.released = True


class FlakyCamera:
    """Opens one scripted capture after another; a script of None is a camera that cannot be opened."""

    def __init__(self, *scripts: list[Any] | None) -> None:
        self.captures = [FakeCapture(iter(s or []), opened=s is not None) for s in scripts]
        self.opened = 0

    def __call__(self) -> FakeCapture:
        capture = self.captures[self.opened]
        self.opened += 1
        return capture

    def source(self) -> CaptureSource:
        return CaptureSource("camera 7", self, live=True)


class StubSession:
    """Answers "seen: 3 4" with the numbers of the pictures shown; one word per chunk."""

    def __init__(self, model: StubModel) -> None:
        self.model, self.seen, self.tokens, self.cancelled = model, [], 0, False

    def see(self, *images: np.ndarray) -> None:
        self.seen += [number_of(image) for image in images]
        self.tokens += 16

    def cancel(self) -> None:
        self.cancelled = True

    def ask(self, question: str, images: Any = (), options: Any = None) -> Iterator[Chunk]:
        self.model.asked.append((question, list(self.seen)))
        if question in self.model.failures:
            raise self.model.failures[question]
        self.cancelled = False
        words = self.model.answer(question, self.seen).split(" ")
        for index, word in enumerate(words):
            if self.cancelled:
                break
            time.sleep(self.model.seconds_per_word)
            self.tokens += 1
            yield Chunk(word if index == 0 else f" {word}", (index,))
        stats = Stats(5, 16, len(words), 0.1, 0.05, 0.04, 0.2, 50.0, 123 << 20, 4096)
        yield Chunk("", (), "cancelled" if self.cancelled else "stop", stats)


class StubModel:
    """Takes the place of `VisualRWKV`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[int]]] = []
        self.failures: dict[str, Exception] = {}
        self.sessions: list[Any] = []  # the padding each was opened with
        self.loaded: dict[str, Any] = {}
        self.closed = False
        self.seconds_per_word = 0.0
        self.answer: Callable[[str, list[int]], str] = lambda question, seen: f"seen: {seen}"

    def load(self, bundle: Path, **options: Any) -> StubModel:
        self.loaded = {"bundle": bundle, **options}
        return self

    def session(self, *, padding: Any = None) -> StubSession:
        self.sessions.append(padding)
        return StubSession(self)

    def __enter__(self) -> StubModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True
