"""The emulated plugin library, opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugins_trt.emulated import Emulated


@pytest.fixture(scope="session")
def emulated(emulated_plugins: Path) -> Emulated:
    return Emulated(emulated_plugins)
