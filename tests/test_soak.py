"""The hour of `benchmarks.soak` in three minutes, beside the other tests, with limits that hold on a busy machine."""

from __future__ import annotations

import json
import subprocess

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["state", "window"])
def test_watching_takes_no_more_memory_the_longer_it_lasts(
    soaking: dict[str, subprocess.Popen[str]], mode: str
) -> None:
    out, errors = soaking[mode].communicate(timeout=600)
    assert out, errors
    found = json.loads(out.splitlines()[-1])
    first, last = found["RssAnon, MB"]
    assert last < 1.01 * first  # the hour's limit is 0.5 %
    stats = found["stats"]
    assert found["questions"] == stats["answers"] >= 20
    assert stats["fed"] >= 100
    assert stats["failed"] == stats["errors"] == stats["rollbacks"] == stats["reconnects"] == 0
    assert found["finite"] and found["accounted"]
