"""Where a conversation stands, besides the state: what is fed, what waits to be fed, what was said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from runtime.prompt import Turn
from runtime.spec import Padding
from runtime.state import Snapshot


@dataclass(frozen=True)
class Picture:
    """The embeddings of one picture, all its regions in a row."""

    embeddings: np.ndarray  # [tokens, C] float32, never written
    key: bytes = b""  # tells it from any other picture of this model; empty where nothing is cached

    def __len__(self) -> int:
        return len(self.embeddings)


Queued = list[int] | Picture


@dataclass
class Progress:
    """Where a conversation stands, besides the state."""

    history: list[Turn] = field(default_factory=list)
    tokens: int = 0  # positions fed so far, pictures and padding included
    frames: int = 0  # pictures looked at so far
    key: bytes | None = None  # digest of all that was fed (`runtime.cache`); None from the first question on
    queue: list[Queued] = field(default_factory=list)  # to be fed before anything else
    pictures: int = 0  # given for the coming question
    waiting: dict[int, Picture] = field(default_factory=dict)  # not yet queued
    features: list[np.ndarray] = field(default_factory=list)  # [cells, C] each, of the coming turn's pictures
    placed: int = 0  # pieces of the coming turn that are in the queue, or fed
    prompt_tokens: int = 0  # of the coming turn, like the four below
    image_tokens: int = 0
    cached_tokens: int = 0  # of both: found in the cache instead of computed
    vision_s: float = 0.0
    prefill_s: float = 0.0

    def copy(self) -> Progress:
        """Return an independent copy; arrays and turns, never written, are shared."""
        return replace(
            self,
            history=self.history[:],
            queue=self.queue[:],
            waiting=dict(self.waiting),
            features=self.features[:],
        )


@dataclass(frozen=True)
class Start:
    """Where a session begins, and where `reset` takes it: nothing, a persona or a baked state."""

    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)  # by slot; slots that are missing are zero
    progress: Progress = field(default_factory=Progress)


@dataclass(frozen=True)
class SessionSnapshot:
    """A whole conversation at one moment, on the host."""

    state: Snapshot
    progress: Progress
    padding: Padding
