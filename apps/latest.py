"""The newest frame of a source, read in the background: one slot, no queue, no growth.

A model answers in seconds what a camera shows in milliseconds, so old frames are dropped and counted. When a
live source fails or goes silent it is opened again with growing pauses; whoever holds a conversation notices
only the age of the last frame.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from apps.sources import Frame, Source
from runtime.errors import SourceError, VisualRWKVError

MAX_STUCK = 3  # reader threads stuck inside a driver; no further one is started until one of them returns


@dataclass(frozen=True)
class Counts:
    """What became of the frames so far."""

    read: int = 0
    used: int = 0  # handed out at least once
    dropped: int = 0  # replaced before anyone took them
    reconnects: int = 0


@dataclass
class _Link:
    """One opening of the source and the thread that reads it."""

    seen: float  # when the last frame (or the opening) was, on the monotonic clock
    frames: int = 0
    abandoned: bool = False
    error: VisualRWKVError | None = None
    done: threading.Event = field(default_factory=threading.Event)


class LatestFrame:
    """Reads `source` in a thread and keeps its newest frame. Use it as a context manager.

    Args:
        source: what to read. A live one is reopened when it fails, unless it never gave a frame.
        paced: show a file at its own speed; False reads as fast as it decodes.
        stall_s: seconds of silence after which a live source counts as gone.
        backoff_s: first and longest pause between attempts to reopen, in seconds; each pause doubles.
        keep_at: times in seconds; the first frame at or after each is kept for `at()`.
        on_frame: called with every frame, in the reading thread (to record a video).
        max_frames: stop after so many frames.
    """

    def __init__(
        self,
        source: Source,
        *,
        paced: bool = True,
        stall_s: float = 10.0,
        backoff_s: tuple[float, float] = (0.5, 8.0),
        keep_at: Iterable[float] = (),
        on_frame: Callable[[Frame], None] | None = None,
        max_frames: int | None = None,
    ) -> None:
        self.source = source
        self._paced = paced and not source.live
        self._stall_s, self._backoff_s = stall_s, backoff_s
        self._on_frame, self._max_frames = on_frame, max_frames
        self._wanted = sorted(set(keep_at))
        self._kept: dict[float, Frame] = {}
        self._changed = threading.Condition()
        self._slot: Frame | None = None
        self._taken = True
        self._arrived = time.monotonic()
        self._counts = Counts()
        self._notices: list[str] = []
        self._error: VisualRWKVError | None = None
        self._ended = False
        self._closing = threading.Event()
        self._stuck: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._supervise, name="frames", daemon=True)

    def __enter__(self) -> LatestFrame:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def counts(self) -> Counts:
        """A consistent copy of the counters."""
        with self._changed:
            return self._counts

    @property
    def ended(self) -> bool:
        """True once no further frame will come: end of file, `max_frames`, or a final failure."""
        return self._ended

    @property
    def error(self) -> VisualRWKVError | None:
        """Why the source failed for good, if it did."""
        return self._error

    @property
    def full(self) -> bool:
        """True once `max_frames` frames were read."""
        return self._max_frames is not None and self.counts.read >= self._max_frames

    @property
    def age_s(self) -> float:
        """Seconds since the newest frame arrived."""
        return time.monotonic() - self._arrived

    def latest(self, *, after: int = -1, timeout: float | None = None) -> Frame | None:
        """Return the newest frame with a number above `after`, waiting up to `timeout` seconds for one.

        Returns None when the time is over or the source has ended without one; raises `SourceError` when the
        source failed for good.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._newer(after) is not None, timeout)
            frame = self._newer(after)
            if frame is None and self._error is not None:
                raise self._error
            if frame is not None and not self._taken:
                self._taken = True
                self._counts = replace(self._counts, used=self._counts.used + 1)
            return frame

    def at(self, time_s: float, *, timeout: float | None = None) -> Frame | None:
        """Return the frame kept for `time_s` (one of `keep_at`), waiting up to `timeout` seconds for it.

        Returns None when the time is over; raises `SourceError` when the source ended before.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or time_s in self._kept, timeout)
            if time_s in self._kept:
                return self._kept[time_s]
            if self._error is not None:
                raise self._error
            if self._ended:
                last = f"{self._slot.time_s:.1f} s" if self._slot else "no frame at all"
                raise SourceError(f"{self.source.name} ended at {last}", wanted=f"a frame at {time_s:.1f} s")
            return None

    def notices(self) -> list[str]:
        """Return, once, what happened to the source since the last call: lost, silent, back."""
        with self._changed:
            told, self._notices = self._notices, []
            return told

    def close(self) -> None:
        """Stop reading and release the source. A thread stuck inside a camera driver is left to itself."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def _newer(self, after: int) -> Frame | None:
        return self._slot if self._slot is not None and self._slot.number > after else None

    def _supervise(self) -> None:
        pause = self._backoff_s[0]
        error: VisualRWKVError | None = None
        while not self._closing.is_set():
            link = _Link(seen=time.monotonic())
            reader = threading.Thread(target=self._read, args=(link,), name="frames-reader", daemon=True)
            reader.start()
            silent = not self._watch(link)
            if self._closing.is_set():
                link.abandoned = True
                reader.join(timeout=2.0)
                break
            error = link.error
            if silent:
                error = SourceError(f"{self.source.name} sent nothing for {self._stall_s:g} s")
                self._stuck.append(reader)
            retry = isinstance(error, SourceError) and self.source.live and self.counts.read > 0
            if not retry:
                break
            pause = self._backoff_s[0] if link.frames else min(2 * pause, self._backoff_s[1])
            self._tell(f"{error.found if error else ''}; opening it again in {pause:g} s")
            self._closing.wait(pause)
            self._wait_for_stuck_readers()
            with self._changed:
                self._counts = replace(self._counts, reconnects=self._counts.reconnects + 1)
        with self._changed:
            self._error, self._ended = error, True
            self._changed.notify_all()

    def _watch(self, link: _Link) -> bool:
        """Wait until the link ends (True), or abandon a live one that is silent for too long (False)."""
        while not link.done.wait(0.05):
            if self._closing.is_set():
                return True
            if self.source.live and time.monotonic() - link.seen > self._stall_s:
                link.abandoned = True
                return False
        return True

    def _wait_for_stuck_readers(self) -> None:
        while not self._closing.is_set():
            self._stuck = [thread for thread in self._stuck if thread.is_alive()]
            if len(self._stuck) < MAX_STUCK:
                return
            self._closing.wait(0.2)

    def _read(self, link: _Link) -> None:
        try:
            begin: float | None = None
            for frame in self.source.frames():
                now = time.monotonic()
                begin = now - frame.time_s if begin is None else begin
                if self._paced:
                    self._closing.wait(max(0.0, begin + frame.time_s - now))
                if link.abandoned or self._closing.is_set():
                    return
                self._publish(frame, link)
                if self._on_frame is not None:
                    self._on_frame(frame)
                if self.full:
                    return
        except VisualRWKVError as error:
            link.error = error
        except Exception as error:  # a driver or decoder may raise anything; the supervisor decides what follows
            link.error = SourceError(f"{self.source.name}: {type(error).__name__}: {error}")
        finally:
            link.done.set()

    def _publish(self, frame: Frame, link: _Link) -> None:
        with self._changed:
            if link.frames == 0 and self._counts.reconnects:
                self._notices.append(f"{self.source.name} is back")
            link.frames += 1
            link.seen = self._arrived = time.monotonic()
            dropped = self._counts.dropped + (not self._taken)
            self._slot, self._taken = frame, False
            while self._wanted and frame.time_s >= self._wanted[0]:
                self._kept[self._wanted.pop(0)] = frame
                self._taken = True
            self._counts = replace(
                self._counts,
                read=self._counts.read + 1,
                dropped=dropped,
                used=self._counts.used + self._taken,
            )
            self._changed.notify_all()

    def _tell(self, notice: str) -> None:
        with self._changed:
            self._notices = [*self._notices, notice][-10:]
