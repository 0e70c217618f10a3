"""Asking a model about frames: which session a question goes to, what is printed while the answer streams."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apps.annotate import Caption
from apps.questions import Question, is_right
from apps.sources import Frame
from runtime.errors import InputError

if TYPE_CHECKING:
    from runtime import GenerateOptions, Session, VisualRWKV
    from runtime.spec import Padding


@dataclass(frozen=True)
class Answer:
    """What the model said, and what it took.

    `ttft_s` runs from taking the frame to the first text: preprocessing, vision, prompt and the first token.
    """

    text: str
    finish_reason: str
    ttft_s: float
    tokens: int
    tokens_per_s: float
    rss_bytes: int
    context_tokens: int  # fed to the session so far, this answer included
    right: bool | None  # None where the true answer is not known

    @property
    def figures(self) -> str:
        """The measurements on one line."""
        return (
            f"TTFT {self.ttft_s:.2f} s · {self.tokens_per_s:.1f} tokens/s · {self.tokens} tokens · "
            f"context {self.context_tokens} · {self.rss_bytes / 2**20:.0f} MiB"
        )


class Conversation:
    """Asks questions about frames, each in a session of its own, or all in one with `keep`.

    A frame is shown once per session: a second question about it costs no vision.
    """

    def __init__(
        self,
        model: VisualRWKV,
        options: GenerateOptions,
        *,
        padding: Padding | None = None,
        keep: bool = False,
        say: Callable[[str], None] = lambda text: print(text, end="", flush=True),
    ) -> None:
        """`say` prints the streamed text."""
        self._model, self._options, self._padding, self.keep = model, options, padding, keep
        self._say = say
        self.caption: Callable[[Caption], None] = lambda caption: None  # told what to write over a video
        self.stopped: Callable[[], bool] = lambda: False  # asked after every piece: True ends the answer
        self._session: Session | None = None
        self._shown = -1
        self.turns = 0  # questions since the last reset

    def reset(self) -> None:
        """Forget everything said and seen; the next question starts a new session."""
        self._session, self._shown, self.turns = None, -1, 0

    def ask(self, question: Question, frames: Sequence[Frame]) -> Answer:
        """Show `frames`, ask, stream the answer and return it.

        Raises what the session raises. The conversation is then reset, except after an `InputError`, which
        leaves the session as it was.
        """
        try:
            return self._ask(question, frames)
        except InputError:
            raise
        except BaseException:
            self.reset()
            raise

    def _ask(self, question: Question, frames: Sequence[Frame]) -> Answer:
        began = time.monotonic()
        if self._session is None or not (self.keep or question.follow_up):
            self.reset()
            self._session = self._model.session(padding=self._padding)
        for frame in frames:
            if frame.number > self._shown:
                self._session.see(frame.image)
                self._shown = frame.number
        self._say(f"  {question.text}\n  > ")
        text, first = "", 0.0
        stats, reason = None, None
        for chunk in self._session.ask(question.text, options=self._options):
            if chunk.text and not text:
                first = time.monotonic() - began
            text += chunk.text
            self._say(chunk.text)
            self.caption(Caption(question.text, text))
            stats, reason = chunk.stats, chunk.finish_reason
            if reason is None and self.stopped():
                self._session.cancel()
        self.turns += 1
        right = None if question.expected is None else is_right(text, question.expected)
        answer = Answer(
            text=text,
            finish_reason=reason or "cancelled",
            ttft_s=first,
            tokens=stats.generated_tokens if stats else 0,
            tokens_per_s=stats.tokens_per_s if stats else 0.0,
            rss_bytes=stats.rss_bytes if stats else 0,
            context_tokens=self._session.tokens,
            right=right,
        )
        self._show_end(question, answer)
        return answer

    def _show_end(self, question: Question, answer: Answer) -> None:
        verdict = ""
        if answer.right is not None:
            verdict = "   [right]" if answer.right else f"   [wrong: it is {question.expected}]"
        if answer.finish_reason != "stop":
            verdict += f"   [{answer.finish_reason}]"
        self._say(f"{verdict}\n")
        self.caption(Caption(question.text, answer.text + verdict, answer.figures))
