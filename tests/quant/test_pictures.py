"""Pictures to calibrate on: found in order, counted where they are no use, refused where most are."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from quant.pictures import drawn, find_pictures, questions_of
from runtime.errors import InputError, SourceError

BLACK = np.zeros((48, 64, 3), np.uint8)


def fill(folder: Path, good: int, black: int = 0, broken: int = 0) -> Path:
    for i, picture in enumerate(drawn(good)):
        cv2.imwrite(str(folder / f"{i:02}.png"), picture)
    for i in range(black):
        cv2.imwrite(str(folder / f"black{i}.png"), BLACK)
    for i in range(broken):
        (folder / f"broken{i}.jpg").write_bytes(b"\xff\xd8 not really")
    return folder


def test_a_folder_gives_the_same_pictures_in_the_same_order(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "deeper").mkdir()
    cv2.imwrite(str(tmp_path / "deeper" / "one.png"), drawn(6)[5])
    found = find_pictures(str(tmp_path))
    assert (len(found), found.found) == (6, 6)
    assert sorted(found[i].sum() for i in range(6)) == sorted(picture.sum() for picture in drawn(6))
    np.testing.assert_array_equal(found[0], drawn(1)[0])


def test_only_as_many_as_wanted_spread_over_all(tmp_path: Path) -> None:
    found = find_pictures(str(fill(tmp_path, 9)), most=3)
    assert (len(found), found.found) == (3, 9)
    for i in range(3):
        np.testing.assert_array_equal(found[i], drawn(9)[3 * i])


def test_what_cannot_be_used_is_counted(tmp_path: Path) -> None:
    found = find_pictures(str(fill(tmp_path, 6, black=2, broken=3)))
    assert (len(found), found.blank, found.unreadable) == (6, 2, 3)
    assert str(found) == "6 of 11 pictures (3 unreadable, 2 blank left out)"


@pytest.mark.parametrize(("good", "black", "broken"), [(0, 4, 0), (0, 0, 4), (2, 2, 1)])
def test_mostly_useless_pictures_are_refused(tmp_path: Path, good: int, black: int, broken: int) -> None:
    with pytest.raises(InputError, match=f"{broken} cannot be read and {black} show nothing"):
        find_pictures(str(fill(tmp_path, good, black, broken)))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no pictures"):
        find_pictures(str(tmp_path))
    with pytest.raises(SourceError, match="there is no"):
        find_pictures(str(tmp_path / "none"))
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(SourceError, match="no video"):
        find_pictures(str(tmp_path / "text.mp4"))


class _Lens:
    """A camera that gives so many frames."""

    def __init__(self, frames: int, picture: np.ndarray) -> None:
        self.left, self.picture = frames, picture

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.left -= 1
        return (True, self.picture) if self.left >= 0 else (False, None)

    def get(self, prop: int) -> float:
        return float(self.left)

    def release(self) -> None:
        self.left = 0


def test_a_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: _Lens(200, drawn(1)[0]))
    found = find_pictures("0", most=4)
    assert len(found) == 4
    np.testing.assert_array_equal(found[3], drawn(1)[0])
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: _Lens(20, drawn(1)[0]))
    with pytest.raises(SourceError, match="camera 0 gave 2 of 4"):
        find_pictures("0", most=4)
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: _Lens(200, BLACK))
    with pytest.raises(InputError, match="4 show nothing"):
        find_pictures("0", most=4)


def test_a_video(tmp_path: Path) -> None:
    sample = Path(__file__).resolve().parents[2] / "apps" / "demo" / "sample.mp4"
    found = find_pictures(str(sample), most=5)
    assert len(found) == 5
    assert any((found[0] != found[i]).any() for i in range(1, 5))


def test_questions_of_a_folder(tmp_path: Path) -> None:
    assert questions_of(str(tmp_path)) == ()
    (tmp_path / "questions.txt").write_text("What is it?\n\n  Where?  \n", encoding="utf-8")
    assert questions_of(str(tmp_path)) == ("What is it?", "Where?")
