"""lmms-eval runs its own task on our bundle: as a registered model, and through its stock client of our server.

Both must say what the bundle says when it is asked directly. Runs where VRWKV_LMMS_PYTHON names a Python that has
lmms-eval (it may be the running one), and takes a minute of importing.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
from PIL import Image

from apps.demo.evaluate import picture_of
from apps.demo.questions import Item, ask
from apps.demo.scenes import scene_of
from runtime import VisualRWKV
from tests.apps.evaluate.minis import write_parquet

PYTHON = os.environ.get("VRWKV_LMMS_PYTHON", "")
ROOT = Path(__file__).resolve().parents[3]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="VRWKV_LMMS_PYTHON names no Python with lmms-eval==0.7.3"),
]


def questions() -> Iterator[tuple[int, Item]]:
    """Yes-or-no questions about scenes of the demo model."""
    for seed in range(70_000, 70_012):
        if item := ask(scene_of(seed), "exist", random.Random(seed), "en"):
            yield seed, item


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """POPE on these scenes, in its public schema."""
    folder, rows = tmp_path_factory.mktemp("data"), []
    for seed, item in questions():
        buffer = io.BytesIO()
        Image.fromarray(cv2.cvtColor(picture_of(seed), cv2.COLOR_BGR2RGB)).save(buffer, "PNG")
        row = {"id": str(seed), "question_id": str(seed), "question": item.question, "answer": item.answer}
        row |= {"image_source": str(seed), "category": ("adversarial", "popular", "random")[seed % 3]}
        rows.append({**row, "image": {"bytes": buffer.getvalue(), "path": f"{seed}.png"}})
    write_parquet(folder / "pope" / "data" / "test-00000-of-00001.parquet", rows)
    return folder


@pytest.fixture(scope="module")
def tasks(data: Path) -> Path:
    """lmms-eval's POPE, reading that."""
    command = [PYTHON, "-m", "apps.evaluate.lmms", "--task", "pope", "--data", str(data), "--out", str(data / "tasks")]
    subprocess.run(command, check=True, cwd=ROOT, timeout=300)
    (file,) = (data / "tasks").iterdir()
    plain = {"default": {"pre_prompt": "", "post_prompt": ""}}  # the demo model knows no instructions
    file.write_text(f"{file.read_text()}lmms_eval_specific_kwargs: {json.dumps(plain)}\n")
    return data / "tasks"


@pytest.fixture(scope="module")
def ours(demo_bundle: Path) -> list[str]:
    """What the bundle says, by row."""
    said = []
    with VisualRWKV.load(demo_bundle, threads=1) as model:
        session = model.session()
        for seed, item in questions():
            session.reset()
            said.append("".join(chunk.text for chunk in session.ask(item.question, [picture_of(seed)])))
    return said


def lmms(tasks: Path, out: Path, model: str, arguments: str) -> list[str]:
    """What lmms-eval was told by a model, by row."""
    registered = out / "path" / "edge-0.dist-info"  # stands for the installed package and its entry point
    registered.mkdir(parents=True)
    (registered / "METADATA").write_text("Metadata-Version: 2.1\nName: edge\nVersion: 0\n")
    (registered / "entry_points.txt").write_text("[lmms_eval.models]\nvisualrwkv_edge = apps.evaluate.lmms:manifest\n")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{out / 'path'}", "HF_HOME": str(out / "hf")}
    environment |= {"HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none", "OMP_NUM_THREADS": "1"}
    command = [PYTHON, "-m", "lmms_eval", "--model", model, "--model_args", arguments, "--tasks", "pope_here"]
    command += ["--include_path", str(tasks), "--log_samples", "--output_path", str(out / "results")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "pope_accuracy" in done.stdout
    (samples,) = (out / "results").rglob("*_samples_pope_here.jsonl")
    rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    said = {row["doc_id"]: row["filtered_resps"] for row in rows}
    return [answer[0] if isinstance(answer, list) else answer for _, answer in sorted(said.items())]


def test_as_a_registered_model(tasks: Path, ours: list[str], demo_bundle: Path, tmp_path: Path) -> None:
    said = lmms(tasks, tmp_path, "visualrwkv_edge", f"bundle={demo_bundle},threads=1")
    assert said == ours and set(said) == {"yes", "no"}


@pytest.fixture
def server(demo_bundle: Path) -> Iterator[str]:
    """The address of our server."""
    command = [sys.executable, "-m", "apps.serve", str(demo_bundle), "--port", "0", "--threads", "1", "--name", "demo"]
    pytest.importorskip("uvicorn", reason="the server needs uvicorn: pip install '.[serve]'")
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            seen = ""
            for line in process.stdout:
                seen += line
                if found := re.search(r"http://\S+/v1", line):
                    yield found[0]
                    return
            pytest.fail(f"the server did not start: {seen}")
        finally:
            process.terminate()


def test_through_the_stock_openai_client(tasks: Path, ours: list[str], server: str, tmp_path: Path) -> None:
    arguments = f"base_url={server},model=demo,api_key=none,num_concurrent=4,timeout=120"
    said = lmms(tasks, tmp_path, "openai", arguments)
    assert said == ours and set(said) == {"yes", "no"}
