"""Bundles for the tests of quantisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from quant.apply import save
from quant.dequantised import twin
from runtime.bundle import Bundle


@pytest.fixture(scope="session")
def float_demo(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo model in float32, made of what the codes of its int8 bundle stand for: without another export."""
    folder = tmp_path_factory.mktemp("float")
    made = twin(Bundle.open(demo_bundle), folder)
    return save(Bundle(folder, replace(made.manifest, precision="fp32")))


@pytest.fixture(scope="session")
def float_text(golden: Path, export: Callable[..., Path]) -> Bundle:
    """A text model of random weights whose vocabulary spells no question."""
    return Bundle.open(export(golden / "rwkv7_text.pth"))
