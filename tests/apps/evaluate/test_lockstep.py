"""Asking in lockstep gives the answers that sessions give; and a run that is killed goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apps.evaluate.lockstep import Lockstep, suits
from apps.evaluate.run import ask
from apps.evaluate.sample import Problem, Sample
from apps.evaluate.source import Data, Notes
from apps.evaluate.tasks import TASKS
from runtime import GenerateOptions, VisualRWKV

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def model(demo_bundle: Path) -> Iterator[VisualRWKV]:
    with VisualRWKV.load(demo_bundle, threads=1, undo_bytes=0) as model:
        yield model


def scenes(count: int) -> list[Sample]:
    return [
        row for row in TASKS["demo"].source.read(Data(Path(), limit=count), True, Notes()) if isinstance(row, Sample)
    ]


@pytest.mark.parametrize("options", [GenerateOptions(max_tokens=16), GenerateOptions(max_tokens=2)])
def test_answers_are_those_of_sessions(model: VisualRWKV, options: GenerateOptions) -> None:
    samples = scenes(4)
    blank = Sample("text", "Is there a circle?", (), None, "", "text")
    two = replace(samples[0], key="two", pictures=(*samples[0].pictures, *samples[-1].pictures))
    samples = [*samples, blank, two]
    session = model.session()
    alone = [ask(session, sample, options) for sample in samples]
    assert suits(model.manifest) and len({one.text for one in alone if not isinstance(one, Problem)}) > 5
    for batch in (2, 8):
        together = {
            one.key: one for one in Lockstep(model, options, batch).answer(samples) if not isinstance(one, Problem)
        }
        assert [together[sample.key] for sample in samples] == alone


def test_a_bad_picture_is_a_problem_of_its_own_question(model: VisualRWKV) -> None:
    samples = scenes(1)
    broken = replace(samples[1], pictures=(b"no picture",))
    found = list(Lockstep(model, GenerateOptions(max_tokens=16), 4).answer([samples[0], broken, *samples[2:]]))
    (problem,) = [one for one in found if isinstance(one, Problem)]
    assert problem.where == f"question {broken.key}" and len(found) == len(samples)


def test_numbers_that_are_not_finite_spoil_their_own_answer(model: VisualRWKV, monkeypatch: pytest.MonkeyPatch) -> None:
    step: Callable[..., np.ndarray] = model.engine.step

    def spoiled(rows: np.ndarray, state: object) -> np.ndarray:
        logits = step(rows, state).copy()
        logits[0] = np.nan
        return logits

    samples = [replace(scenes(1)[0], key=str(n)) for n in range(3)]
    monkeypatch.setattr(model.engine, "step", spoiled)
    found = list(Lockstep(model, GenerateOptions(max_tokens=16), 3).answer(samples))
    assert [isinstance(one, Problem) for one in found] == [True, False, False]


def test_models_that_are_fed_otherwise_are_asked_through_sessions(model: VisualRWKV) -> None:
    manifest = model.manifest
    assert not suits(replace(manifest, prompt=replace(manifest.prompt, image_position="middle")))
    assert not suits(replace(manifest, tokenizer=replace(manifest.tokenizer, padding="left16")))


def test_a_run_that_is_killed_goes_on_and_scores_the_same(demo_bundle: Path, tmp_path: Path) -> None:
    def command(out: str) -> list[str]:
        options = ["--task", "demo", "--limit", "12", "--threads", "1", "--batch", "4"]
        files = ["--out", str(tmp_path / out), "--json", str(tmp_path / f"{out}.json")]
        return [sys.executable, "-m", "apps.evaluate", str(demo_bundle), *options, *files]

    kept = tmp_path / "killed" / demo_bundle.name / "demo.jsonl"
    with subprocess.Popen(command("killed"), cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 240
        while not kept.exists() or kept.read_bytes().count(b"\n") < 5:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    before = kept.read_bytes().count(b"\n")
    for out in ("killed", "whole"):
        subprocess.run(command(out), cwd=ROOT, check=True, capture_output=True, timeout=300)
    (resumed,), (whole,) = (json.loads((tmp_path / f"{out}.json").read_text()) for out in ("killed", "whole"))
    assert resumed["figures"] == whole["figures"] and resumed["questions"] == whole["questions"] > 100
    assert whole["run"]["questions"] == whole["questions"]
    assert resumed["run"]["questions"] <= whole["questions"] - (before - 1)
    assert sorted(kept.read_text().splitlines()[1:]) == sorted(
        (tmp_path / "whole" / demo_bundle.name / "demo.jsonl").read_text().splitlines()[1:]
    )
