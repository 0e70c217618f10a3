"""A source that is pushed into: for drivers that call back (ROS 2, a camera's own SDK, a shared-memory reader)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from apps.sources import Frame, as_bgr
from runtime.errors import SourceError
from runtime.frames import as_picture


class Mailbox:
    """Holds the newest frame that was put in, until the reader takes it. Thread-safe; `put` never waits.

    Arrays are not copied: whoever puts them must not write to them afterwards. JPEG and PNG files are decoded when
    they are taken, so those that are dropped cost nothing.
    """

    live = True

    def __init__(
        self, name: str = "mailbox", *, fps: float = 25.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin empty. `fps` is what recorders assume; `clock` tells the time of frames put in without one."""
        self.name, self.fps = name, fps
        self._clock = clock
        self._changed = threading.Condition()
        self._newest: tuple[float, Any] | None = None
        self._readers = self._number = 0
        self._closed = False
        self.received = self.dropped = self.corrupt = (
            0  # put in; of those, replaced before they were taken; no pictures
        )

    def put(self, image: Any, time_s: float | None = None) -> None:
        """Leave a frame; the one that was not taken yet is dropped. Behind `close()` it is ignored.

        Args:
            image: [H, W, 3] uint8 BGR, grey, BGRA or 16 bits, or the bytes of a JPEG or PNG file.
            time_s: when it was taken, in seconds of the driver's clock; without it, now.
        """
        with self._changed:
            if self._closed:
                return
            self.received += 1
            self.dropped += self._newest is not None
            self._newest = (self._clock() if time_s is None else time_s, image)
            self._changed.notify_all()

    def frames(self) -> Iterator[Frame]:
        """Yield frames as they come, leaving out what is no picture.

        A later call takes over, and ends the iterator of the one before. Raises `SourceError` when the mailbox is
        closed.
        """
        with self._changed:
            self._readers += 1
            mine = self._readers
            self._changed.notify_all()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None or self._closed or self._readers != mine)
                if self._closed:
                    raise SourceError(f"{self.name} is closed", hint="close the watch as well, or watch a new mailbox")
                if self._readers != mine:
                    return
                (time_s, raw), self._newest = self._newest or (0.0, None), None
            image = as_bgr(as_picture(raw))
            if image is None:
                self.corrupt += 1
                continue
            yield Frame(time_s, self._number, image)
            self._number += 1

    def close(self) -> None:
        """Let readers go; a watch takes that for a lost camera, so close it right after. Safe to call twice."""
        with self._changed:
            self._closed, self._newest = True, None
            self._changed.notify_all()
