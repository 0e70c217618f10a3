"""The script for a machine with a GPU, run dry: its logic and its decode step, on the emulation at tiny sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugins_trt.emulated import Emulated

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_dry_run(emulated: Emulated, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--captured-steps", "4", "--out", str(tmp_path)]
    command += ["--library", str(emulated.path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert all(row["ok"] for row in report["checks"])
    cases = " ".join(row["case"] for row in report["checks"])
    for word in (
        "wkv6",
        "wkv7",
        "matmul_w8",
        "read_state",
        "decode step fp16",
        "decode step int8",
        "decode step int4",
        "4 captured",
    ):
        assert word in cases
    assert [row["case"] for row in report["decode"]] == [f"decode tiny {form}" for form in ("fp16", "int8", "int4")]
    assert {*report["prefill"][0]["tokens_per_second"]} == {"recurrent", "chunked"}
    text = (tmp_path / "gpu.md").read_text()
    assert "dry run: no figure here means anything" in text and "| decode tiny int4 |" in text
