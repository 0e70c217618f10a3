"""Things the apps look at and talk to."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from tests.apps.fakes import StubModel, picture


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """20 numbered frames at 20 a second."""
    path = tmp_path / "video.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 20.0, (64, 48))
    for number in range(20):
        writer.write(picture(number))
    writer.release()
    return path


@pytest.fixture
def model() -> StubModel:
    return StubModel()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A folder that passes for a bundle until it is loaded."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    return folder
