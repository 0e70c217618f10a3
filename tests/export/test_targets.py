"""Bundles for TensorRT: the exporter's forms, engines built without a GPU, what is missing named."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from export.build import export_bundle
from export.targets import TARGETS, Compiler, check_target
from runtime import VisualRWKV, targets, tensorrt
from runtime.bundle import Bundle
from runtime.errors import ConfigError, TargetUnavailable
from tests.conftest import ROOT
from tests.runtime.fake_model import say


def export(out: Path, *options: str, plugins: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "export", "--target", "rtx", "--out", str(out), *options]
    environment = {**os.environ, "VRWKV_PLUGINS": str(plugins)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_the_demo_for_rtx_brings_its_engines_and_runs_on_onnxruntime_too(
    tmp_path: Path, emulated_plugins: Path
) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("no TensorRT-RTX: pip install 'tensorrt-rtx>=1.7,<1.8'")
    done = export(tmp_path / "demo", "--int8", "--drift", "0", "--arch", "89", plugins=emulated_plugins)
    assert done.returncode == 0, done.stderr
    bundle = Bundle.open(tmp_path / "demo")
    assert (bundle.manifest.target, bundle.manifest.precision) == ("rtx", "int8")
    assert {"step.sm89.engine", "vision.sm89.engine"} <= set(bundle.manifest.files)
    engine = bundle.file("step.sm89.engine").read_bytes()
    assert b"WKV7" in engine and b"MatMulW8" in engine
    with VisualRWKV.load(bundle.path, device="onnxruntime") as model:
        session = model.session()
        session.see(np.zeros((64, 64, 3), np.uint8))
        assert say(session, "How many circles are there?")


def test_what_rtx_lacks_is_told_before_the_work_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="no TensorRT-RTX: pip install 'tensorrt-rtx>=1.7,<1.8'")
    monkeypatch.setenv("VRWKV_PLUGINS", str(tmp_path / "none.so"))
    with pytest.raises(TargetUnavailable, match="architecture '1'"):
        Compiler.find(["89", "1"])
    with pytest.raises(TargetUnavailable, match="plugins are not built"):
        Compiler.find(["89"])
    with pytest.raises(TargetUnavailable, match="plugins are not built"):
        export_bundle(ROOT / "apps" / "demo" / "demo.safetensors", tmp_path / "demo", target="rtx")
    assert not list(tmp_path.iterdir())


def test_targets_of_exporter_and_runtime_are_the_same() -> None:
    assert set(TARGETS) == set(targets.TARGETS)
    for name in TARGETS:
        check_target(name)
    with pytest.raises(ConfigError, match="'tpu'"):
        check_target("tpu")


def test_engines_are_for_bundles_that_have_them() -> None:
    with pytest.raises(TargetUnavailable, match="exported for target 'cpu'"):
        targets.open_backend("tensorrt", "cpu", 1)
    with pytest.raises(ConfigError, match="device 'gpu'"):
        targets.open_backend("gpu", "cpu", 1)


def test_without_a_gpu_a_bundle_for_tensorrt_runs_on_onnxruntime(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in tensorrt.MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    backend = targets.open_backend("auto", "jetson", 1)
    assert backend.name == "onnxruntime-cpu"
    with pytest.raises(TargetUnavailable, match="no TensorRT"):
        targets.open_backend("tensorrt", "jetson", 1)
