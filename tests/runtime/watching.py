"""Sources, clocks and watches for tests: nothing happens until the test says so."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from runtime.camera import AnySource
from runtime.session import Session
from runtime.watch import Watch
from runtime.watch_options import WatchOptions

PATIENCE = 20.0  # real seconds after which a test that waits has failed


class Clock:
    """Monotonic seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Feed:
    """A live source that gives what is put in: frames, errors to raise, or its end."""

    name = "rtsp://user:secret@camera/1"
    live = True

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.openings = 0
        self.changed = threading.Condition()

    def put(self, *items: Any) -> None:
        with self.changed:
            self.items += items
            self.changed.notify_all()

    def frames(self) -> Iterator[Any]:
        self.openings += 1
        while True:
            with self.changed:
                if not self.changed.wait_for(lambda: self.items, PATIENCE):
                    return
                item = self.items.pop(0)
            if isinstance(item, Exception):
                raise item
            if isinstance(item, threading.Event):  # a driver that hangs, and then gives a late frame
                item.wait(PATIENCE)
                item = grey(77)
            yield item


def begin(session: Session, source: AnySource, clock: Callable[[], float] = time.monotonic, **options: Any) -> Watch:
    """`Session.watch` with a clock of the test's."""

    def spare() -> Session:
        return Session(session._scheduler, session._tokenizer, shared=session._shared, start=session._start)

    return Watch(session, source, spare, WatchOptions(**options), clock)


def until(happened: Callable[[], bool]) -> None:
    """Wait until something has happened, in another thread."""
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


def grey(level: int, height: int = 6, width: int = 8) -> np.ndarray:
    """A flat picture."""
    return np.full((height, width, 3), level, np.uint8)


class Gate:
    """Stops whoever calls `wait`, until it is opened."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.reached.set()
        assert self.open.wait(PATIENCE)
