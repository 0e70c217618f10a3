"""Reading a source of frames in the background, and opening it again when it fails or falls silent.

A source belongs to the caller (a robot's driver, OpenCV, ROS): anything that can be iterated or read. One thread of
ours reads it into a ring; whoever takes frames from the ring also looks after that thread, so there is no other.
Every duration is taken from one monotonic clock; times that a source gives are passed on and never waited for, but by
`fps` of a source that has no pace of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

from runtime.errors import ConfigError, SourceError, VisualRWKVError
from runtime.frames import FrameRing, Slot, as_picture
from runtime.logs import event

POLL_S = 0.05  # at least this often a waiting thread looks whether it should end
CLOSE_S = 2.0  # how long closing waits for the driver
MAX_CORRUPT = 30  # frames in a row that are no pictures before a source counts as broken
MAX_STUCK = 3  # threads stuck inside a driver; the source is not opened again until one of them returns
_log = logging.getLogger(__name__)


class Source(Protocol):
    """Opens itself and yields frames, each time `frames()` is called, as those of `apps.sources` do.

    Its `live` (default True) says that it has a pace of its own, ends only by failing and is worth opening again; its
    `name` stands in logs.
    """

    def frames(self) -> Iterator[Any]:
        """Yield arrays, bytes of JPEG files, (seconds, frame) pairs, or objects with `image` and `time_s`."""
        ...


class Readable(Protocol):
    """Gives one frame a call: (good, frame), as `cv2.VideoCapture`, or the frame alone, None at the end."""

    def read(self) -> Any:
        """Wait for the next frame and return it."""
        ...


AnySource = Source | Readable | Iterable[Any] | Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """When a source counts as gone, and how it is opened again: monotonic seconds.

    Raises `ConfigError` for values out of range.
    """

    stall_s: float = 10.0  # of silence, after which a live source is opened again
    backoff_s: tuple[float, float] = (0.5, 8.0)  # first and longest pause before opening; each doubles

    def __post_init__(self) -> None:
        """Check all."""
        if not (self.stall_s > 0 and 0 < self.backoff_s[0] <= self.backoff_s[1]):
            raise ConfigError(f"timing {self}", wanted="positive seconds, the first pause no longer than the longest")


@dataclass(eq=False)
class _Link:
    """One opening of the source, and the thread that reads it."""

    seen: float
    frames: int = 0
    abandoned: bool = False
    done: bool = False
    error: VisualRWKVError | None = None
    thread: threading.Thread | None = None


@dataclass
class CameraCounts:
    """What came out of a source."""

    read: int = 0
    corrupt: int = 0
    reconnects: int = 0
    stalls: int = 0


class Camera:
    """Reads `source` into `ring` until it ends, fails for good, or `close()` is called.

    Args:
        source: see `AnySource`. A function is called to open the camera, and again whenever it has failed.
        ring: where frames go.
        timing: when to give up on silence, and how to come back.
        fps: pace of a source that has none (a list, a file), in frames a second; without it, such a source is read
            only as fast as its frames are taken.
        wait: whether a source that is not live waits for room in the ring although it is paced.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        source: AnySource,
        ring: FrameRing,
        *,
        timing: Timing | None = None,
        fps: float | None = None,
        wait: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open, self.live, self._again = opener(source)
        self.name = str(getattr(source, "name", "") or "the camera")
        self._ring, self._timing, self._fps, self._clock = ring, timing or Timing(), fps, clock
        self._wait = wait or fps is None
        self._closing = threading.Event()
        self._stuck: list[threading.Thread] = []
        self._link: _Link | None = None
        self._pause, self._due = self._timing.backoff_s[0], clock()
        self.counts = CameraCounts()
        self.ended = False  # no further frame will come; those that wait in the ring still can be taken
        self.error: VisualRWKVError | None = None

    def take(self, *, newest: bool, timeout: float) -> Slot | None:
        """Wait for a frame, at most `timeout` real seconds; and look after the thread that reads them."""
        self.tend()
        with self._ring.changed:
            if not len(self._ring) and not self.ended:
                self._ring.changed.wait(timeout)
        return self._ring.take(newest)

    def tend(self) -> None:
        """Open the source if it is time to, give it up if it is silent, notice that it has ended."""
        if self.ended or self._closing.is_set():
            return
        link = self._link
        if link is None:
            if self._clock() >= self._due and self._drivers_free():
                self._start()
        elif link.done:
            self._lost(link, link.error)
        elif self.live and self._again and self._clock() - link.seen > self._timing.stall_s:
            link.abandoned = True
            if link.thread is not None:
                self._stuck.append(link.thread)
            self.counts.stalls += 1
            self._lost(link, SourceError(f"{self.name} sent nothing for {self._timing.stall_s:g} s"))

    def close(self) -> None:
        """Stop reading. A thread that is stuck inside a driver is left to itself, and its late frames are ignored."""
        self._closing.set()
        link, self._link = self._link, None
        if link is not None and link.thread is not None:
            link.abandoned = True
            link.thread.join(CLOSE_S)
        self.ended = True

    def _start(self) -> None:
        link = self._link = _Link(self._clock())
        if self.counts.read:
            self.counts.reconnects += 1
        link.thread = threading.Thread(target=self._read, args=(link,), name="visualrwkv-camera", daemon=True)
        link.thread.start()

    def _lost(self, link: _Link, error: VisualRWKVError | None) -> None:
        """A link is gone: come back later, or end."""
        self._link = None
        if not (self._again and self.counts.read and error is not None):
            self.ended, self.error = True, error
            if error is not None:
                event(_log, logging.ERROR, "source_failed", error.found, source=self.name)
            return
        self._pause = self._timing.backoff_s[0] if link.frames else min(2 * self._pause, self._timing.backoff_s[1])
        self._due = self._clock() + self._pause
        event(_log, logging.WARNING, "source_lost", error.found, source=self.name, again_in_s=self._pause)

    def _drivers_free(self) -> bool:
        self._stuck = [thread for thread in self._stuck if thread.is_alive()]
        return len(self._stuck) < MAX_STUCK

    def _read(self, link: _Link) -> None:
        try:
            corrupt, begun = 0, self._clock()
            for item in self._open():
                if link.abandoned or self._closing.is_set():
                    return
                time_s, raw = unpack(item)
                picture = as_picture(raw)
                link.seen = self._clock()
                if picture is None:
                    corrupt, self.counts.corrupt = corrupt + 1, self.counts.corrupt + 1
                    if corrupt >= MAX_CORRUPT:
                        raise SourceError(f"{self.name} sent {corrupt} frames in a row that are no pictures")
                    continue
                corrupt = 0
                if not self.live and not self._in_time(link, begun):
                    return
                self._ring.put(picture, link.seen if time_s is None else time_s)
                link.frames, self.counts.read = link.frames + 1, self.counts.read + 1
            if self.live:
                raise SourceError(f"{self.name} stopped sending frames")
        except VisualRWKVError as error:
            link.error = error
        except Exception as error:  # a driver may raise anything, and memory may be short
            link.error = SourceError(f"{self.name}: {type(error).__name__}: {error}")
        finally:
            link.done = True
            with self._ring.changed:
                self._ring.changed.notify_all()

    def _in_time(self, link: _Link, begun: float) -> bool:
        """Wait until a frame of a source without a pace is due; False if reading ends meanwhile."""
        due = begun if self._fps is None else begun + link.frames / self._fps
        with self._ring.changed:
            while self._clock() < due or (self._wait and self._ring.full):
                if link.abandoned or self._closing.is_set():
                    return False
                self._ring.changed.wait(min(POLL_S, max(0.001, due - self._clock())) if self._fps else POLL_S)
        return True


