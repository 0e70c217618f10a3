"""Bundles for the tests of quantisation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.bundle import Bundle


@pytest.fixture(scope="session")
def float_text(golden: Path, export: Callable[..., Path]) -> Bundle:
    """A text model of random weights whose vocabulary spells no question."""
    return Bundle.open(export(golden / "rwkv7_text.pth"))
