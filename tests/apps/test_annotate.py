"""Captions on frames, and the video they end up in."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ImageFont

from apps.annotate import MAX_GAP_S, Caption, Captioner, Recorder
from apps.fonts import drawable, font_for, missing, wrap
from apps.sources import Frame
from runtime.errors import ConfigError
from tests.apps.fakes import number_of, picture


def frame(number: int, fps: float = 10.0, image: np.ndarray | None = None) -> Frame:
    return Frame(number / fps, number, picture(number) if image is None else image)


def read(path: Path) -> tuple[list[np.ndarray], float]:
    capture = cv2.VideoCapture(str(path))
    fps, frames = capture.get(cv2.CAP_PROP_FPS), []
    while (pair := capture.read())[0]:
        frames.append(pair[1])
    capture.release()
    return frames, fps


def test_no_caption_changes_nothing_and_the_input_is_never_written() -> None:
    image = picture(12, 320, 240)
    captioner = Captioner()
    np.testing.assert_array_equal(captioner.draw(image, Caption()), image)
    drawn = captioner.draw(image, Caption("What is it?", "a circle"))
    assert (image == 120).all()
    assert (drawn[:120] == 120).all(), "the upper half stays visible"
    assert drawn[200:].max() > 200, "bright text"
    assert 0 < drawn[200:].min() < 60, "on a dark strip through which the picture shows"


def test_the_caption_follows_its_text_and_the_size_of_the_frame() -> None:
    captioner = Captioner()
    first = captioner.draw(picture(3, 320, 240), Caption("one"))
    again = captioner.draw(picture(3, 320, 240), Caption("one"))
    other = captioner.draw(picture(3, 320, 240), Caption("two"))
    wide = captioner.draw(picture(3, 640, 240), Caption("one"))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert wide.shape == (240, 640, 3)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (64, 16), (16, 300)])
def test_any_frame_takes_any_caption(size: tuple[int, int]) -> None:
    image = picture(3, *size)
    drawn = Captioner().draw(image, Caption("what " * 50, "答案" * 80, "\n\x00\ufffd🙂"))
    assert drawn.shape == image.shape


def test_lines_fit_and_nothing_is_lost() -> None:
    font = ImageFont.load_default(16)
    text = "How many red circles are there beside the big blue star at night?"
    lines = wrap(text, font, 120)
    assert len(lines) > 2
    assert all(font.getlength(line) <= 120 for line in lines)
    assert " ".join(lines) == text
    assert wrap("有几个红色的圆形", font, 60) != ["有几个红色的圆形"], "Chinese breaks without spaces"
    assert wrap("a\n\nb", font, 100) == ["a", "b"]


def test_what_a_font_lacks_becomes_a_question_mark() -> None:
    latin = ImageFont.load_default(16)
    assert missing("red?", latin) == set()
    assert drawable("红 red", latin) == "? red"
    best = font_for("红 red", 16)
    assert not missing("red", best)
    expected = "红 red" if not missing("红", best) else "? red"
    assert drawable("红 red", best) == expected


def test_a_font_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f.ttf").write_text("no font")
    with pytest.raises(ConfigError, match=r"f\.ttf is no font"):
        Captioner(tmp_path / "f.ttf")


def test_recorded_video_has_the_frames_in_time(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    recorder = Recorder(path, fps=lambda: 10.0)
    for number in (0, 1, 2, 6, 7):  # the source lost 3, 4 and 5
        recorder.add(frame(number))
    recorder.hold(0.5)
    recorder.close()
    recorder.close()
    frames, fps = read(path)
    assert fps == 10
    assert [number_of(f) for f in frames] == [0, 1, 2, 6, 6, 6, 6, 7, 7, 7, 7, 7, 7]
    assert recorder.frames == len(frames)
    assert min(frames[0].shape[:2]) >= 360, "small frames are enlarged"


def test_a_faster_source_is_thinned_out(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "out.avi", fps=lambda: 10.0)
    for number in range(100):
        recorder.add(Frame(number / 50, number, picture(1)))
    recorder.close()
    assert recorder.frames == 20 + 1


def test_a_long_absence_of_the_camera_is_cut_out(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "out.mp4", fps=lambda: 10.0)
    recorder.add(frame(0))
    recorder.add(Frame(3600.0, 1, picture(1)))
    recorder.add(Frame(3600.1, 2, picture(2)))
    recorder.close()
    assert recorder.frames <= MAX_GAP_S * 10


def test_a_camera_may_change_its_resolution(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "out.mp4", fps=lambda: 10.0)
    recorder.add(frame(0, image=picture(10, 640, 480)))
    recorder.add(frame(1, image=picture(10, 360, 720)))
    recorder.close()
    frames, _ = read(tmp_path / "out.mp4")
    assert [f.shape for f in frames] == [(480, 640, 3)] * 2
    assert frames[1][240, 320, 0] > 90, "the picture is in the middle"
    assert frames[1][240, 20, 0] < 10, "with borders left and right"


def test_the_caption_of_the_moment_is_written(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "out.mp4", fps=lambda: 10.0)
    recorder.add(frame(0, image=picture(10, 640, 480)))
    recorder.caption(Caption("What is it?", "a star"))
    recorder.add(frame(1, image=picture(10, 640, 480)))
    recorder.close()
    (plain, captioned), _ = read(tmp_path / "out.mp4")
    assert abs(int(plain[470].max()) - 100) < 10
    assert captioned[400:].max() > 180
    assert recorder.lost == ""


def test_what_no_font_could_draw_is_told(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "out.mp4", fps=lambda: 10.0)
    recorder.caption(Caption("What? \U000f1234\U000f1234"))  # private use: in no font
    recorder.add(frame(0))
    recorder.close()
    assert recorder.lost == "\U000f1234"


def test_where_no_video_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.mp4 or \.avi"):
        Recorder(tmp_path / "out.gif", fps=lambda: 10.0)
    with pytest.raises(ConfigError, match="does not exist"):
        Recorder(tmp_path / "none" / "out.mp4", fps=lambda: 10.0)
    (tmp_path / "out.mp4").mkdir()
    with pytest.raises(ConfigError, match="cannot write"):
        Recorder(tmp_path / "out.mp4", fps=lambda: 10.0).add(frame(0))
