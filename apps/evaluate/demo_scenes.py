"""The embedded demo model's own task: questions about scenes it never saw, right only if right to the letter."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from apps.demo.evaluate import LANGUAGES, _draws, picture_of
from apps.demo.questions import KINDS, ask
from apps.demo.scenes import scene_of
from apps.evaluate.sample import Problem, Sample
from apps.evaluate.source import Data, Notes, Source

FIRST, SCENES = 50_000, 500  # the seeds `python -m apps.demo.evaluate` begins with
_DRAWING = threading.Lock()


def letter_worth(answer: str, truth: str) -> float:
    """1 where both are the same."""
    return float(answer == truth)


@lru_cache(maxsize=16)
def _drawn_once(seed: int) -> np.ndarray:
    return np.ascontiguousarray(picture_of(seed)[:, :, ::-1])


@dataclass(frozen=True)
class Drawn:
    """A scene's picture, RGB, drawn when it is looked at; all questions about a scene come at the same time."""

    seed: int

    def __call__(self) -> np.ndarray:
        with _DRAWING:
            return _drawn_once(self.seed)


class Demo(Source):
    """Every kind of question about one picture, in English and Chinese. Needs no data: scenes are drawn."""

    names = ("demo",)
    layouts = "nothing: its scenes are drawn"

    def read(self, data: Data, pictures: bool, notes: Notes) -> Iterator[Sample | Problem]:
        """Yield the questions of as many scenes as the limit says, or of `SCENES`."""
        for seed in range(FIRST, FIRST + (data.limit or SCENES)):
            scene = scene_of(seed)
            image = (Drawn(seed),) if pictures else ()
            for kind in KINDS:
                rng = _draws(seed, kind)  # the same questions, drawn in the same order
                for language in LANGUAGES:
                    if item := ask(scene, kind, rng, language):
                        key = f"{seed} {kind} {language}"
                        tags = (item.kind, LANGUAGES[language])
                        yield Sample(key, item.question, image, item.answer, item.answer, str(seed), tags)
