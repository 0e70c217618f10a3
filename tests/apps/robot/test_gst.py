"""GStreamer pipelines: frames out of a process, and the ways in which it fails."""

from __future__ import annotations

import shutil
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from apps.robot import GStreamerSource, csi, csi_pipeline, gstreamer
from runtime.errors import ConfigError, SourceError

PRETEND = Path(__file__).with_name("pretend_gst.py")


@pytest.fixture
def launch(tmp_path: Path) -> str:
    """A program in the place of gst-launch-1.0."""
    script = tmp_path / "gst-launch-1.0"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{PRETEND}" "$@"\n')
    script.chmod(0o755)
    return str(script)


def test_frames_come_out_of_the_pipe(launch: str) -> None:
    source = GStreamerSource("three", (7, 5), launch=launch)  # rows of 21 bytes, padded to 24
    frames = []
    with pytest.raises(SourceError, match="stopped sending frames"):
        frames.extend(source.frames())
    frames = list(islice(source.frames(), 3))
    assert [frame.number for frame in frames] == [3, 4, 5], "numbers and times go on when it is opened again"
    assert frames[0].time_s > 0 and sorted(f.time_s for f in frames) == [f.time_s for f in frames]
    for number, frame in enumerate(frames):
        assert frame.image.shape == (5, 7, 3) and frame.image.dtype == np.uint8
        assert (frame.image == number).all()


def test_a_pipeline_ends_with_whoever_iterates_it(launch: str) -> None:
    frames = GStreamerSource("endless", (64, 48), launch=launch).frames()
    next(frames)
    frames.close()  # waits for the process
    assert list(frames) == []


@pytest.mark.parametrize(
    ("kind", "told"), [("broken", "no element"), ("cut", "stopped sending"), ("silent", "sent nothing for 0.3 s")]
)
def test_what_goes_wrong_is_told(kind: str, told: str, launch: str) -> None:
    source = GStreamerSource(kind, (8, 8), launch=launch, silence_s=0.3 if kind == "silent" else 30.0)
    with pytest.raises(SourceError, match=told):
        list(source.frames())


def test_without_gstreamer_it_says_what_to_install() -> None:
    source = GStreamerSource("videotestsrc", (8, 8), launch="no-such-program")
    with pytest.raises(SourceError, match=r"gstreamer1\.0-tools"):
        next(source.frames())


def test_the_pipeline_of_a_csi_camera() -> None:
    assert csi_pipeline(1, (1920, 1080), 60, 2) == (
        "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM),width=1920,height=1080,framerate=60/1"
        " ! nvvidconv flip-method=2 ! video/x-raw,format=BGRx"
    )
    source = csi(1, size=(1920, 1080), fps=60)
    assert isinstance(source, GStreamerSource) and (source.name, source.fps, source.live) == ("CSI camera 1", 60, True)
    assert source.command[:3] == ["-q", "nvarguscamerasrc", "sensor-id=1"]
    assert "video/x-raw,format=BGR,width=1920,height=1080" in source.command
    for wrong in ({"sensor": -1}, {"flip": 8}, {"fps": 0}, {"size": (0, 720)}):
        with pytest.raises(ConfigError):
            csi_pipeline(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        gstreamer(" ", (8, 8))


@pytest.mark.skipif(
    not shutil.which("gst-launch-1.0"), reason="needs gst-launch-1.0: apt-get install gstreamer1.0-tools"
)
def test_a_real_pipeline() -> None:
    source = gstreamer("videotestsrc pattern=red", (98, 50))
    frame = next(source.frames())
    assert frame.image.shape == (50, 98, 3)
    assert frame.image[..., 2].min() > 200 and frame.image[..., :2].max() < 60, "red, as BGR"
