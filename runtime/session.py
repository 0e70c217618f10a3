"""A conversation: pictures and questions in, streamed answers out, all remembered in one fixed-size state.

What has been fed is at every moment a beginning of the official transcript (`prompt.conversation_pieces`):
an answer's last token, and the end of a turn that was cut short, wait in a queue and are fed with whatever
comes next.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from runtime import aio, store
from runtime.camera import AnySource
from runtime.errors import ConfigError, InputError, RollbackError, StateError
from runtime.feeding import Feeder, feeds_at_once
from runtime.image import ImageSource
from runtime.progress import Progress, SessionSnapshot, Start
from runtime.prompt import Turn, closing_ids, turn_pieces
from runtime.reply import Chunk, FinishReason, Reply, Stats, resident_bytes
from runtime.sampling import GenerateOptions, Sampler
from runtime.scheduler import Scheduler
from runtime.shared import Shared
from runtime.spec import Padding
from runtime.tokenizer import Tokenizer
from runtime.undo import UndoRing
from runtime.watch import Watch
from runtime.watch_options import WatchOptions

__all__ = ["Chunk", "FinishReason", "Progress", "Session", "SessionSnapshot", "Stats", "Turn"]

HISTORY = 1000  # turns remembered as text, so that memory stays flat; the state remembers by itself


class Session:
    """One conversation, for one thread at a time; several can share a model.

    While an answer streams, every call but `cancel` raises `StateError`. So does every call after the
    engine failed in the middle of a step, since the state may then be half advanced, until `reset`,
    `restore` or `undo`.

    The state is checked while answers stream and after every call that feeds (`runtime.guard`). If it has gone bad,
    the call raises `RollbackError`, `rollbacks` counts it, and the session stands where it stood before the call.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        tokenizer: Tokenizer,
        *,
        padding: Padding | None = None,
        shared: Shared | None = None,
        start: Start | None = None,
    ) -> None:
        """Begin a conversation; `padding` overrides the manifest's.

        "left16" pads the first prompt on the left to a multiple of 16, as the official evaluation does;
        pictures are then fed with the first question instead of when they are seen. Raises `ConfigError`
        for another value.
        """
        self._scheduler, self._tokenizer, self._manifest = scheduler, tokenizer, scheduler.manifest
        self._shared, self._start = shared or Shared(), start or Start()
        self._feeder = Feeder(scheduler, tokenizer, self._shared)
        self._padding: Padding = padding or self._manifest.tokenizer.padding
        if self._padding not in ("none", "left16"):
            raise ConfigError(f"padding is {padding!r}", wanted="'none' or 'left16'")
        self._shared.admit(self)
        self._state = scheduler.new_state()
        self._undo = UndoRing(self._state, self._shared.undo_bytes)
        self.rollbacks = 0  # times the watchdog took the session back
        self._progress = Progress()
        self._begin()
        self._busy = threading.Lock()
        self._cancelled = threading.Event()
        self._broken: str | None = None
        self._watch: Watch | None = None

    @property
    def history(self) -> list[Turn]:
        """The last turns (at most 1000), the running one not included."""
        return self._progress.history[:]

    @property
    def tokens(self) -> int:
        """Positions fed since the session began: text, pictures, padding and the prompt of a baked state."""
        return self._progress.tokens

    @property
    def frames(self) -> int:
        """Pictures looked at since the session began."""
        return self._progress.frames

    @property
    def nbytes(self) -> int:
        """Bytes this session holds, all of them since it was opened: its state and the room for `undo`."""
        return self._state.nbytes + self._undo.nbytes

    def see(self, *images: ImageSource) -> None:
        """Look at pictures, for the next question; fed at once where the template puts pictures first.

        Args:
            images: uint8 arrays as OpenCV gives them, paths or PIL images.

        Raises:
            InputError: a picture cannot be used, or the model takes none; the session is as before.
            RollbackError: the state went bad; the session is as before.
            StateError: the session is busy or broken.
        """
        with self._exclusive():
            if not images:
                return
            progress = self._progress.copy()
            self._feeder.look(progress, images)
            self._undo.push(self._state, self._progress)
            if progress.placed and feeds_at_once(self._manifest, self._padding, progress):
                self._prefill(progress, None)
            self._progress = progress

    def ask(
        self,
        question: str,
        images: ImageSource | Sequence[ImageSource] = (),
        options: GenerateOptions | None = None,
    ) -> Iterator[Chunk]:
        """Ask about all that was seen and said; stream the answer. Nothing happens before the first `next`.

        The text is stripped and never contains a stop string or half a character. Closing the iterator
        early ends the turn as `cancel` does.

        Args:
            question: any text; blank lines in it become line ends.
            images: a picture or several, seen after those of `see`.
            options: how to generate; greedy by default.

        Raises:
            InputError: the question is not text, or a picture cannot be used; the session is as before.
            RollbackError: the state went bad; the session is as before, and what was shown of the answer is void.
            StateError: the session is busy or broken, or the model gave logits that are not finite.
        """
        if not isinstance(question, str):
            raise InputError(f"a question of type {type(question).__name__}", wanted="a string")
        if isinstance(images, (np.ndarray, str, Path, Image.Image)):
            images = (images,)
        if self._watch is not None:
            return self._watch.ask(question, images, options)
        return self._answer(question, tuple(images), options or GenerateOptions())

    def ask_async(
        self,
        question: str,
        images: ImageSource | Sequence[ImageSource] = (),
        options: GenerateOptions | None = None,
    ) -> AsyncGenerator[Chunk, None]:
        """`ask` inside asyncio: `async for chunk in session.ask_async("...")`. Cancelling the task ends the answer.

        See `runtime.aio.stream`. Raises as `ask` does.
        """
        if self._watch is not None:
            return self._watch.ask_async(question, images, options)
        return aio.stream(self.ask(question, images, options), self.cancel)

    def cancel(self) -> None:
        """End the running answer at its next token, from any thread; without one, do nothing."""
        self._cancelled.set()
        if self._watch is not None:
            self._watch.cancel()

    def watch(self, source: AnySource, **options: Any) -> Watch:
        """Feed frames from a source in the background, until the watch that is returned is closed.

        Meanwhile `ask` answers on copies and leaves no trace, and every other call that would use the session raises
        `StateError`. Behind the watch the session has seen the frames that were fed, and goes on as after `see`.

        **Usage**

            with session.watch(lambda: cv2.VideoCapture(0), policy="adaptive", fps=5) as watch:
                for chunk in session.ask("What has just left the picture?"):
                    print(chunk.text, end="", flush=True)
                print(watch.stats, watch.tokens)

        Args:
            source: a function that opens a camera (and is called again when it fails), an object with `frames()` or
                `read()`, or frames to iterate (`runtime.camera`): arrays as for `see`, or bytes of JPEG files.
            options: of `runtime.watch_options.WatchOptions`.

        Raises:
            ConfigError: a bad option, no source, no memory for the answers' states, or a model whose pictures cannot
                be fed before the question is known (watch that with a window).
            StateError: the session is busy, broken or watching.
        """
        settings = WatchOptions(**options)
        shared = replace(self._shared, undo_bytes=0)
        return Watch(
            self,
            source,
            lambda: Session(self._scheduler, self._tokenizer, padding=self._padding, shared=shared, start=self._start),
            settings,
        )

    def snapshot(self) -> SessionSnapshot:
        """Copy the conversation to the host; the copy cannot be written to."""
        with self._exclusive():
            return self._snapshot()

    def restore(self, snapshot: SessionSnapshot) -> None:
        """Go back (or over) to a snapshot, which mends a broken session.

        Raises `StateError` if it is of another model.
        """
        with self._exclusive(broken_too=True):
            self._state.restore(snapshot.state)
            self._progress, self._padding, self._broken = snapshot.progress.copy(), snapshot.padding, None
            if any(array.flags.writeable for array in snapshot.state.arrays.values()):
                self._progress.key = None  # made by hand: the key is not of these numbers
            self._undo.clear()

    def undo(self) -> None:
        """Take back the last `see` or `ask`, answer included; mends a broken session.

        As many steps can be taken back as fit into the model's `undo_bytes`, at most 16. `reset` and `restore` begin
        another conversation, behind which there is no way back, and cannot be undone.

        Raises `StateError` if there is nothing to undo, or the session is busy.
        """
        with self._exclusive(broken_too=True):
            self._take_back()

    def save(self, path: str | Path, *, compress: Literal["int8"] | None = None) -> None:
        """Write the conversation to one file, which `VisualRWKV.session` opens; the format is in `runtime.store`.

        The session is free again before the disk is waited for.

        Args:
            path: the file to write or replace, as a whole or not at all.
            compress: "int8" keeps matrices in a quarter of the space, with a loss that `store.compression_loss` tells.

        Raises:
            ConfigError: another compression.
            StateError: the session is busy or broken, or the file cannot be written.
        """
        store.save(Path(path), self.snapshot(), self._manifest, self._shared.backend, compress)

    def fork(self) -> Session:
        """Return an independent session that has seen and said the same; it has nothing to undo yet.

        The state is copied at once: every token writes all of it, so that sharing it until then would save nothing.
        """
        with self._exclusive():
            other = Session(
                self._scheduler, self._tokenizer, padding=self._padding, shared=self._shared, start=self._start
            )
            other.restore(self._snapshot())
        return other

    def reset(self) -> None:
        """Forget everything, what could be undone too, and stand where the session began; mends a broken session."""
        with self._exclusive(broken_too=True):
            self._begin()
            self._broken = None

    def _snapshot(self) -> SessionSnapshot:
        state = self._state.snapshot()
        for array in state.arrays.values():
            array.flags.writeable = False
        return SessionSnapshot(state, self._progress.copy(), self._padding)

    def _begin(self) -> None:
        self._state.zero()
        for slot, array in self._start.arrays.items():
            self._state.write(slot, array)
        self._progress = self._start.progress.copy()
        self._undo.clear()

    def _take_back(self) -> None:
        snapshot, progress = self._undo.pop()
        self._state.restore(snapshot)
        self._progress, self._broken = progress, None

    def _answer(self, question: str, images: Sequence[ImageSource], options: GenerateOptions) -> Iterator[Chunk]:
        start = time.perf_counter()
        manifest = self._manifest
        image_id = manifest.tokenizer.image_id
        sampler = Sampler(options, manifest.vocab_size, forbidden=() if image_id is None else (image_id,))
        reply = Reply(manifest, self._tokenizer, options)
        with self._exclusive():
            self._cancelled.clear()
            progress = self._progress.copy()
            self._feeder.look(progress, images)
            self._feeder.stand_in(progress)
            turns = [*progress.history, Turn(question, progress.pictures)]
            pieces = turn_pieces(manifest.prompt, question, progress.pictures, turns=turns, placed=progress.placed)
            self._feeder.place(progress, pieces)
            self._undo.push(self._state, self._progress)
            token = self._prefill(progress, sampler)
            self._progress = progress
            ttft, decode_s, steps = time.perf_counter() - start, 0.0, 0
            self._shared.metrics.observe("vrwkv_ttft_seconds", ttft)
            reason: FinishReason | None = None
            try:
                # Whatever ends the loop, the last token added has not been fed: `_end_turn` counts on it.
                going = not self._cancelled.is_set()
                while going:
                    reason = reply.add(token)
                    if reason is None and reply.text:
                        yield reply.chunk()
                    going = reason is None and not self._cancelled.is_set()
                    if going:
                        began = time.perf_counter()
                        token = self._advance(token, sampler, progress)
                        decode_s, steps = decode_s + time.perf_counter() - began, steps + 1
            except GeneratorExit:
                self._end_turn(progress, question, reply, reason or "cancelled")
                raise
            except RollbackError:
                raise
            except BaseException as error:
                self._broken = repr(error)
                raise
            reason = reason or "cancelled"
            self._end_turn(progress, question, reply, reason)
            stats = Stats(
                progress.prompt_tokens,
                progress.image_tokens,
                len(reply.ids),
                ttft,
                progress.vision_s,
                progress.prefill_s,
                decode_s,
                steps / decode_s if steps else 0.0,
                resident_bytes(),
                self._state.nbytes,
                progress.cached_tokens,
            )
        # Outside the lock: whoever stops iterating at the last chunk has a session that is free.
        yield reply.chunk(reason, stats)

    def _prefill(self, progress: Progress, sampler: Sampler | None) -> int:
        """Feed the queue; return the next token, or -1 without a sampler."""
        start, before = time.perf_counter(), progress.tokens
        with self._breaking():
            logits = self._feeder.feed(progress, self._state, self._padding)
            self._shared.metrics.count("vrwkv_tokens_total", progress.tokens - before, "fed")
            if sampler is None:
                self._check()
            progress.prefill_s += time.perf_counter() - start
            return -1 if sampler is None or logits is None else sampler.pick(logits)

    def _advance(self, token: int, sampler: Sampler, progress: Progress) -> int:
        """Feed a token and pick the next."""
        with self._breaking():
            logits = self._scheduler.advance([token], self._state)
            progress.tokens += 1
            if progress.tokens % self._shared.watchdog.every == 0:
                self._check()
            return sampler.pick(logits)

    def _check(self) -> None:
        """Raise `StateError` if the state has gone bad."""
        fault = self._shared.watchdog.fault(self._state)
        if fault:
            raise StateError(f"the state went bad: {fault}")

    @contextmanager
    def _breaking(self) -> Iterator[None]:
        """Whatever goes wrong in here breaks the session: the state may be half advanced.

        But if a finished step left a bad state, and there is a way back, that is taken, with a `RollbackError`.
        """
        try:
            yield
        except BaseException as error:
            self._broken = repr(error)
            fault = self._shared.watchdog.fault(self._state) if isinstance(error, StateError) else None
            if fault is None or not len(self._undo):
                raise
            self._take_back()
            self.rollbacks += 1
            self._shared.metrics.count("vrwkv_rollbacks_total")
            raise RollbackError(
                f"the state went bad: {fault}",
                hint="ask again: the session stands where it stood before this call. If it happens again, reset() it",
            ) from error

    def _end_turn(self, progress: Progress, question: str, reply: Reply, reason: FinishReason) -> None:
        """Check the state, record the turn, and queue what the transcript still lacks of it."""
        with self._breaking():
            self._check()
        reply.finish()
        self._shared.metrics.count("vrwkv_tokens_total", len(reply.ids), "generated")
        self._shared.metrics.count("vrwkv_answers_total", 1, reason)
        rest = closing_ids(self._tokenizer, self._manifest.prompt, reply.ids)
        turn = Turn(question, progress.pictures, reply.shown + reply.text, reason)
        history = [*progress.history, turn][-HISTORY:]
        self._progress = Progress(history, progress.tokens, progress.frames, queue=[rest], prompt_tokens=len(rest))

    @contextmanager
    def _exclusive(self, *, broken_too: bool = False) -> Iterator[None]:
        """Hold the session; raise `StateError` if it is watching, held already, or broken."""
        if self._watch is not None and not self._watch.lets_in():
            raise StateError("the session is watching", hint="ask() it, save() the watch, or close it first")
        if not self._busy.acquire(blocking=False):
            raise StateError(
                "the session is busy: an answer is streaming, or another thread uses it",
                hint="finish or close the running answer first, or work on a fork()",
            )
        try:
            if self._broken is not None and not broken_too:
                raise StateError(
                    f"the session broke in the middle of a step: {self._broken}",
                    hint="undo() the last step, reset() it, or restore() a snapshot",
                )
            yield
        finally:
            self._busy.release()
