"""A small RWKV-7, exported once, in every precision."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from export.config import ExportConfig
from quant.apply import quantise
from quant.recipe import RECIPES
from runtime.bundle import Bundle


@pytest.fixture(scope="session")
def bundle(
    golden: Path, export: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Bundle]:
    """A small text model in a precision."""
    made: dict[str, Bundle] = {}

    def run(precision: str) -> Bundle:
        if precision not in made and precision == "fp32":
            options = json.loads((golden / "configs.json").read_text(encoding="utf-8"))["rwkv7_text.pth"]
            made["fp32"] = Bundle.open(export(golden / "rwkv7_text.pth", config=ExportConfig.from_dict(options)))
        elif precision not in made:
            folder = tmp_path_factory.mktemp(precision)
            made[precision] = quantise(run("fp32"), folder, RECIPES[precision], name=precision)
        return made[precision]

    return run
