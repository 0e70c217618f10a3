"""A conversation: pictures and questions in, streamed answers out, all remembered in one fixed-size state.

What has been fed is at every moment a beginning of the official transcript (`prompt.conversation_pieces`):
an answer's last token, and the end of a turn that was cut short, wait in a queue and are fed with whatever
comes next.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from runtime.engine import Engine
from runtime.errors import ConfigError, InputError, StateError
from runtime.image import ImageSource, load_image, prepare_views, split_regions
from runtime.prompt import ImageSlot, Piece, Turn, closing_ids, turn_pieces
from runtime.reply import Chunk, FinishReason, Reply, Stats, resident_bytes
from runtime.sampling import GenerateOptions, Sampler
from runtime.spec import Padding
from runtime.state import Snapshot
from runtime.tokenizer import Tokenizer

__all__ = ["Chunk", "FinishReason", "Progress", "Session", "SessionSnapshot", "Stats", "Turn"]

HISTORY = 1000  # turns remembered as text, so that memory stays flat; the state remembers by itself
PAD_TO = 16  # chunk length of the official training kernel, to which its forward pads on the left


@dataclass
class Progress:
    """Where a conversation stands, besides the state."""

    history: list[Turn] = field(default_factory=list)
    tokens: int = 0  # positions fed so far, pictures and padding included
    queue: list[list[int] | np.ndarray] = field(default_factory=list)  # to be fed before anything else
    pictures: int = 0  # given for the coming question
    waiting: dict[int, np.ndarray] = field(default_factory=dict)  # [tokens, C] of pictures not yet queued
    placed: int = 0  # pieces of the coming turn that are in the queue, or fed
    prompt_tokens: int = 0  # of the coming turn, like the three below
    image_tokens: int = 0
    vision_s: float = 0.0
    prefill_s: float = 0.0

    def copy(self) -> Progress:
        """Return an independent copy; arrays and turns, never written, are shared."""
        return replace(self, history=self.history[:], queue=self.queue[:], waiting=dict(self.waiting))


@dataclass(frozen=True)
class SessionSnapshot:
    """A whole conversation at one moment, on the host."""

    state: Snapshot
    progress: Progress
    padding: Padding


class Session:
    """One conversation, for one thread at a time; several can share an engine.

    While an answer streams, every call but `cancel` raises `StateError`. So does every call after the
    engine failed in the middle of a step, since the state may then be half advanced, until `reset` or
    `restore`.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, *, padding: Padding | None = None) -> None:
        """Begin a conversation; `padding` overrides the manifest's.

        "left16" pads the first prompt on the left to a multiple of 16, as the official evaluation does;
        pictures are then fed with the first question instead of when they are seen. Raises `ConfigError`
        for another value.
        """
        self._engine, self._tokenizer = engine, tokenizer
        self._padding: Padding = padding or engine.manifest.tokenizer.padding
        if self._padding not in ("none", "left16"):
            raise ConfigError(f"padding is {padding!r}", wanted="'none' or 'left16'")
        self._state = engine.new_state()
        self._progress = Progress()
        self._busy = threading.Lock()
        self._cancelled = threading.Event()
        self._broken: str | None = None

    @property
    def history(self) -> list[Turn]:
        """The last turns (at most 1000), the running one not included."""
        return self._progress.history[:]

    @property
    def tokens(self) -> int:
        """Positions fed since the session began: text, pictures and padding."""
        return self._progress.tokens

    def see(self, *images: ImageSource) -> None:
        """Look at pictures, for the next question; fed at once where the template puts pictures first.

        Args:
            images: uint8 arrays as OpenCV gives them, paths or PIL images.

        Raises:
            InputError: a picture cannot be used, or the model takes none; the session is as before.
            StateError: the session is busy or broken.
        """
        with self._exclusive():
            progress = self._progress.copy()
            self._look(progress, images)
            padded = self._padding == "none" or progress.tokens > 0
            if padded and progress.placed:
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
            StateError: the session is busy or broken, or the model gave logits that are not finite.
        """
        if not isinstance(question, str):
            raise InputError(f"a question of type {type(question).__name__}", wanted="a string")
        if isinstance(images, (np.ndarray, str, Path, Image.Image)):
            images = (images,)
        return self._answer(question, tuple(images), options or GenerateOptions())

    def cancel(self) -> None:
        """End the running answer at its next token, from any thread; without one, do nothing."""
        self._cancelled.set()

    def snapshot(self) -> SessionSnapshot:
        """Copy the conversation to the host."""
        with self._exclusive():
            return SessionSnapshot(self._state.snapshot(), self._progress.copy(), self._padding)

    def restore(self, snapshot: SessionSnapshot) -> None:
        """Go back (or over) to a snapshot, which mends a broken session.

        Raises `StateError` if it is of another model.
        """
        with self._exclusive(broken_too=True):
            self._state.restore(snapshot.state)
            self._progress, self._padding, self._broken = snapshot.progress.copy(), snapshot.padding, None

    def fork(self) -> Session:
        """Return an independent session that has seen and said the same."""
        other = Session(self._engine, self._tokenizer, padding=self._padding)
        other.restore(self.snapshot())
        return other

    def reset(self) -> None:
        """Forget everything; mends a broken session."""
        with self._exclusive(broken_too=True):
            self._state.zero()
            self._progress, self._broken = Progress(), None

    def _answer(self, question: str, images: Sequence[ImageSource], options: GenerateOptions) -> Iterator[Chunk]:
        start = time.perf_counter()
        manifest = self._engine.manifest
        image_id = manifest.tokenizer.image_id
        sampler = Sampler(options, manifest.vocab_size, forbidden=() if image_id is None else (image_id,))
        reply = Reply(manifest, self._tokenizer, options)
        with self._exclusive():
            self._cancelled.clear()
            progress = self._progress.copy()
            self._look(progress, images)
            turns = [*progress.history, Turn(question, progress.pictures)]
            self._place(progress, turn_pieces(manifest.prompt, question, progress.pictures, turns=turns))
            token = self._prefill(progress, sampler)
            self._progress = progress
            ttft, decode_s, steps = time.perf_counter() - start, 0.0, 0
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
                        token = self._advance([token], sampler)
                        decode_s, steps = decode_s + time.perf_counter() - began, steps + 1
                        progress.tokens += 1
            except GeneratorExit:
                raise
            except BaseException as error:
                self._broken = repr(error)
                raise
            finally:
                if self._broken is None:
                    reason = reason or "cancelled"
                    reply.finish()
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
            )
        # Outside the lock: whoever stops iterating at the last chunk has a session that is free.
        yield reply.chunk(reason, stats)

    def _look(self, progress: Progress, images: Sequence[ImageSource]) -> None:
        """Encode pictures into `progress`, and queue them if the template puts them before the text."""
        manifest = self._engine.manifest
        vision = manifest.vision
        for source in images:
            if vision is None:
                raise InputError("this model takes no pictures", hint="ask without an image, or load another bundle")
            start = time.perf_counter()
            picture = load_image(source)
            parts = split_regions(picture, vision.regions) if vision.regions else [picture]
            views = prepare_views(parts, vision)
            with self._engine.lock:
                embeddings = self._engine.encode(views)
            progress.waiting[progress.pictures] = embeddings.reshape(-1, embeddings.shape[-1])
            progress.pictures += 1
            progress.vision_s += time.perf_counter() - start
        if manifest.prompt.image_position == "first" and images:
            pieces = turn_pieces(manifest.prompt, "", progress.pictures)
            self._place(progress, pieces[: 2 * progress.pictures])

    def _place(self, progress: Progress, pieces: Sequence[Piece]) -> None:
        """Queue the pieces of the coming turn that are not placed yet."""
        for piece in pieces[progress.placed :]:
            if isinstance(piece, ImageSlot):
                embeddings = progress.waiting.pop(piece.index)
                progress.queue.append(embeddings)
                progress.image_tokens += len(embeddings)
            else:
                ids = self._tokenizer.encode(piece)
                progress.queue.append(ids)
                progress.prompt_tokens += len(ids)
        progress.placed = len(pieces)

    def _prefill(self, progress: Progress, sampler: Sampler | None) -> int:
        """Feed the queue in one go; return the next token, or -1 without a sampler."""
        if self._padding == "left16" and progress.tokens == 0:
            pads = -sum(map(len, progress.queue)) % PAD_TO
            progress.queue.insert(0, [self._engine.manifest.tokenizer.pad_id] * pads)
            progress.prompt_tokens += pads
        start = time.perf_counter()
        rows = [x if isinstance(x, np.ndarray) else self._engine.embed(x) for x in progress.queue if len(x)]
        segment = np.concatenate(rows)
        token = self._advance(segment, sampler)
        progress.tokens += len(segment)
        progress.queue = []
        progress.prefill_s += time.perf_counter() - start
        return token

    def _advance(self, x: Sequence[int] | np.ndarray, sampler: Sampler | None) -> int:
        """Feed `x` and pick the next token; whatever goes wrong here breaks the session."""
        try:
            # The logits belong to the engine, so they are read before another session may run.
            with self._engine.lock:
                logits = self._engine.advance(x, self._state)
                return -1 if sampler is None else sampler.pick(logits)
        except BaseException as error:
            self._broken = repr(error)
            raise

    def _end_turn(self, progress: Progress, question: str, reply: Reply, reason: FinishReason) -> None:
        """Record the turn, and queue what the transcript still lacks of it."""
        rest = closing_ids(self._tokenizer, self._engine.manifest.prompt, reply.ids)
        turn = Turn(question, progress.pictures, reply.shown + reply.text, reason)
        history = [*progress.history, turn][-HISTORY:]
        self._progress = Progress(history, progress.tokens, [rest], prompt_tokens=len(rest))

    @contextmanager
    def _exclusive(self, *, broken_too: bool = False) -> Iterator[None]:
        """Hold the session; raise `StateError` if it is held already, or broken."""
        if not self._busy.acquire(blocking=False):
            raise StateError(
                "the session is busy: an answer is streaming, or another thread uses it",
                hint="finish or close the running answer first, or work on a fork()",
            )
        try:
            if self._broken is not None and not broken_too:
                raise StateError(
                    f"the session broke in the middle of a step: {self._broken}",
                    hint="reset() it, or restore() a snapshot",
                )
            yield
        finally:
            self._busy.release()
