"""A device that has never seen torch: the wheel in an empty environment opens a bundle and answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "apps" / "demo" / "sample.mp4"
ASK = """
import importlib.util, json, sys
import cv2
from runtime import GenerateOptions, VisualRWKV

bundle, video, frame, question = sys.argv[1:]
capture = cv2.VideoCapture(video)
for _ in range(int(frame) + 1):
    good, picture = capture.read()
assert good
with VisualRWKV.load(bundle) as model:
    session = model.session()
    session.see(picture)
    chunks = list(session.ask(question, options=GenerateOptions(max_tokens=16)))
absent = [m for m in ("torch", "transformers", "onnx", "safetensors") if importlib.util.find_spec(m) is None]
answer = "".join(c.text for c in chunks)
print(json.dumps({"answer": answer, "tokens": [t for c in chunks for t in c.token_ids],
                  "finish": chunks[-1].finish_reason, "absent": absent}))
"""


@pytest.fixture(scope="module")
def device(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment that holds the wheel and what it asks for, and nothing else."""
    folder = tmp_path_factory.mktemp("device")
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    command = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install", str(wheel)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    return python


def run(python: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python away from the checkout, so that only what is installed can be imported."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [str(python), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_runtime_alone_answers_as_the_exporting_machine_does(
    device: Path, demo_bundle: Path, tmp_path: Path
) -> None:
    question = json.loads(SAMPLE.with_suffix(".json").read_text(encoding="utf-8"))["questions"][0]
    arguments = ["-c", ASK, str(demo_bundle), str(SAMPLE), "10", question["question"]]
    there = _answer(run(device, *arguments, cwd=tmp_path))
    here = _answer(subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300))
    assert there["absent"] == ["torch", "transformers", "onnx", "safetensors"]
    assert there["answer"] != ""
    assert there["finish"] == "stop"
    assert there["tokens"] == here["tokens"]


@pytest.mark.slow
def test_the_camera_app_runs_from_the_wheel_and_is_right(device: Path, demo_bundle: Path, tmp_path: Path) -> None:
    arguments = ["-m", "apps.webcam_qa", "--bundle", str(demo_bundle), "--source"]
    installed = run(device, "-c", "import apps.webcam_qa as w; print(w.SAMPLE)", cwd=tmp_path).stdout.strip()
    assert Path(installed).is_file()
    result = run(device, *arguments, installed, "--check", "--fast", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "TTFT" in result.stdout


@pytest.mark.slow
def test_exporting_there_says_what_to_install(device: Path, tmp_path: Path) -> None:
    result = run(device, "-m", "export", "--int8", cwd=tmp_path)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert "[export]" in result.stderr


def _answer(result: subprocess.CompletedProcess[str]) -> Any:
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])
