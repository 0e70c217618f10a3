"""The script for a machine with a GPU, run dry: its logic and its decode step, on the emulation at tiny sizes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import engines
from benchmarks.gpu.__main__ import try_engines
from benchmarks.gpu.device import Emulation
from tests.plugins_trt.emulated import Emulated

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_dry_run(emulated: Emulated, tmp_path: Path, demo_bundle: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--captured-steps", "4", "--out", str(tmp_path)]
    command += ["--library", str(emulated.path), "--bundle", str(demo_bundle)]
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
    ran = [row["case"] for row in report["engines"]]
    assert [case.partition(",")[0] for case in ran] == ["onnxruntime CUDA"] * 3
    assert "4 recorded steps against launched ones" in ran[-1] and report["engines"][-1]["equal"]
    assert report["engines"][0]["error"] == 0, "a dry run compares onnxruntime's CPU with itself"
    assert "exported for target 'cpu'" in report["skipped"]["TensorRT-RTX"]
    assert "dry run" in report["skipped"]["flash-linear-attention"]
    assert "skipped TensorRT-RTX: " in text and "| onnxruntime CUDA, recorded: demo-int8-cpu" in text


def test_engines_that_are_not_here_are_skipped_with_a_reason(emulated: Emulated, tmp_path: Path) -> None:
    with pytest.raises(engines.Skipped, match="no bundle was given"):
        engines.onnxruntime(Emulation(), None, 1)
    with pytest.raises(engines.Skipped, match="no bundle was given"):
        engines.rtx(Emulation(), None, emulated.path)


def test_an_engine_that_breaks_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("CUDA error 999")

    monkeypatch.setattr(engines, "onnxruntime", broken)
    chosen = argparse.Namespace(bundle=None, captured_steps=1)
    rows, skipped = try_engines(Emulation(), chosen, Path())
    assert rows == [{"case": "onnxruntime", "error": "RuntimeError: CUDA error 999", "ok": False}]
    assert set(skipped) == {"TensorRT-RTX", "flash-linear-attention"}
