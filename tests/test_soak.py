"""The hour of `benchmarks.soak` in twelve seconds and at twice the pace, with limits that hold on a busy machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("mode", [[], ["--window", "4"]], ids=["state", "window"])
def test_watching_takes_no_more_memory_the_longer_it_lasts(demo_bundle: Path, mode: list[str]) -> None:
    command = [sys.executable, "-m", "benchmarks.soak", str(demo_bundle), "--minutes", "0.2", "--warmup", "4"]
    pace = ["--fps", "10", "--every", "0.5", "--threads", "1"]
    done = subprocess.run(command + pace + mode, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    first, last = found["RssAnon, MB"]
    assert last < 1.05 * first  # the hour's limit is 0.5 %
    stats = found["stats"]
    assert found["questions"] == stats["answers"] >= 5
    assert stats["fed"] >= 20
    assert stats["failed"] == stats["errors"] == stats["rollbacks"] == stats["reconnects"] == 0
    assert found["finite"] and found["accounted"]
