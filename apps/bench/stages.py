"""Time to the first token for a picture never seen before, split into what a session does on the way."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime import GenerateOptions, VisualRWKV
from runtime.engine import Embeddings, Encoded, Engine, Tokens
from runtime.scheduler import Scheduler
from runtime.state import State

QUESTION = "What do you see?"
STAGES = ("preprocess", "vision", "prefill", "first token")
WIDTH, HEIGHT = 640, 480


class TimedScheduler(Scheduler):
    """A scheduler that adds up the seconds spent in the vision graphs and in feeding."""

    def __init__(self, engine: Engine) -> None:
        """Begin with no seconds."""
        super().__init__(engine)
        self.vision_s = self.feed_s = 0.0

    def encode(self, views: Mapping[str, np.ndarray]) -> Encoded:
        """`Scheduler.encode`, timed."""
        start = time.perf_counter()
        try:
            return super().encode(views)
        finally:
            self.vision_s += time.perf_counter() - start

    def context(self, features: np.ndarray) -> dict[str, np.ndarray]:
        """`Scheduler.context`, timed as vision."""
        start = time.perf_counter()
        try:
            return super().context(features)
        finally:
            self.vision_s += time.perf_counter() - start

    def advance(self, x: Tokens | Embeddings, state: State, image: tuple[int, int] | None = None) -> np.ndarray:
        """`Scheduler.advance`, timed."""
        start = time.perf_counter()
        try:
            return super().advance(x, state, image)
        finally:
            self.feed_s += time.perf_counter() - start


class FirstToken:
    """Shows a fresh frame to a conversation and waits for the first token, as often as it is called."""

    def __init__(self, model: VisualRWKV, seed: int = 0) -> None:
        """Open a session whose calls are timed. Frames are noise: no stage depends on what a picture shows."""
        self._timed = model.scheduler = TimedScheduler(model.engine)
        self._session = model.session()
        self._takes_pictures = model.manifest.vision is not None
        self._rng = np.random.default_rng(seed)
        self.fed: dict[str, int] = {}  # positions of the last question and picture

    def __call__(self) -> dict[str, float]:
        """Return the milliseconds of each stage and of all, from handing over the frame to having the first token.

        "preprocess" is reading, hashing, resizing and normalising; "first token" is what is left: the template,
        sampling, text, and checking and keeping the state.
        """
        self._session.reset()
        frame = self._rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        self._timed.vision_s = self._timed.feed_s = 0.0
        options = GenerateOptions(max_tokens=1, ignore_stop=True)
        start = time.perf_counter()
        if self._takes_pictures:
            self._session.see(frame)
        last = list(self._session.ask(QUESTION, options=options))[-1]
        total = time.perf_counter() - start
        assert last.stats is not None
        vision, feed = self._timed.vision_s, self._timed.feed_s
        # The seconds of `Stats.vision_s` hold reading, preparing and encoding, but not HM's context.
        prepare = max(0.0, last.stats.vision_s - vision)
        seconds = (prepare, vision, feed, total - prepare - vision - feed)
        self.fed = {"prompt": last.stats.prompt_tokens, "image": last.stats.image_tokens}
        return {**{name: 1e3 * value for name, value in zip(STAGES, seconds, strict=True)}, "total": 1e3 * total}


def share_outside(stages: Mapping[str, Any]) -> float:
    """Return the share of the whole that is neither the vision encoder nor the prefill, from medians."""
    outside = stages["preprocess"]["median"] + stages["first token"]["median"]
    return float(outside / stages["total"]["median"])
