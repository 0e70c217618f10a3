"""Watching: frames go into a session in the background, and questions are answered on forks while it goes on.

A question is asked at a frame border: the state is copied (or, with a window, the last frames are shown to a clean
one), and the answer runs on that copy. So the time to the first token does not depend on how long the watch has lasted,
and no question changes what is remembered. Two parties share the session, one at a time:

- the feeding thread, for one frame;
- a question, for the copy. From there to its first token no frame is fed, but for one if another question follows.

While answers are running, the feeding thread rests after each frame for as long as the frame took.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from runtime import aio, store
from runtime.border import Border
from runtime.camera import POLL_S, AnySource, Camera
from runtime.errors import ConfigError, StateError, VisualRWKVError
from runtime.frames import FrameRing, Slot, thumbnail
from runtime.image import ImageSource
from runtime.logs import event
from runtime.progress import SessionSnapshot
from runtime.reply import Chunk
from runtime.sampling import GenerateOptions
from runtime.watch_feed import FrameFeeder
from runtime.watch_options import WatchOptions, WatchStats, check

if TYPE_CHECKING:
    from runtime.session import Session

_log = logging.getLogger(__name__)


class Watch:
    """A session that is being fed from a source; made by `Session.watch`. Use it as a context manager."""

    def __init__(
        self,
        session: Session,
        source: AnySource,
        spare: Callable[[], Session],
        options: WatchOptions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Reserve all memory but that of the pictures, whose size the first frame tells; then begin to read.

        Raises `ConfigError`, and leaves everything as it was, where something does not fit: see `Session.watch`.
        """
        self.options, self._session, self._clock = options, session, clock
        self._metrics = session._shared.metrics
        check(session, options)
        every = options.policy == "every"
        self._ring = FrameRing(options.ring if every else 1, 1 + options.kept)
        self._camera = Camera(source, self._ring, timing=options.timing, fps=options.fps, wait=every, clock=clock)
        try:
            self._feeder = FrameFeeder(session, self._ring, options)
            self._spares = [spare() for _ in range(options.answers)]
        except MemoryError as error:
            raise ConfigError(
                f"there is no memory for {options.answers} more states of {session.nbytes} bytes",
                hint="watch with fewer answers at a time, or close other sessions",
            ) from error
        self._all_spares = tuple(self._spares)
        self._thumb: np.ndarray | None = None
        self._fed_at = self._due = -math.inf
        self._same = self._unchanged = self._answers = 0
        self._told = WatchStats()
        self._border = Border()
        self.error: VisualRWKVError | None = None  # why the watch ended early, if it did
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="visualrwkv-watch", daemon=True)
        session._watch = self
        event(_log, logging.INFO, "watch_began", f"watching {self._camera.name}", policy=options.policy)
        self._thread.start()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def ended(self) -> bool:
        """Whether no further frame will be fed: the source ended or failed for good, or the watch did."""
        return self._ended.is_set()

    @property
    def tokens(self) -> int:
        """Positions in the state since the session's reset, or the last refresh: its distance from a clean one."""
        return self._session.tokens

    @property
    def stats(self) -> WatchStats:
        """What became of the frames so far."""
        own = {"unchanged": self._unchanged, "same": self._same, "answers": self._answers}
        return WatchStats(dropped=self._ring.dropped, **vars(self._camera.counts), **vars(self._feeder.counts), **own)

    @property
    def nbytes(self) -> int:
        """Bytes held for watching, beside the session's own: frames, the state it began with, states of answers."""
        thumb = self._thumb.nbytes if self._thumb is not None else 0
        return self._ring.nbytes + self._feeder.anchor.state.nbytes + thumb + sum(s.nbytes for s in self._all_spares)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the source has ended and all is fed; False when the time is over first."""
        return self._ended.wait(timeout)

    def close(self) -> None:
        """Stop after the frame in hand, and give the session back. Answers that run go on. Safe to call twice."""
        self._border.close()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        if self._session._watch is self:
            self._session._watch = None
            event(_log, logging.INFO, "watch_ended", f"watched {self._camera.name}", **vars(self.stats))

    def lets_in(self) -> bool:
        """Whether this thread may use the session now; `Session` asks."""
        return self._border.lets_in()

    def ask(
        self,
        question: str,
        images: ImageSource | Sequence[ImageSource] = (),
        options: GenerateOptions | None = None,
    ) -> Iterator[Chunk]:
        """Ask about all that was seen up to the last frame fed; as `Session.ask`, which does the same while watching.

        `ttft_s` of the last chunk includes waiting for the frame border. Nothing happens before the first `next`.

        Raises:
            StateError: `answers` questions are being answered already, the watch is closed, or the session broke.
            InputError: as `Session.ask`; the watch goes on.
        """
        return self._answer(question, images, options, [])

    def ask_async(
        self,
        question: str,
        images: ImageSource | Sequence[ImageSource] = (),
        options: GenerateOptions | None = None,
    ) -> AsyncGenerator[Chunk, None]:
        """`ask` inside asyncio, as `Session.ask_async`."""
        forks: list[Session] = []
        return aio.stream(self._answer(question, images, options, forks), lambda: _cancel(forks))

    def snapshot(self) -> SessionSnapshot:
        """Copy the conversation to the host at the next frame border; `Session.snapshot` of a session that watches."""
        with self._border.question():
            return self._session.snapshot()

    def save(self, path: str | Path, *, compress: Literal["int8"] | None = None) -> None:
        """Write the conversation to a file as `Session.save` does; frames go on while the disk is waited for.

        Raises as `Session.save`.
        """
        session = self._session
        store.save(Path(path), self.snapshot(), session._manifest, session._shared.backend, compress)

    def cancel(self) -> None:
        """End all running answers at their next token."""
        _cancel(self._all_spares)

    def _answer(
        self, question: str, images: Any, options: GenerateOptions | None, forks: list[Session]
    ) -> Iterator[Chunk]:
        began, first = self._clock(), False
        fork = self._spare()
        try:
            with self._border.question():
                self._feeder.copy_to(fork)
            forks.append(fork)
            waited = self._clock() - began
            with closing(cast("Generator[Chunk]", fork.ask(question, images, options))) as chunks:
                for chunk in chunks:
                    if not first:
                        first = True
                        self._border.first_token()
                        self._metrics.observe("vrwkv_watch_ttft_seconds", self._clock() - began)
                    if chunk.stats is not None:
                        chunk = replace(chunk, stats=replace(chunk.stats, ttft_s=chunk.stats.ttft_s + waited))
                    yield chunk
        finally:
            self._spares.append(fork)
            with self._border.changed:
                self._answers += 1
            self._border.answered(first)

    def _spare(self) -> Session:
        """Take one of the sessions that answers are made with."""
        with self._border.changed:
            if self._border.closing:
                raise StateError("the watch is closed", hint="ask the session itself")
            if not self._spares:
                raise StateError(
                    f"{self.options.answers} questions are being answered already",
                    hint="finish or close an answer first, or watch with more answers=",
                )
            self._border.asking += 1
            return self._spares.pop()

    def _run(self) -> None:
        """The feeding thread."""
        try:
            while not self._border.closing:
                self._camera.tend()
                if not self._border.hold_back(self._due - self._clock(), len(self._ring) > 0, POLL_S):
                    slot = self._camera.take(newest=self.options.policy != "every", timeout=POLL_S)
                    if slot is not None:
                        self._look_at(slot)
                    elif self._camera.ended and not len(self._ring):
                        self.error = self._camera.error
                        break
                self._publish()
        except VisualRWKVError as error:
            self.error = error
        except BaseException as error:
            self.error = StateError(f"watching failed: {type(error).__name__}: {error}")
        if self.error is not None:
            event(_log, logging.ERROR, "watch_failed", self.error.found)
        self._camera.close()
        self._publish()
        self._ended.set()

    def _look_at(self, slot: Slot) -> None:
        """Feed a frame, unless it shows nothing new."""
        keep = False
        try:
            options, thumb = self.options, thumbnail(slot.image)
            same = self._thumb is not None and float(np.abs(thumb - self._thumb).mean()) < options.threshold
            stale = self._clock() - self._fed_at >= options.at_least_s
            self._same += same
            if same and not stale and options.policy == "adaptive":
                self._unchanged += 1
                return
            began = self._clock()
            with self._border.frame():
                keep = not self._border.closing and self._feeder.feed(slot)
            took = self._clock() - began
            if keep:
                self._metrics.observe("vrwkv_frame_seconds", took)
                self._thumb, self._fed_at = thumb, self._clock()
            if options.fps is not None:
                late = began - self._due > 1 / options.fps
                self._due = (began if late else self._due) + 1 / options.fps
            if self._border.answering:
                self._due = max(self._due, self._clock() + took)
        finally:
            if not keep:
                self._ring.give_back(slot)
            self._border.frame_done()

    def _publish(self) -> None:
        """Bring the metrics up to date."""
        now, then, metrics = self.stats, self._told, self._metrics
        self._told = now
        for name in ("read", "corrupt", "fed", "dropped", "unchanged", "failed"):
            metrics.count("vrwkv_frames_total", getattr(now, name) - getattr(then, name), name)
        metrics.count("vrwkv_reconnects_total", now.reconnects - then.reconnects)
        metrics.count("vrwkv_refreshes_total", now.refreshes - then.refreshes)
        metrics.count("vrwkv_errors_total", now.errors - then.errors, "frame")
        metrics.set("vrwkv_state_tokens", self.tokens)
        metrics.set("vrwkv_watch_bytes", self.nbytes)


def _cancel(sessions: Sequence[Session]) -> None:
    for session in sessions:
        session.cancel()
