"""Measuring, on a model that answers from a script."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.demo.evaluate import evaluate, interval, main, picture_of, rows_of, story, table
from apps.demo.questions import KINDS
from apps.demo.scenes import scene_of
from tests.apps.demo.oracle import answer, translate

SEEDS = range(40, 46)
Say = Callable[[str, list[np.ndarray]], str]


class Chunk:
    def __init__(self, text: str) -> None:
        self.text = text


class StubSession:
    """Remembers the pictures and questions it was given, and can forget them again."""

    def __init__(self, say: Say) -> None:
        self.say, self.pictures, self.questions = say, list[np.ndarray](), list[str]()

    def see(self, *pictures: np.ndarray) -> None:
        self.pictures += pictures

    def snapshot(self) -> tuple[int, int]:
        return len(self.pictures), len(self.questions)

    def restore(self, snap: tuple[int, int]) -> None:
        del self.pictures[snap[0] :], self.questions[snap[1] :]

    def ask(self, question: str, options: Any) -> Iterator[Chunk]:
        assert options.max_tokens >= 8
        self.questions.append(question)
        for letter in self.say(question, self.pictures):
            yield Chunk(letter)


class StubModel:
    def __init__(self, say: Say) -> None:
        self.say, self.sessions = say, list[StubSession]()

    def session(self) -> StubSession:
        self.sessions.append(StubSession(self.say))
        return self.sessions[-1]

    def __enter__(self) -> StubModel:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def knowing(question: str, pictures: list[np.ndarray]) -> str:
    """The truth about the picture that was seen."""
    (seed,) = (s for s in SEEDS if np.array_equal(picture_of(s), pictures[-1]))
    return answer(scene_of(seed), question)


def test_the_truth_is_all_right() -> None:
    model = StubModel(knowing)
    tally = evaluate(model, SEEDS, list(KINDS))  # type: ignore[arg-type]
    rows = {row["kind"]: row for row in rows_of(tally)}
    assert all(row["accuracy"] == 1 for row in rows.values()) and not tally.mistakes
    assert {"colour", "count", "exist", "light", "all kinds", "second turn", "third turn"} <= set(rows)
    assert rows["light"]["asked"] == 2 * len(SEEDS)
    assert rows["second turn"]["asked"] == rows["third turn"]["asked"] == len(SEEDS)
    assert rows["all kinds"]["asked"] == sum(
        row["asked"] for kind, row in rows.items() if kind != "all kinds" and "turn" not in kind
    )
    for session in model.sessions:  # what is left is the conversation of three turns
        assert len(session.pictures) == 1 and len(session.questions) == 3


def test_a_mistake_is_counted_where_it_belongs() -> None:
    def sure(question: str, pictures: list[np.ndarray]) -> str:
        said = knowing(question, pictures)
        return "yes" if said == "no" else said

    tally = evaluate(StubModel(sure), SEEDS, ["exist", "light"])  # type: ignore[arg-type]
    rows = {row["kind"]: row for row in rows_of(tally)}
    assert rows["light"]["accuracy"] == 1 > rows["exist"]["accuracy"] > 0
    assert rows["exist"]["languages"]["zh"]["accuracy"] == 1
    wrong = [m for m in tally.mistakes if m["kind"] == "exist"]
    assert len(wrong) == rows["exist"]["asked"] - rows["exist"]["right"]
    assert all((m["answer"], m["said"]) == ("no", "yes") for m in wrong)
    lines = table(rows_of(tally)).splitlines()
    assert lines[0].split()[:2] == ["kind", "accuracy"] and any(line.startswith("exist ") for line in lines)


def test_stories_are_true_and_told_in_order() -> None:
    model = StubModel(lambda question, pictures: "nothing")
    tally = evaluate(model, range(30), ["change"])  # type: ignore[arg-type]
    rows = {row["kind"]: row for row in rows_of(tally)}
    assert rows["change"]["asked"] == len(model.sessions) == 30 and 0 < rows["change"]["right"] < 30
    assert all(len(session.pictures) == 2 for session in model.sessions)
    assert {len(session.questions) for session in model.sessions} == {1, 2}  # together, and apart
    for seed in range(40):
        told = story("frames", seed)
        assert told == story("frames", seed) and told is not None
        scenes, item = told
        name = re.match(r"In the (\w+) picture: |(第.张图|最后一张图|之前的图)：", item.question)
        frames = {"first": 0, "第一张图": 0, "second": 1, "第二张图": 1, "third": 2, "第三张图": 2, "fourth": 3,
                  "第四张图": 3, "last": -1, "最后一张图": -1, "earlier": 0, "之前的图": 0}  # fmt: skip
        frame = frames[name[1] or name[2]] if name else -1
        assert item.answer == answer(scenes[frame], item.question[name.end() if name else 0 :])
        earlier = story("earlier", seed)
        assert earlier is not None
        (thing,) = earlier[0][0].things
        said = f"{thing.colour} {thing.form}"
        assert earlier[1].answer == (said if earlier[1].language == "en" else translate(said))


def test_the_questions_do_not_depend_on_what_else_is_measured() -> None:
    asked: dict[int, list[str]] = {}
    for i, kinds in enumerate((["where"], ["colour", "where"])):
        model = StubModel(lambda question, pictures: "?")
        tally = evaluate(model, SEEDS, kinds)  # type: ignore[arg-type]
        asked[i] = [m["question"] for m in tally.mistakes if m["kind"] == "where"]
    assert asked[0] == asked[1]


@pytest.mark.parametrize(
    ("right", "asked", "low", "high"),
    [(0, 0, 0, 1), (5, 10, 0.237, 0.763), (100, 100, 0.963, 1), (0, 10, 0, 0.278)],
)
def test_interval(right: int, asked: int, low: float, high: float) -> None:
    assert interval(right, asked) == pytest.approx((low, high), abs=1e-3)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    out = tmp_path / "figures.json"
    command = [
        str(tmp_path),
        "--scenes",
        "6",
        "--seed",
        "40",
        "--kinds",
        "light",
        "count",
        "--json",
        str(out),
    ]
    assert main(command, load=lambda path, threads: StubModel(knowing)) == 0  # type: ignore[arg-type,return-value]
    rows = {row["kind"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows["light"]["asked"] == 12 and rows["light"]["low"] < rows["light"]["accuracy"] == 1
    assert "100.0%" in capsys.readouterr().out


def test_training_scenes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--seed", "99990", "--scenes", "11"]) == 1
    assert "held-out scenes" in capsys.readouterr().err
