"""One conversation: what is typed becomes pictures, questions and commands."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from apps.chat.paths import read_path, split_pictures
from apps.chat.screen import Screen
from runtime import GenerateOptions, Session
from runtime.errors import ConfigError, InputError, StateError
from runtime.image import load_image

if TYPE_CHECKING:
    from runtime import VisualRWKV

HELP = """\
Type a question. A picture dropped into the window, or its path, is looked at first.
/image FILE ...  look at pictures          /history     what was said
/undo            take the last step back   /save FILE   keep the conversation in a file
/fork            try something from here   /load FILE   go on with a kept one
/back            return to before /fork    /reset       forget everything
/quit            leave (or Ctrl-D)         Ctrl-C       stop the answer; twice: leave"""


@dataclass
class _Place:
    """A conversation to come back to, and its steps that can be taken back."""

    session: Session
    steps: list[str]


class Talk:
    """Takes lines, and shows what comes of them."""

    def __init__(self, model: VisualRWKV, screen: Screen, options: GenerateOptions, state: Path | None = None) -> None:
        """Begin a conversation, or go on with a saved one. Raises what `VisualRWKV.session` does."""
        self._model, self._screen, self._options = model, screen, options
        self._here = _Place(model.session(state), [])
        self._before: list[_Place] = []  # conversations that were forked from
        self._ours = {state.resolve()} if state else set()  # files that may be written over
        self.stopped = False  # whether Ctrl-C ended the last line's answer
        self._commands: dict[str, Callable[[str], object]] = {
            "/image": self._image,
            "/undo": self._undo,
            "/fork": self._fork,
            "/back": self._back,
            "/history": self._history,
            "/save": self._save,
            "/load": self._load,
            "/reset": self._reset,
            "/help": lambda _: screen.note(HELP),
        }

    def line(self, text: str) -> bool:
        """Do what a line says; return False if it says to leave.

        Raises `VisualRWKVError` for what cannot be done; the conversation is then as it was.
        """
        text, self.stopped = text.strip(), False
        pictures, rest = split_pictures(text)
        word, _, argument = text.partition(" ")
        if not pictures and word in ("/quit", "/exit", "/q"):
            return False
        if (not pictures and word.startswith("/")) or word in self._commands:
            self._command(word, argument.strip())
            return True
        self.look(pictures)
        if rest:
            self.ask(rest)
        return True

    def look(self, pictures: list[Path]) -> None:
        """Look at pictures, each a step of its own. Raises `InputError` for one that cannot be used."""
        for path in pictures:
            size = load_image(path).shape
            with _interrupt(lambda: None):  # soon over
                self._here.session.see(path)
            self._here.steps.append(f"the picture {path.name}")
            self._screen.picture(path, (size[1], size[0]))

    def ask(self, question: str) -> None:
        """Ask, and stream the answer. Ctrl-C ends it; a second one is a `KeyboardInterrupt`."""
        session = self._here.session
        stats, reason, self.stopped = None, "cancelled", False

        def stop() -> None:
            self.stopped = True
            session.cancel()

        with _interrupt(stop), self._screen.answer() as piece:
            for chunk in session.ask(question, options=self._options):
                piece(chunk.text)
                stats, reason = chunk.stats, chunk.finish_reason or reason
        self._here.steps.append(f"the question {question!r}")
        if stats is not None:
            self._screen.figures(stats, reason, session.tokens)

    def _command(self, word: str, argument: str) -> None:
        command = self._commands.get(word)
        if command is None:
            close = get_close_matches(word, self._commands, 1, 0.5)
            hint = f"did you mean {close[0]}?" if close else "/help lists the commands"
            raise InputError(f"there is no {word}, neither a command nor a picture", hint=hint)
        command(argument)

    def _image(self, argument: str) -> None:
        pictures, rest = split_pictures(argument)
        if not pictures and argument:
            pictures, rest = [read_path(argument)], ""  # whatever it is called
        if not pictures or rest:
            raise InputError(f"no picture at {rest!r}" if rest else "/image without a file", wanted="/image FILE ...")
        self.look(pictures)

    def _undo(self, _: str) -> None:
        self._here.session.undo()
        step = self._here.steps.pop() if self._here.steps else "the last step"
        self._screen.note(f"took back {step}")

    def _fork(self, _: str) -> None:
        place = _Place(self._here.session.fork(), [])
        self._before.append(self._here)
        self._here = place
        self._screen.note("in a copy of the conversation; /back returns")

    def _back(self, _: str) -> None:
        if not self._before:
            raise StateError("there is no fork to return from", hint="/fork makes one")
        self._here = self._before.pop()
        self._screen.note("back where the fork began; what was said in it is gone")

    def _history(self, _: str) -> None:
        turns = self._here.session.history
        lines = []
        for turn in turns:
            pictures = f"[{turn.images} picture{'s' * (turn.images > 1)}] " if turn.images else ""
            lines += [f"> {pictures}{turn.question}", turn.answer or ""]
        self._screen.note("\n".join(lines) or "nothing was said yet")

    def _save(self, argument: str) -> None:
        path = self._file(argument, "/save FILE")
        if path.exists() and path.resolve() not in self._ours:
            raise ConfigError(f"{path} is there already", hint="choose another name, or remove it first")
        self._here.session.save(path)
        self._ours.add(path.resolve())
        self._screen.note(f"saved to {path}")

    def _load(self, argument: str) -> None:
        path = self._file(argument, "/load FILE")
        self._here = _Place(self._model.session(path), [])
        self._before.clear()
        self._ours.add(path.resolve())
        self._screen.note(f"goes on with {path}: {self._here.session.tokens} tokens")

    def _reset(self, _: str) -> None:
        self._here.session.reset()
        self._here.steps.clear()
        self._screen.note("everything is forgotten")

    def _file(self, argument: str, usage: str) -> Path:
        if not argument:
            raise ConfigError(f"{usage.split()[0]} without a file", wanted=usage)
        return read_path(argument)


@contextmanager
def _interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Let the first Ctrl-C end things in good order: in the middle of a step it would break the session."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def first(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    before = signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
