"""Our scores beside lmms-eval's own, on miniature data sets in the public schemas.

lmms-eval brings hundreds of packages, so it is not among those of development. Where the running Python has it, or
VRWKV_LMMS_PYTHON names one that has, these tests run.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from apps.evaluate.__main__ import main
from apps.evaluate.letters import mmbench_choice
from apps.evaluate.vqa_text import CONTRACTIONS, NUMBERS, PUNCTUATION, normalise_textvqa, normalise_vqa
from runtime.prompt import clean
from tests.apps.evaluate.minis import MINIS, Model, model_for, write_public

PYTHON = os.environ.get("VRWKV_LMMS_PYTHON") or (sys.executable if find_spec("lmms_eval") else "")

pytestmark = pytest.mark.skipif(
    not PYTHON, reason="no lmms-eval: pip install lmms-eval==0.7.3, or name a Python that has it in VRWKV_LMMS_PYTHON"
)


def ask_lmms(request: Any) -> Any:
    """What lmms-eval says."""
    script = Path(__file__).with_name("lmms_scorer.py")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [PYTHON, str(script)], input=json.dumps(request), capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    return ask_lmms({task: dict(zip(("rows", "answers"), mini(), strict=True)) for task, mini in MINIS.items()})


@pytest.mark.parametrize("task", MINIS)
def test_our_command_scores_as_lmms_eval_does(task: str, theirs: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rows, answers = MINIS[task]()
    write_public(tmp_path, task, rows)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    model = model_for(task, rows, answers)
    command = [str(tmp_path / "bundle"), "--task", task, "--data", str(tmp_path), "--prompts", "lmms-eval"]
    command += ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "out.json"), "--batch", "3"]
    assert main(command, load=lambda *_, **__: model) == 0  # type: ignore[arg-type,return-value]
    (found,) = json.loads((tmp_path / "out.json").read_text())
    assert found["questions"] == len(rows) and not found["problems"]
    figures = {name: found["figures"][name]["value"] for name in theirs[task]["figures"]}
    assert figures == pytest.approx(theirs[task]["figures"], abs=1e-12)
    assert sorted(clean(question) for _, question in model.asked) == sorted(map(clean, theirs[task]["prompts"]))


def test_normalisation_agrees_on_all_kinds_of_text() -> None:
    rng = random.Random(9)
    words = [*CONTRACTIONS, *NUMBERS, "a", "an", "the", "dog", "Dog's", "10,000", "3.5", "u.s.", "I'm", "im", "o'clock"]
    joints = [" ", " ", ", ", ". ", "\n", "\t", "", *PUNCTUATION, *(f" {mark}" for mark in PUNCTUATION)]
    texts = ["".join(rng.choice(words) + rng.choice(joints) for _ in range(rng.randrange(1, 6))) for _ in range(3000)]
    texts += [*words, "." * 40 + "x", "1.5.", "...", "", " ", "naïve café"]
    found = ask_lmms({"normalise": texts})
    assert [[normalise_vqa(text), normalise_textvqa(text)] for text in texts] == found


def test_choices_agree_on_all_kinds_of_answers() -> None:
    rng = random.Random(4)
    names = ["cat", "dog", "a cat", "Aa", "black and white", "B", "7"]
    parts = ["A", "B", "C", "D", "E", "(A)", "B.", "C:", "D)", "(B).", ":C", ":D,", "the answer is", "I choose", "cat",
             "dog", "is", "a", "answer is", "AB", "because", "答案是", "选B", "'", ".",
             "Correct option is", "white"]  # fmt: skip
    cases = []
    for _ in range(4000):
        options = dict(zip("ABCD"[: rng.randrange(2, 5)], rng.sample(names, 4), strict=False))
        answer = rng.choice((" ", "")).join(rng.choice(parts) for _ in range(rng.randrange(6)))
        cases.append({"answer": answer, "options": options})
    found = ask_lmms({"choices": cases})
    wrong = [(c, mmbench_choice(**c), t) for c, t in zip(cases, found, strict=True) if mmbench_choice(**c) != t]
    assert not wrong


def test_the_stub_says_what_it_was_told() -> None:
    assert Model({3: "x", "thing": "y"}).says(3, "which thing?") == "y"
