"""A few seconds of the search of `python -m tests.fuzz`, always the same one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

NAMES = ("picture", "manifest", "graph", "state", "text")


@pytest.mark.parametrize("target", NAMES)
def test_guided_by_coverage_nothing_is_found(target: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="no atheris for this Python or machine: pip install atheris")
    options = ["--seconds", "2", "--corpus", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", target, *options], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done" in done.stderr
    assert not list((tmp_path / target).glob("crash-*"))


@pytest.mark.parametrize("target", NAMES)
def test_every_seed_is_taken(target: str) -> None:
    from tests.fuzz import targets

    for data in targets.seeds(target):
        targets.TARGETS[target](data)
    assert set(targets.TARGETS) == set(NAMES)
