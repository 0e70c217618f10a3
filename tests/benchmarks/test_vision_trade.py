"""The trade of the vision encoder: a tower far smaller than a real one, in both forms, and what is shown of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import random_tower, vision_trade
from export.archspec import TowerSpec, ViTSpec

TINY = random_tower.Choice(
    "tiny",
    TowerSpec("siglip", 16, 32, siglip=ViTSpec("s.", "timm", 16, 4, 32, 2, 2, 48, None, "pos_embed", "none", True)),
    4,
)


def test_both_forms_make_the_same_of_the_same_weights(tmp_path: Path) -> None:
    specs = random_tower.write(TINY, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fused.onnx", "plain.onnx", "weights.data"]
    found = {form: vision_trade.encode(spec, tmp_path, 1) for form, spec in specs.items()}
    assert found["fused"]["norm"] == pytest.approx(found["plain"]["norm"], rel=1e-5)
    assert found["plain"]["seconds"] > 0
    assert random_tower.write(TINY, tmp_path) == specs  # and nothing is traced again


def test_sizes_are_the_released_ones() -> None:
    cells = {choice.name: choice.tower.cells for choice in vision_trade.CHOICES}
    assert list(cells.values()) == [1024, 256, 1024, 1024, 256, 577]
    tower = vision_trade.CHOICES[1].tower
    assert tower.sam is not None
    assert (tower.sam.image_size, (tower.sam.side // 2) ** 2) == (512, tower.cells)


def test_tables(tmp_path: Path) -> None:
    form = {"seconds": 2.0, "norm": 1.0, "rss_mb": 3000.0, "anon_mb": 2900.0}
    found: dict[str, Any] = {
        "threads": 1,
        "towers": [{"choice": "x", "tokens": 1024, "plain": form, "fused": {**form, "seconds": 1.0}, "ratio": 2.0}],
        "prefill": [{"tokens": 16, "seconds": 0.25}],
        "demo": [{"image_size": 64, "tokens": 16, "accuracy": 0.9, "asked": 100}],
    }
    text = vision_trade.show(found)
    assert "1.00   2.00" in text
    assert "64 pixels, 16 tokens            90.0%    100" in text
    pytest.importorskip("matplotlib", reason="the chart needs matplotlib: pip install matplotlib")
    vision_trade.plot(found, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 5000


def test_a_tower_nobody_knows_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        vision_trade.main(["--only", "nothing"])
    assert "SigLIP 448" in capsys.readouterr().err
