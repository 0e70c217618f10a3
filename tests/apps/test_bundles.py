"""Finding the bundle, or making the demo one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from apps import bundles
from apps.bundles import DEFAULT_BUNDLE, find_bundle
from runtime.errors import BundleError


def test_a_bundle_is_a_folder_with_a_manifest(bundle: Path, tmp_path: Path) -> None:
    assert find_bundle(bundle) == bundle
    with pytest.raises(BundleError, match="python -m export CHECKPOINT --int8 --out"):
        find_bundle(tmp_path)


def test_the_demo_bundle_may_be_exported_on_the_spot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands: list[list[str]] = []

    def fake_run(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0 if len(commands) == 1 else 1)

    monkeypatch.setattr(bundles.subprocess, "run", fake_run)
    monkeypatch.setattr(bundles, "find_spec", lambda name: object())
    path = DEFAULT_BUNDLE
    with pytest.raises(BundleError, match="python -m export --int8 --out"):
        find_bundle(path, ask=True, answer=lambda prompt: "n")
    with pytest.raises(BundleError, match="python -m export --int8 --out"):
        find_bundle(path, ask=False, answer=lambda prompt: "y")
    assert not commands
    assert find_bundle(path, ask=True, answer=lambda prompt: "") == path
    assert commands == [[sys.executable, "-m", "export", "--int8", "--out", str(path)]]
    with pytest.raises(BundleError, match="failed"):
        find_bundle(path, ask=True, answer=lambda prompt: "y")
    monkeypatch.setattr(bundles, "find_spec", lambda name: None)
    with pytest.raises(BundleError, match=r'pip install "\.\[export\]"'):
        find_bundle(path, ask=True, answer=lambda prompt: "y")
