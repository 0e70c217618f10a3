"""`--inspect`: what a file is, and what it would cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from export.__main__ import main
from export.inspect import costs, facts
from runtime.bundle import Bundle
from tests.export.torch_models import config_of, open_model


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v60.pth", {"model": "VisualRWKV-6 v6.0 model", "image tokens": "17", "LoRA ranks": "maa 32, decay 64"}),
        ("hm621.pth", {"model": "VisualRWKV-HM v6.21 model", "state encoder": "2 layers, single"}),
        ("v700.pth", {"model": "VisualRWKV-7 v7.00 model", "projector": "mlp, 112 -> 128"}),
        ("rwkv6_text.pth", {"model": "RWKV-6 text model"}),
    ],
)
def test_facts(golden: Path, name: str, said: dict[str, str]) -> None:
    found = facts(*open_model(golden / name, config_of(golden, name)))
    assert {key: found[key] for key in said} == said
    assert "512" in found["language model"]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_costs_are_those_of_the_bundle(golden: Path, export: Callable[..., Path], precision: str) -> None:
    path = golden / "rwkv7_text.pth"
    _, spec = open_model(path, config_of(golden, path.name))
    cost = {cost.precision: cost for cost in costs(spec)}[precision]
    manifest = Bundle.open(export(path, precision=precision)).manifest
    assert cost.per_token == pytest.approx(sum(rule.bytes for rule in manifest.precision_map), rel=0.01)
    assert cost.table == manifest.budget.embedding_table
    assert cost.pictures == 0


def test_the_command_exports_nothing(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(golden / "v60.pth"), "--config", str(golden / "configs.json"), "--inspect"]) == 0
    assert "VisualRWKV-6 v6.0" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert main([str(tmp_path / "none.pth"), "--inspect"]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_scan_and_position_can_be_chosen(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--config", str(golden / "configs.json"), "--inspect"]
    assert main([str(golden / "v60.pth"), "--scan", "multidirectional", "--image-position", "last", *common]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "last in the prompt; layers read them natural / reversed / transposed / transposed_reversed" in said
    assert main([str(golden / "rwkv6_text.pth"), "--scan", "unidirectional", *common]) == 1
    assert "remove scan" in capsys.readouterr().err
