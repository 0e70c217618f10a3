"""The latency budget: stages add up, the verdict follows the worst round."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from examples.latency_budget import ADVICE, Round, report

ROOT = Path(__file__).resolve().parents[3]


def test_the_worst_round_decides() -> None:
    rounds = [Round(0.01, 0.02, 0.03, 0.04), Round(0.01, 0.5, 0.03, 0.04)]
    assert rounds[0].total == 0.1
    text, good = report(rounds, 0.6)
    assert good and "kept" in text
    text, good = report(rounds, 0.5)
    assert not good and "missed" in text and ADVICE["see"] in text
    assert re.search(r"^see +260\.0 +500\.0$", text, re.MULTILINE), "the median of two is their mean"


def test_it_measures_the_demo(demo_bundle: Path) -> None:
    command = [sys.executable, "-m", "examples.latency_budget", str(demo_bundle), "--rounds", "2", "--threads", "1"]
    command += ["--source", "apps/demo/sample.mp4"]
    done = subprocess.run(
        [*command, "--budget-ms", "60000"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "2 questions" in done.stdout and "kept" in done.stdout
    done = subprocess.run([*command[:3], "nowhere"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and "is not a folder" in done.stderr
