"""Bringing a session to where a conversation stands: from a kept state, or by reading what was said again.

Answers that are read again are tokenised as the model was trained on them, opening and end of turn included; one that
this server gave is usually found among the kept states and not read again. The prompt template has no system role:
what the system says is fed as `System: TEXT`, the form `python -m export --system-prompt` uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from apps.serve.messages import Said
from runtime import Session, VisualRWKV
from runtime.feeding import Feeder
from runtime.progress import Progress, SessionSnapshot
from runtime.prompt import Turn, answer_piece, clean, turn_pieces
from runtime.session import HISTORY
from runtime.shared import Shared


class Replay:
    """Prepares sessions of one model. Thread-safe, as the scheduler is."""

    def __init__(self, model: VisualRWKV) -> None:
        """Feed through the model's scheduler, with its picture cache."""
        self._model = model
        self._feeder = Feeder(model.scheduler, model.tokenizer, Shared(cache=model.cache))

    def prepare(
        self, session: Session, kept: SessionSnapshot | None, said: Sequence[Said], stopped: Callable[[], bool]
    ) -> None:
        """Bring a session to where the last of `said` can be asked.

        Args:
            session: any, in any condition; what it held is gone.
            kept: what is known already; None for nothing.
            said: the turns after it, all answered but the last, of which only the system's text is taken.
            stopped: asked between turns; True ends the reading.

        Raises:
            InputError: a picture or a text that the model cannot take.
        """
        session.reset()
        if kept is not None:
            session.restore(kept)
        if len(said) > 1:
            session.restore(self._read(session.snapshot(), said[:-1], stopped))
        if said[-1].system:
            snapshot = session.snapshot()
            progress = snapshot.progress.copy()
            self._queue_system(progress, said[-1].system)
            session.restore(replace(snapshot, progress=progress))

    def _read(self, start: SessionSnapshot, said: Sequence[Said], stopped: Callable[[], bool]) -> SessionSnapshot:
        model, prompt = self._model, self._model.manifest.prompt
        state = model.scheduler.new_state()
        state.restore(start.state)
        progress = start.progress.copy()
        for one in said:
            if stopped():
                break
            if one.system:
                self._queue_system(progress, one.system)
            self._feeder.look(progress, [image.image for image in one.images])
            self._feeder.stand_in(progress)
            history = [*progress.history, Turn(one.question, progress.pictures)]
            pieces = turn_pieces(prompt, one.question, progress.pictures, turns=history, placed=progress.placed)
            self._feeder.place(progress, [*pieces[:-1], answer_piece(prompt, one.answer or "")])
            self._feeder.feed(progress, state, start.padding)
            turn = Turn(one.question, progress.pictures, one.answer, "stop")
            progress = Progress([*progress.history, turn][-HISTORY:], progress.tokens, progress.frames)
        snapshot = state.snapshot()
        for array in snapshot.arrays.values():
            array.flags.writeable = False
        return SessionSnapshot(snapshot, progress, start.padding)

    def _queue_system(self, progress: Progress, text: str) -> None:
        body = clean(text)
        if body:
            ids = self._model.tokenizer.encode(f"System: {body}{self._model.manifest.prompt.turn_end}")
            progress.queue.append(ids)
            progress.prompt_tokens += len(ids)
