"""The loop of webcam_qa: which question is asked about which frame, and when to stop."""

from __future__ import annotations

import time
from collections.abc import Sequence

from apps.conversation import Answer, Conversation
from apps.latest import LatestFrame
from apps.questions import Inbox, Question
from apps.sources import Frame
from runtime.errors import ConfigError, InputError, StateError

WAIT_S = 0.2  # how long any wait lasts before the reasons to stop are looked at again
OLD_FRAME_S = 3.0  # of a live source: an answer about an older frame says so
HELP = """  Type a question about what the camera shows now. Also:
  /frame  the newest frame: its number, time, size, age     /stop  end the answer that is streaming
  /reset  forget the conversation                           /quit  stop watching
"""


class Watcher:
    """Asks `conversation` about the frames of `reader`, until done or `duration_s` seconds have passed."""

    def __init__(self, reader: LatestFrame, conversation: Conversation, *, duration_s: float | None = None) -> None:
        self._reader, self._conversation = reader, conversation
        self._end = None if duration_s is None else time.monotonic() + duration_s
        self.answers: list[Answer] = []

    def run_script(self, questions: Sequence[Question]) -> None:
        """Ask each question about the frame of its time, however long the answers before it took."""
        for question in questions:
            frames = []
            for moment in (*question.earlier_s, question.time_s or 0.0):
                while (frame := self._reader.at(moment, timeout=WAIT_S)) is None:
                    self._tell_notices()
                    if self._timed_out():
                        return
                frames.append(frame)
            self._ask(question, frames)

    def run_questions(self, questions: Sequence[str], every_s: float | None) -> None:
        """Ask about the newest frame: once, or every `every_s` seconds until the source ends."""
        after, due = -1, time.monotonic()
        while True:
            frame = None
            for text in questions:
                newest = self._next_frame(after if frame is None else -1)
                if newest is None:
                    return
                frame = newest
                self._ask(Question(text), [frame])
            if every_s is None or frame is None:
                return
            after, due = frame.number, max(due + every_s, time.monotonic())
            while time.monotonic() < due and not self._over():
                self._tell_notices()
                time.sleep(min(WAIT_S, max(0.0, due - time.monotonic())))

    def run_typed(self, inbox: Inbox, terminal: bool) -> None:
        """Ask what is typed, until /quit, the end of the input, `max_frames` or the time is over."""
        self._conversation.stopped = inbox.interrupted
        if terminal:
            print("  Type a question, /help for help, /quit to stop.\n? ", end="", flush=True)
        while not self._timed_out() and not self._reader.full:
            self._tell_notices()
            if self._reader.error is not None:
                raise self._reader.error
            line = inbox.get(WAIT_S)
            if line is None:
                if inbox.ended:
                    break
                continue
            if line in ("/quit", "/q", "/exit"):
                return
            if line.startswith("/"):
                self._command(line)
            elif line:
                frame = self._next_frame(-1)
                if frame is None:
                    break
                self._ask(Question(line), [frame])
            if terminal:
                print("? ", end="", flush=True)
        if not self.answers and not terminal and not self._timed_out():
            raise ConfigError("no question was asked", hint='add --question "What do you see?"')

    def verdict(self, wanted: int) -> int:
        """Return the exit code of --check: 0 when `wanted` answers (-1: all) are right, else 1."""
        known = [a.right for a in self.answers if a.right is not None]
        wanted = len(known) if wanted < 0 else wanted
        return 0 if known and sum(known) >= wanted else 1

    def summary(self, saved: str = "") -> None:
        """Print what was watched, asked and written."""
        counts, known = self._reader.counts, [a.right for a in self.answers if a.right is not None]
        parts = [f"{len(self.answers)} questions"]
        if known:
            parts.append(f"{sum(known)} of {len(known)} right")
        parts.append(f"{counts.read} frames read, {counts.used} used, {counts.dropped} dropped")
        if counts.reconnects:
            parts.append(f"{counts.reconnects} reconnects")
        if saved:
            parts.append(f"saved {saved}")
        print(" · ".join(parts), flush=True)

    def _ask(self, question: Question, frames: Sequence[Frame]) -> None:
        self._tell_notices()
        age = self._reader.age_s if self._reader.source.live else 0.0
        print(f"[{frames[-1].time_s:7.2f} s]" + (f" (seen {age:.0f} s ago)" if age > OLD_FRAME_S else ""))
        try:
            answer = self._conversation.ask(question, frames)
        except (InputError, StateError) as error:  # this question failed; the next may not
            print(f"\n  {error}", flush=True)
            return
        self.answers.append(answer)
        counts = self._reader.counts
        print(f"  {answer.figures} · {counts.dropped} of {counts.read} frames dropped\n", flush=True)

    def _command(self, line: str) -> None:
        if line == "/reset":
            turns = self._conversation.turns
            self._conversation.reset()
            print(f"  forgot {turns} questions", flush=True)
        elif line == "/frame":
            frame, counts = self._next_frame(-1), self._reader.counts
            if frame is not None:
                height, width = frame.image.shape[:2]
                print(
                    f"  frame {frame.number} at {frame.time_s:.2f} s, {width} x {height}, "
                    f"{self._reader.age_s:.2f} s old · {counts.dropped} of {counts.read} dropped, "
                    f"{counts.reconnects} reconnects · {self._conversation.turns} questions so far"
                )
        elif line != "/stop":
            print(HELP if line == "/help" else f"  there is no {line}; /help lists what there is", flush=True)

    def _next_frame(self, after: int) -> Frame | None:
        while not self._timed_out():
            frame = self._reader.latest(after=after, timeout=WAIT_S)
            if frame is not None or self._reader.ended:
                return frame
            self._tell_notices()
        return None

    def _tell_notices(self) -> None:
        for notice in self._reader.notices():
            print(f"  ({notice})", flush=True)

    def _timed_out(self) -> bool:
        return self._end is not None and time.monotonic() >= self._end

    def _over(self) -> bool:
        return self._timed_out() or self._reader.ended
