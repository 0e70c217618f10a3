"""The sample video: its answers hold when they are asked, and it is what the app can play."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from apps.demo.film import Film, plan
from apps.demo.questions import KINDS
from apps.demo.scenes import CELL, SIDE, draw
from apps.demo.video import main
from apps.questions import read_questions
from runtime.errors import ConfigError
from tests.apps.demo.oracle import answer
from tests.apps.demo.test_scenes import difference


def reduced(picture: np.ndarray) -> np.ndarray:
    """A picture as the model sees it."""
    return np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BILINEAR)).astype(int)


def moments(film: Film, time_s: float) -> list[float]:
    """Times around a question, in its scene: the app may take a frame a little early or late."""
    return [time_s + d for d in (-0.3, -0.1, 0.0, 0.1, 0.3)]


@pytest.mark.parametrize("seed", range(3))
def test_answers_hold_when_they_are_asked(seed: int) -> None:
    film = plan(list(KINDS), seed)
    assert film == plan(list(KINDS), seed) != plan(list(KINDS), seed + 100)
    assert len(film.asked) == 10 and film.seconds == 20
    times = [asked.time_s for asked in film.asked]
    assert times == sorted(times)
    for asked in film.asked:
        for t in moments(film, asked.time_s):
            assert answer(film.scene(t), asked.item.question) == asked.item.answer


def test_the_chosen_kinds_are_asked() -> None:
    film = plan(["colour", "where"], 4)
    assert {asked.item.kind for asked in film.asked} == {"colour", "where"}
    with pytest.raises(ConfigError, match="about two pictures"):
        plan(["change"], 0)


@pytest.mark.parametrize("seed", range(3))
def test_questions_about_two_pictures(seed: int) -> None:
    film = plan(["count", "frames", "change"], seed)
    told = [asked for asked in film.asked if asked.earlier_s]
    assert {asked.item.kind for asked in told} == {"first frame", "change"}
    for asked in told:
        shot = next(s for s in film.shots if s.start <= asked.time_s < s.end)
        before = film.shots[film.shots.index(shot) - 1]
        assert before.start < asked.earlier_s[0] < before.end == shot.start
        if asked.item.kind == "change":
            what = difference(before.scene, shot.scene)
            chinese = {"moved": "移动", "appeared": "出现", "disappeared": "消失", "colour": "颜色"}
            assert asked.item.answer in (chinese[what], "color" if what == "colour" else what)
        else:
            question = re.sub("^(In the (first|earlier) picture: |(第一张图|之前的图)：)", "", asked.item.question)
            assert question != asked.item.question
            assert answer(film.scene(asked.earlier_s[0]), question) == asked.item.answer


@pytest.mark.parametrize("seed", range(3))
def test_objects_move_gently_and_stay_apart(seed: int) -> None:
    film = plan(list(KINDS), seed)
    moved = 0.0
    for shot in film.shots:
        first = shot.at(shot.start)
        for t in np.linspace(shot.start, shot.end - 0.01, 30):
            scene = shot.at(float(t))
            for a, b in zip(scene.things, first.things, strict=True):
                assert a.cell == b.cell and 1.5 < a.x % CELL < CELL - 1.5 and 1.5 < a.y % CELL < CELL - 1.5
                assert a.half[0] < a.x < SIDE - a.half[0]
                moved = max(moved, abs(a.x - b.x))
    assert 1 < moved < 5


def test_the_command_writes_what_the_app_reads(tmp_path: Path) -> None:
    out = tmp_path / "sample.mp4"
    command = ["--out", str(out), "--shots", "2", "--seconds", "1.5", "--kinds", "colour", "count", "frames"]
    assert main(command) == 0
    questions = read_questions(out.with_suffix(".json"))
    film = plan(["colour", "count", "frames"], 0, shots=2, seconds=1.5)
    assert [(q.text, q.expected) for q in questions] == [(a.item.question, a.item.answer) for a in film.asked]
    video = cv2.VideoCapture(str(out))
    assert video.get(cv2.CAP_PROP_FPS) == 10
    for number in range(30):
        ok, frame = video.read()
        assert ok and frame.shape == (512, 512, 3)
        if number % 10 == 5:  # compression leaves what the model sees nearly as it was
            assert np.abs(reduced(frame) - reduced(draw(film.scene(number / 10), 8))).mean() < 8
    assert not video.read()[0]
    assert out.stat().st_size < 200_000


def test_the_shipped_sample_is_consistent() -> None:
    sample = Path(__file__).parents[3] / "apps" / "demo" / "sample.json"
    questions = read_questions(sample)
    assert 8 <= len(questions) <= 10 and all(q.expected for q in questions)
    video = cv2.VideoCapture(str(sample.with_suffix(".mp4")))
    seconds = video.get(cv2.CAP_PROP_FRAME_COUNT) / video.get(cv2.CAP_PROP_FPS)
    assert all(0 <= (q.time_s or 0) < seconds for q in questions) and 15 < seconds < 30
    assert sample.with_suffix(".mp4").stat().st_size <= 1_000_000
    assert {bool(q.text.isascii()) for q in questions} == {True, False}  # English and Chinese
