"""Measuring how a bundle watches, on models that answer from a script."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.demo.scenes import Scene, draw
from apps.demo.watching import chart, main, questions, sequence, table, watch
from tests.apps.demo.oracle import answer, matching, translate

SEEDS = range(70_000, 70_003)
NAMES = ("In the first picture: ", "In the earlier picture: ", "第一张图：", "之前的图：")
LAST = ("In the last picture: ", "最后一张图：", *(f"In the {n} picture: " for n in ("second", "third", "fourth")),
        "第二张图：", "第三张图：", "第四张图：")  # fmt: skip


def truth(scenes: list[Scene], question: str) -> str:
    """The answer found by brute force from all the scenes that were shown."""
    zh = question.endswith("？")
    for start, scene in [(n, scenes[0]) for n in NAMES] + [(n, scenes[-1]) for n in LAST]:
        if question.startswith(start):
            return answer(scene, question.removeprefix(start))
    if question in ("What was in the first picture?", "第一张图里有什么？"):
        (thing,) = scenes[0].things
        said = f"{thing.colour} {thing.form}"
    elif question.endswith(" before?") or question.startswith("之前有"):
        words = question.removeprefix("之前有").removeprefix("没有").removesuffix("？").removesuffix("吗")
        if not zh:
            words = " ".join(question.removesuffix(" before?").split(" ")[-2:])
        assert not matching(scenes[-1], words), "it is still in view"
        said = "yes" if any(matching(s, words) for s in scenes[:-1]) else "no"
    else:
        return answer(scenes[-1], question)
    return translate(said) if zh else said


def test_every_question_has_its_answer_in_the_frames() -> None:
    topics = set()
    for seed in range(70_000, 70_040):
        scenes = sequence(seed, 16)
        assert scenes == sequence(seed, 16) and scenes[:5] == sequence(seed, 5)
        for seen in range(1, 17):
            asked = questions(scenes[:seen], seed)
            topics |= {topic for topic, _ in asked}
            assert [topic for topic, _ in asked][:2] == ["current"] * 2
            assert seen > 1 or len(asked) == 2
            for _, item in asked:
                assert item.answer == truth(scenes[:seen], item.question), item
    assert topics == {"current", "first", "seen"}


class Chunk:
    def __init__(self, text: str) -> None:
        self.text = text


class Session:
    """Knows the truth about the pictures it was shown."""

    def __init__(self, scenes: dict[bytes, Scene], seen: list[Scene]) -> None:
        self.scenes, self.seen, self.asked = scenes, seen, 0

    def see(self, *pictures: np.ndarray) -> None:
        self.seen = self.seen + [self.scenes[p.tobytes()] for p in pictures]

    def fork(self) -> Session:
        return Session(self.scenes, self.seen)

    def ask(self, question: str, options: Any) -> Iterator[Chunk]:
        self.asked += 1
        assert self.asked == 1, "every question on a fork of its own"
        try:
            said = truth(self.seen, question)
        except (AssertionError, ValueError):  # it has not seen what the question is about
            said = "?"
        yield from map(Chunk, said)


class Model:
    def __init__(self, seeds: range, frames: int) -> None:
        scenes = [scene for seed in seeds for scene in sequence(seed, frames)]
        self.scenes = {draw(scene, scale).tobytes(): scene for scene in scenes for scale in (1, 2, 4)}

    def session(self) -> Session:
        return Session(self.scenes, [])

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def test_a_perfect_memory_is_all_right_and_a_window_forgets() -> None:
    seen: list[int] = []
    model = Model(SEEDS, 8)
    result = watch(model, SEEDS, 8, 3, lambda done, total: seen.append(done))  # type: ignore[arg-type]
    rows = result.rows()
    assert seen == [1, 2, 3] and result.frames == 24 and set(result.look_ms()) == {"state", "window"}
    assert all(r["accuracy"] == 1 for r in rows if r["mode"] == "state" or r["frames"] <= 3)
    assert all(r["accuracy"] == 1 for r in rows if r["about"] == "current")
    forgotten = [r for r in rows if r["mode"] == "window" and r["about"] == "gone" and r["frames"] > 3]
    assert len(forgotten) == 5 and sum(r["right"] for r in forgotten) < 0.8 * sum(r["asked"] for r in forgotten)
    by_key = {(r["mode"], r["about"], r["frames"]): r for r in rows}
    for mode in ("state", "window"):
        parts = [by_key[mode, topic, 8] for topic in ("first", "seen")]
        assert by_key[mode, "gone", 8]["asked"] == sum(p["asked"] for p in parts)
    lines = table(rows).splitlines()
    assert sum(line.split()[0] == "8" for line in lines) == 4


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    out = tmp_path / "figures.json"
    command = [str(tmp_path), "--sequences", "2", "--frames", "6", "--seed", "70000", "--json", str(out)]
    model = Model(SEEDS, 6)
    assert main(command, load=lambda path, threads: model) == 0  # type: ignore[arg-type,return-value]
    figures = json.loads(out.read_text())
    assert (figures["window"], figures["sequences"]) == (4, 2) and figures["rows"][0]["asked"] == 4
    assert "the newest frame" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--frames", "0"], ["--window", "0"], ["--seed", "99999", "--sequences", "2"]])
def test_what_cannot_be_measured_is_refused(wrong: list[str], tmp_path: Path, capsys: Any) -> None:
    assert main([str(tmp_path), *wrong]) == 1
    assert wrong[1] in capsys.readouterr().err


def test_the_chart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = watch(Model(SEEDS[:1], 4), SEEDS[:1], 4, 2)  # type: ignore[arg-type]
    chart(result.rows(), 2, tmp_path / "deep" / "watching.png")
    assert (tmp_path / "deep" / "watching.png").read_bytes().startswith(b"\x89PNG")
