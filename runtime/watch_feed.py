"""From a frame to the session that watches: feeding, mending, going back to a clean state, and copies for questions.

Called with the session held (`runtime.border`).
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.errors import InputError, RollbackError, StateError
from runtime.frames import FrameRing, Slot
from runtime.logs import event
from runtime.progress import Progress
from runtime.watch_options import WatchOptions

if TYPE_CHECKING:
    from runtime.session import Session

MAX_FAILURES = 3  # frames in a row that could not be fed before a watch gives up
_log = logging.getLogger(__name__)


@dataclass
class Fed:
    """What became of the frames that were to be fed."""

    fed: int = 0
    failed: int = 0
    errors: int = 0
    refreshes: int = 0
    rollbacks: int = 0


class FrameFeeder:
    """Shows frames to a session; `counts` is written by one thread only."""

    def __init__(self, session: Session, ring: FrameRing, options: WatchOptions) -> None:
        """Remember where the session stands: that is its clean state."""
        self._session, self._ring, self._options = session, ring, options
        self._kept: deque[Slot] = deque()
        self._frame_tokens = self._in_a_row = 0
        self.anchor = session.snapshot()
        self.counts = Fed()

    def feed(self, slot: Slot) -> bool:
        """Feed one frame, a second time if something failed; return whether it is in, and its room taken care of.

        Raises `StateError` after `MAX_FAILURES` frames in a row that could not be fed. Whatever happens, the session
        stands behind the last good frame.
        """
        for again in (True, False):
            try:
                self._show(slot)
            except InputError as error:  # the picture's fault: the same would happen again
                self._tell("frame_refused", error, again=False)
                break
            except Exception as error:  # backends raise what they like
                self.counts.rollbacks += isinstance(error, RollbackError)
                self.counts.errors += 1
                self._tell("frame_failed", error, again=again)
                self._mend()
            else:
                self.counts.fed += 1
                self._in_a_row = 0
                self._keep(slot)
                return True
        self.counts.failed += 1
        self._in_a_row += 1
        if self._in_a_row >= MAX_FAILURES:
            raise StateError(
                f"{self._in_a_row} frames in a row could not be fed",
                hint="the session stands behind the last good frame; the log has the reasons; then watch again",
            )
        return False

    def copy_to(self, fork: Session) -> None:
        """Put an answer's session where the question is to be asked."""
        if self._options.window is None:
            fork.restore(self._session.snapshot())
        else:
            fork.restore(self.anchor)
            fork.see(*(slot.image for slot in self._kept))

    def _show(self, slot: Slot) -> None:
        session, horizon = self._session, self._options.horizon
        if self._options.window is not None:
            session._feeder.look(Progress(), [slot.image])  # so that its embeddings are found when a question comes
            return
        if horizon is not None and session.tokens + self._frame_tokens > horizon:
            self._refresh()
        before = session.tokens
        self._see(slot)
        self._frame_tokens = session.tokens - before

    def _see(self, slot: Slot) -> None:
        self._session.see(slot.image)

    def _keep(self, slot: Slot) -> None:
        self._kept.append(slot)
        if len(self._kept) > self._options.kept:
            self._ring.give_back(self._kept.popleft())

    def _refresh(self) -> None:
        """Go back to the clean state, and show the last frames again."""
        before = self._session.tokens
        self._session.restore(self.anchor)
        self.counts.refreshes += 1
        for slot in self._kept:
            self._see(slot)
        after = self._session.tokens
        event(_log, logging.INFO, "refreshed", "went back to the clean state", tokens_before=before, tokens=after)

    def _mend(self) -> None:
        """After a failure in the middle of a step: stand behind the last good frame again."""
        if self._session._broken is None:
            return
        try:
            self._session.undo()
        except StateError:
            self._session.restore(self.anchor)
            self.counts.refreshes += 1

    def _tell(self, name: str, error: Exception, *, again: bool) -> None:
        event(_log, logging.WARNING, name, f"{type(error).__name__}: {error}", frame=self.counts.fed, again=again)
