"""The plan of the sample video: which scenes, how objects move, what is asked when, and the true answers.

An object stays in its cell and apart from others, and an answer holds as long as its scene is on screen.
Everything follows from a seed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from apps.demo.questions import KINDS, Item, about_frame, ask, ask_change
from apps.demo.scenes import CELL, SIDE, Scene, Thing, changed, sample_scene
from runtime.errors import ConfigError

STORIES = ("change", "frames")  # about two pictures
REACH = 2.2  # scene units that an object drifts at most
STILL = 0.4  # the same where "what moved?" is asked
RIM = 1.6  # scene units that an object's centre stays away from its cell's border
GAP = 1.0  # scene units between two objects, or an object and the picture's border
PERIOD = 3.0  # seconds of one swing
LOOK_BACK = 1.0  # seconds before the cut: the earlier picture of a question about two
ATTEMPTS = 5000  # scenes tried until one has the wanted questions
CHECKS_PER_S = 10  # moments at which a question must hold


@dataclass(frozen=True)
class Shot:
    """A scene on screen from `start` to `end` (seconds), its objects swinging around their places."""

    scene: Scene
    start: float
    end: float
    drift: tuple[tuple[float, float, float], ...]  # per object: reach in x and y (scene units), phase

    def at(self, time_s: float) -> Scene:
        """The scene at a moment of the video."""
        things = []
        for thing, (dx, dy, phase) in zip(self.scene.things, self.drift, strict=True):
            angle = 2 * math.pi * (time_s - self.start) / PERIOD + phase
            things.append(replace(thing, x=thing.x + dx * math.sin(angle), y=thing.y + dy * math.cos(angle)))
        return replace(self.scene, things=tuple(things))

    @property
    def moments(self) -> list[float]:
        """Times through the shot at which its questions must hold."""
        count = max(2, round((self.end - self.start) * CHECKS_PER_S))
        return [self.start + (self.end - self.start) * i / count for i in range(count)]


@dataclass(frozen=True)
class Asked:
    """A question of the video: asked at `time_s`, after the frames at `earlier_s`."""

    item: Item
    time_s: float
    earlier_s: tuple[float, ...] = ()

    def entry(self) -> dict[str, Any]:
        """The form that apps/questions.py reads."""
        entry: dict[str, Any] = {"time_s": round(self.time_s, 2)}
        if self.earlier_s:
            entry["earlier_s"] = [round(t, 2) for t in self.earlier_s]
        return {**entry, "question": self.item.question, "answer": self.item.answer}


@dataclass(frozen=True)
class Film:
    """The whole video before it is drawn."""

    shots: tuple[Shot, ...]
    asked: tuple[Asked, ...]

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.shots[-1].end

    def scene(self, time_s: float) -> Scene:
        """The scene on screen at a moment."""
        return next(shot for shot in reversed(self.shots) if time_s >= shot.start).at(time_s)


def plan(kinds: Sequence[str], seed: int, shots: int = 5, seconds: float = 4.0, questions: int = 2) -> Film:
    """Decide scenes, motion and questions.

    Args:
        kinds: of KINDS and STORIES, asked one after the other in an order of their own.
        seed: decides everything.
        shots: number of scenes.
        seconds: how long each is on screen.
        questions: about each scene, all of different kinds where there are enough.

    Raises:
        ConfigError: no scene was found that allows the wanted questions.
    """
    rng = random.Random(f"video {seed}")
    order = rng.sample(list(kinds), len(kinds))
    order.sort(key=lambda kind: kind in STORIES)  # the first scene has nothing before it
    if order[0] in STORIES:
        raise ConfigError("only questions about two pictures", wanted="a kind about one picture among them")
    reach = STILL if "change" in kinds else REACH
    made: list[Shot] = []
    asked: list[Asked] = []
    for number in range(shots):
        wanted = [order[(number * questions + i) % len(order)] for i in range(questions)]
        if number == 0:
            wanted = [order[0] if kind in STORIES else kind for kind in wanted]
        for _ in range(ATTEMPTS):
            shot, change = _shot(rng, made, number * seconds, seconds, wanted, reach)
            found = _ask_all(rng, shot, made, change, wanted) if shot else None
            if shot and found:
                made.append(shot)
                asked += found
                break
        else:
            raise ConfigError(f"no scene allows {' and '.join(wanted)}", hint="another --seed or --kinds")
    return Film(tuple(made), tuple(asked))


def _shot(
    rng: random.Random, made: Sequence[Shot], start: float, seconds: float, kinds: Sequence[str], reach: float
) -> tuple[Shot | None, str]:
    """A scene for the questions, and what changed since the one before; None if it will not do."""
    scene, change = sample_scene(rng), "nothing"
    if "change" in kinds:
        scene, change = changed(rng, made[-1].scene)
        if change == "nothing":
            return None, change
    elif scene.quality == "noisy" or len(scene.things) < 2 or bool(_texts(scene)) != ("text" in kinds):
        return None, change  # noise takes many bytes; the rest is for variety
    drift = tuple(_drift(rng, thing, reach) for thing in scene.things)
    shot = Shot(scene, start, start + seconds, drift)
    return (shot if all(_apart(shot.at(t)) for t in shot.moments) else None), change


def _texts(scene: Scene) -> list[Thing]:
    return [thing for thing in scene.things if thing.text]


def _drift(rng: random.Random, thing: Thing, reach: float) -> tuple[float, float, float]:
    """How far an object may swing without leaving its cell or the picture, and where it begins."""
    room = []
    for place, half in zip((thing.x, thing.y), thing.half, strict=True):
        inside = min(place % CELL, CELL - place % CELL) - RIM
        room.append(max(0.0, min(reach, inside, place - half - GAP, SIDE - place - half - GAP)))
    return room[0], room[1], rng.uniform(0, 2 * math.pi)


def _apart(scene: Scene) -> bool:
    return all(
        abs(a.x - b.x) > a.half[0] + b.half[0] + GAP or abs(a.y - b.y) > a.half[1] + b.half[1] + GAP
        for a, b in combinations(scene.things, 2)
    )


def _ask_all(
    rng: random.Random, shot: Shot, made: Sequence[Shot], change: str, kinds: Sequence[str]
) -> list[Asked] | None:
    """A question of every kind, none twice, each with one answer through the shot; None if that fails."""
    asked: list[Asked] = []
    for i, kind in enumerate(kinds):
        zh, seed = rng.random() < 0.4, rng.random()
        back = (shot.start - LOOK_BACK,) if kind in STORIES else ()
        items = [
            _question(kind, shot.at(t), [shot_.at(s) for s in back for shot_ in made[-1:]], change, seed, zh)
            for t in shot.moments
        ]
        first = items[0]
        if first is None or any(x is None or _words(x) != _words(first) for x in items):
            return None
        time_s = shot.start + (shot.end - shot.start) * (i + 0.5) / (len(kinds) + 0.5)
        asked.append(Asked(first, time_s, back))
    return asked if len({x.item.question for x in asked}) == len(asked) else None


def _question(kind: str, scene: Scene, before: list[Scene], change: str, seed: float, zh: bool) -> Item | None:
    """The question that a seed gives; with the same draws, it changes only if the scene makes it change."""
    rng = random.Random(seed)
    if kind in KINDS:
        return ask(scene, kind, rng, "zh" if zh else "en")
    if kind == "change":
        return ask_change(change, rng)
    item = ask(before[0], rng.choice(("colour", "exist", "shape")), rng, "zh" if zh else "en")
    return about_frame(item, 0, 2, rng) if item else None


def _words(item: Item) -> tuple[str, str]:
    return item.question, item.answer