def opener(source: AnySource) -> tuple[Callable[[], Iterator[Any]], bool, bool]:
    """Return how to iterate a source, whether it is live, and whether it can be opened again.

    Raises `ConfigError` for what is no source.
    """
    if _is_source(source):
        live = bool(getattr(source, "live", True))
        return source.frames, live, live
    if _is_readable(source):
        return lambda: _reading(source, release=False), True, False
    if isinstance(source, Iterable):
        return lambda: iter(source), False, False
    if callable(source):
        return lambda: _opened(source), True, True
    raise ConfigError(
        f"a source of type {type(source).__name__}",
        wanted="frames to iterate, an object with frames() or read(), or a function that opens one",
        hint="session.watch(lambda: cv2.VideoCapture(0))",
    )


def unpack(item: Any) -> tuple[float | None, Any]:
    """Return a frame's time in seconds, None where the source tells none, and the frame."""
    if isinstance(item, tuple) and len(item) == 2:
        return _seconds(item[0]), item[1]
    if hasattr(item, "image") and hasattr(item, "time_s"):
        return _seconds(item.time_s), item.image
    return None, item


def _is_source(thing: object) -> TypeGuard[Source]:
    return callable(getattr(thing, "frames", None))


def _is_readable(thing: object) -> TypeGuard[Readable]:
    return callable(getattr(thing, "read", None))


def _seconds(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _opened(source: Callable[[], Any]) -> Iterator[Any]:
    inner = source()
    if _is_source(inner):
        yield from inner.frames()
    elif _is_readable(inner):
        yield from _reading(inner, release=True)
    else:
        yield from inner


def _reading(source: Readable, *, release: bool) -> Iterator[Any]:
    """Frames of something with `read()`; it is released at the end if it was opened for this."""
    try:
        is_open = getattr(source, "isOpened", None)
        if is_open is not None and not is_open():
            raise SourceError(
                "the camera cannot be opened", hint="check the cable, the address and that no other program holds it"
            )
        while True:
            answer = source.read()
            pair = isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], bool)
            if (pair and not answer[0]) or answer is None:
                return
            yield answer[1] if pair else answer
    finally:
        close = getattr(source, "release", None) or getattr(source, "close", None)
        if release and close is not None:
            close()
