"""One answer in the making: its tokens, what of its text may already be shown, and what it cost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtime.sampling import GenerateOptions
from runtime.spec import Manifest
from runtime.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Stats:
    """Counts and seconds of one turn; pictures seen before the question belong to its turn."""

    prompt_tokens: int  # text positions fed for the question: template, padding and the end of the turn before
    image_tokens: int
    generated_tokens: int
    ttft_s: float  # from the first `next` of ask() to the first token
    vision_s: float  # reading, preparing and encoding the turn's pictures
    prefill_s: float  # feeding its prompt and pictures, those fed by see() included
    decode_s: float  # the steps after the first token, without the time the caller took between chunks
    tokens_per_s: float  # of those steps; 0 if there was none
    rss_bytes: int  # resident memory of the process; 0 where the system does not tell
    state_bytes: int
    cached_tokens: int = 0  # of the prompt and image positions: found in the cache, not computed


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer. Only the last has a finish reason and stats; its text may be empty."""

    text: str
    token_ids: tuple[int, ...]  # sampled since the previous chunk, tokens whose text is still held back included
    finish_reason: FinishReason | None = None
    stats: Stats | None = None


class Reply:
    """The tokens of one answer, and what of their text may be shown."""

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer, options: GenerateOptions) -> None:
        """Begin with nothing sampled."""
        self._stop_ids = () if options.ignore_stop else manifest.tokenizer.stop_ids
        self._filter = TextFilter(() if options.ignore_stop else (manifest.prompt.turn_end, *options.stop))
        self._stream = tokenizer.stream()
        self._max_tokens = options.max_tokens
        self._reported = 0
        self.ids: list[int] = []
        self.shown = ""  # in chunks so far
        self.text = ""  # to be shown in the next

    def add(self, token: int) -> FinishReason | None:
        """Take a sampled token; return why the answer ends with it, if it does."""
        self.ids.append(token)
        if token in self._stop_ids:
            return "stop"
        self.text += self._filter.push(self._stream.feed(token))
        if self._filter.stopped:
            return "stop"
        return "length" if len(self.ids) >= self._max_tokens else None

    def finish(self) -> None:
        """Let go of the text that was held back."""
        self.text += self._filter.push(self._stream.flush()) + self._filter.finish()

    def chunk(self, reason: FinishReason | None = None, stats: Stats | None = None) -> Chunk:
        """Return what is new since the last chunk."""
        chunk = Chunk(self.text, tuple(self.ids[self._reported :]), reason, stats)
        self.shown, self.text, self._reported = self.shown + self.text, "", len(self.ids)
        return chunk


class TextFilter:
    """Cuts an answer before the first stop string and strips it, while it streams.

    However the text is cut into pieces, the pieces returned join to `text.split(first stop)[0].strip()`. Of
    several stop strings the one that is complete first counts; of two complete at once, the longer.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Watch for `stops`, none of them empty."""
        self._stops = tuple(stops)
        self._held = ""
        self._started = False
        self.stopped = False

    def push(self, text: str) -> str:
        """Take more text; return what may be shown now. Nothing is returned after a stop string."""
        if self.stopped:
            return ""
        self._held += text
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._show(min(found)[1], last=True)
        return self._show(len(self._held) - self._unsure(), last=False)

    def finish(self) -> str:
        """Return what was held back and is text after all; white space at the end is not."""
        return "" if self.stopped else self._show(len(self._held), last=True)

    def _unsure(self) -> int:
        """Length of the longest end of the held text that could become a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stops):
                return size
        return 0

    def _show(self, end: int, *, last: bool) -> str:
        shown = self._held[:end].rstrip()
        self._held = "" if last else self._held[len(shown) :]
        if not self._started:
            shown = shown.lstrip()
            self._started = bool(shown)
        return shown


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes, or 0 on a system without /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
