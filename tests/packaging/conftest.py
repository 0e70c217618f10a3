"""The wheel, built from a copy so that nothing is left in the working tree."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, Once

IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.pyc", "*.so")


@pytest.fixture(scope="session")
def wheel(once: Once, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the distribution once, without the network."""

    def build(out: Path) -> None:
        source = tmp_path_factory.mktemp("source")
        for name in ("apps", "export", "plugins_trt", "quant", "runtime", "tests"):
            # tests/ lies there too, as it does in a real build: it must not be packed.
            shutil.copytree(ROOT / name, source / name, ignore=_without_data if name == "tests" else IGNORED)
        for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source / name)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        result = subprocess.run(
            [*command, "--wheel-dir", str(out), str(source)], capture_output=True, text=True, timeout=300
        )
        assert result.returncode == 0, result.stdout + result.stderr

    (built,) = once("wheel", build).glob("*.whl")
    return built


def _without_data(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name in {"golden", "__pycache__"}}
