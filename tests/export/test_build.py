"""Exporting as a whole: all or nothing, proven right, one clear error for everything that can go wrong."""

from __future__ import annotations

import errno
import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

import export.build
from export.__main__ import main
from export.build import export_bundle
from export.config import ExportConfig
from export.weights import WeightSource, load_weight
from runtime.bundle import Bundle
from runtime.errors import CheckpointError, ConfigError, ExportError, InputError, ParityError, SourceError


@pytest.fixture
def text_model(golden: Path) -> Path:
    return golden / "rwkv7_text.pth"


def assert_nothing_left(folder: Path) -> None:
    assert not list(folder.iterdir()), list(folder.iterdir())


def test_the_files_are_plain_and_described(export: Callable[..., Path], text_model: Path) -> None:
    folder = export(text_model)
    manifest = Bundle.open(folder).manifest
    assert {path.name for path in folder.iterdir()} == {*manifest.files, "manifest.json"}
    assert manifest.provenance.source == text_model.name
    assert [slot.name for slot in manifest.slots] == ["att_shift", "ffn_shift", "wkv"]
    assert manifest.slots[2].axes == ("layer", "batch", "head", "key", "value")
    assert manifest.budget.state_per_session == 2 * sum(
        4 * shape[0] * shape[2] * (shape[3] * shape[4] if len(shape) > 3 else 1)
        for shape in (slot.resolve(1) for slot in manifest.slots)
    )
    for graph in manifest.graphs:
        onnx.checker.check_model(folder / graph.file)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_smaller_precisions_are_smaller_and_keep_the_state_paths(
    export: Callable[..., Path], text_model: Path, precision: str
) -> None:
    manifest = Bundle.open(export(text_model, precision=precision)).manifest
    full = Bundle.open(export(text_model)).manifest
    assert manifest.budget.weights < full.budget.weights
    assert manifest.precision == precision
    kept = onnx.load(export(text_model, precision=precision) / "step.onnx", load_external_data=False)
    types = {init.name: init.data_type for init in kept.graph.initializer}
    for name in ("w0", "k_k", "r_k", "ln_x_weight"):
        assert types[f"blocks.1.att.{name}"] == onnx.TensorProto.FLOAT
    for name in ("w1", "w2", "a1", "g2"):  # 16 bits are all that official checkpoints have
        assert types[f"blocks.1.att.{name}_fp16"] == onnx.TensorProto.FLOAT16


def test_an_occupied_folder_is_refused_and_untouched(text_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("five years of work")
    for overwrite in (False, True):
        with pytest.raises(ExportError, match="out"):
            export_bundle(text_model, out, overwrite=overwrite)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "thesis.txt"]


def test_a_parent_that_is_a_file(text_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot be written"):
        export_bundle(text_model, tmp_path / "file" / "out")


def test_a_disk_that_is_too_small(text_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 0))
    with pytest.raises(ExportError, match="GB free"):
        export_bundle(text_model, tmp_path / "out")
    assert_nothing_left(tmp_path)


def test_a_disk_that_fills_up(text_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(ExportError, match="full"):
        export_bundle(text_model, tmp_path / "out")
    assert_nothing_left(tmp_path)


def test_ctrl_c_leaves_nothing(text_model: Path, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage.startswith("write"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_bundle(text_model, tmp_path / "out", progress=interrupt)
    assert_nothing_left(tmp_path)


def test_overwriting_keeps_the_old_bundle_until_the_new_one_is_done(
    export: Callable[..., Path], text_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(export(text_model), out)
    before = Bundle.open(out).manifest

    def fail(stage: str, done: int, total: int) -> None:
        if stage.startswith("verify"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_bundle(text_model, out, precision="int8", overwrite=True, progress=fail)
    assert Bundle.open(out).manifest == before
    export_bundle(text_model, out, precision="int8", overwrite=True)
    assert Bundle.open(out).manifest.precision == "int8"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_wrong_bundle_does_not_pass(text_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One matrix 1 % too large in the written bundle."""

    def wrong(checkpoint: Any, source: WeightSource) -> torch.Tensor:
        weight = load_weight(checkpoint, source)
        return weight * 1.01 if source.keys == ("blocks.1.ffn.value.weight",) else weight

    monkeypatch.setattr(export.build, "load_weight", wrong)
    with pytest.raises(ParityError, match="logits"):
        export_bundle(text_model, tmp_path / "out")
    assert_nothing_left(tmp_path)


def test_nan_weights(text_model: Path, tmp_path: Path) -> None:
    weights = torch.load(text_model, weights_only=True)
    weights["blocks.1.att.key.weight"][3, 3] = float("nan")
    torch.save(weights, tmp_path / "nan.pth")
    with pytest.raises(CheckpointError, match=r"blocks\.1\.att\.key\.weight holds NaN"):
        export_bundle(tmp_path / "nan.pth", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["nan.pth"]


def test_unknown_options(text_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="precision"):
        export_bundle(text_model, tmp_path / "out", precision="int3")
    with pytest.raises(ConfigError, match="target"):
        export_bundle(text_model, tmp_path / "out", target="toaster")
    with pytest.raises(ConfigError, match="vocabulary"):
        export_bundle(text_model, tmp_path / "out", config=ExportConfig(vocabulary=tmp_path / "none.txt"))
    assert_nothing_left(tmp_path)


def test_a_quantised_bundle_tells_what_it_lost(export: Callable[..., Path], text_model: Path) -> None:
    bundle = Bundle.open(export(text_model, precision="int8"))
    assert "quality.json" in bundle.manifest.files
    quality = json.loads(bundle.file("quality.json").read_text(encoding="utf-8"))
    prompts, long = quality["stages"]
    assert (prompts["name"], long["name"]) == ("prompts", "1,000 tokens")
    assert 1e-4 < prompts["logits"] < 0.03 and long["logits"] < 0.03
    assert "quality.json" not in Bundle.open(export(text_model)).manifest.files


def test_calibration_and_tasks_that_cannot_be_used(text_model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    empty = tmp_path / "empty"
    with pytest.raises(SourceError, match="no pictures"):
        export_bundle(text_model, tmp_path / "out", precision="int8", calibrate=str(empty))
    with pytest.raises(InputError, match="cannot read the task"):
        export_bundle(text_model, tmp_path / "out", precision="int8", task=empty)
    with pytest.raises(ConfigError, match="float weights lose nothing"):
        export_bundle(text_model, tmp_path / "out", calibrate=str(empty))
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["missing.pth"], "missing.pth"),
        (["pre_a.png"], "not a checkpoint"),
        (["rwkv7_text.pth", "--config", "missing.json"], "missing.json"),
    ],
)
def test_the_command_line_explains_itself(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert main([str(golden / arguments[0]), *arguments[1:], "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert expected in error
    assert "Traceback" not in error
    assert_nothing_left(tmp_path)
