"""Why the tests of the server may be missing."""

from __future__ import annotations

import pytest


def test_the_server_packages_are_installed() -> None:
    reason = 'the server was not tested: pip install ".[serve]"'
    assert pytest.importorskip("fastapi", reason=reason) and pytest.importorskip("uvicorn", reason=reason)
