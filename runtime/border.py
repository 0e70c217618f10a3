"""Who has a watched session: the thread that feeds frames, for one of them, or a question, for one copy.

A question goes before the next frame, and until its first token no frame is begun. So that many questions do not keep
frames away, a frame that had to wait for one question goes before the next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Border:
    """Takes turns between one feeding thread and any number of questions."""

    def __init__(self) -> None:
        """Begin with nobody inside."""
        self.changed = threading.Condition()
        self.asking = 0  # questions without a first token
        self.answering = 0  # questions with one, not finished
        self.closing = False
        self._user: int | None = None  # thread
        self._blocked = False  # a frame waits for questions
        self._owed = False  # it comes before the next of them

    def lets_in(self) -> bool:
        """Whether this thread has the session."""
        return self._user == threading.get_ident()

    def hold_back(self, due_in_s: float, waiting: bool, poll_s: float) -> bool:
        """Wait at most `poll_s` if no frame is due, or a question goes first; whether to look again.

        Args:
            due_in_s: when a frame is due, in seconds from now.
            waiting: whether there is one.
            poll_s: real seconds.
        """
        with self.changed:
            if due_in_s > 0:
                self.changed.wait(min(due_in_s, poll_s))
                return True
            if self.asking and not self._owed:
                self._blocked = waiting
                self.changed.wait(poll_s)
                return True
            return False

    @contextmanager
    def frame(self) -> Iterator[None]:
        """Have the session for one frame; afterwards nothing is owed."""
        with self.changed:
            self._blocked = True
        with self._alone(lambda: not self.asking or self._owed):
            yield

    def frame_done(self) -> None:
        """The frame that was waiting is fed, or will not be."""
        with self.changed:
            self._blocked = self._owed = False
            self.changed.notify_all()

    @contextmanager
    def question(self) -> Iterator[None]:
        """Have the session for the copy that a question is asked on."""
        with self._alone(lambda: not (self._owed and self._blocked)):
            yield

    def first_token(self) -> None:
        """A question has its first token: a frame may go on."""
        with self.changed:
            self.asking, self.answering = self.asking - 1, self.answering + 1
            self._owed = self._blocked
            self.changed.notify_all()

    def answered(self, first_token: bool) -> None:
        """A question is done with, with or without a first token."""
        with self.changed:
            if first_token:
                self.answering -= 1
            else:
                self.asking -= 1
            self.changed.notify_all()

    def close(self) -> None:
        """Make nobody wait any longer for anything but the one inside."""
        with self.changed:
            self.closing = True
            self.changed.notify_all()

    @contextmanager
    def _alone(self, allowed: Callable[[], bool]) -> Iterator[None]:
        with self.changed:
            self.changed.wait_for(lambda: self._user is None and (allowed() or self.closing))
            self._user = threading.get_ident()
        try:
            yield
        finally:
            with self.changed:
                self._user = None
                self.changed.notify_all()
