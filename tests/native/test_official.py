"""Official outputs through the native step: what tests/test_golden.py checks on onnxruntime."""

from __future__ import annotations

import pytest

from runtime.backends.native import NativeBackend
from runtime.native.step import unavailable
from tests import test_golden
from tests.test_golden import (
    case,
    pytest_generate_tests,
    test_official_generate,
    test_padded_once,
    test_scan_ablations,
    test_without_padding,
)

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=f"{unavailable()}: pip install -e . with a C++ compiler")
__all__ = [
    "case",
    "pytest_generate_tests",
    "test_official_generate",
    "test_padded_once",
    "test_scan_ablations",
    "test_without_padding",
]


@pytest.fixture(autouse=True)
def _natively(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_golden, "OrtBackend", lambda threads: NativeBackend(threads, required=True))
