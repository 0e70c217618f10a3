"""GStreamer pipelines, and with them CSI cameras, through `gst-launch-1.0`.

The OpenCV that pip installs is built without GStreamer, and the one that is built with it would take its place. So the
pipeline runs in a process of its own and writes raw pictures into a pipe; a crash of a camera stack stays there, too.
"""

from __future__ import annotations

import select
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import IO

import numpy as np

from apps.sources import Frame
from runtime.errors import ConfigError, SourceError

LAUNCH = "gst-launch-1.0"
SILENCE_S = 8.0  # without a byte, after which a pipeline counts as dead
QUIT_S = 2.0  # for a pipeline to end when it is asked to


def csi_pipeline(sensor: int = 0, size: tuple[int, int] = (1280, 720), fps: int = 30, flip: int = 0) -> str:
    """Return the pipeline of a CSI camera on a Jetson (libargus): the sensor's own mode, converted by hardware.

    Args:
        sensor: number of the camera, `sensor-id`.
        size: width and height of a mode that the sensor has (`v4l2-ctl --list-formats-ext` lists them).
        fps: frames a second of that mode.
        flip: `flip-method` of nvvidconv, 0 to 7; 2 turns by 180 degrees.
    """
    if sensor < 0 or min(size) < 1 or fps < 1 or not 0 <= flip <= 7:
        raise ConfigError(f"CSI camera {sensor}, {size[0]} x {size[1]}, {fps} fps, flip {flip}", wanted="flip 0 to 7")
    mode = f"video/x-raw(memory:NVMM),width={size[0]},height={size[1]},framerate={fps}/1"
    return f"nvarguscamerasrc sensor-id={sensor} ! {mode} ! nvvidconv flip-method={flip} ! video/x-raw,format=BGRx"


class GStreamerSource:
    """Frames of a pipeline, newest first: frames that nobody took are dropped inside the pipeline."""

    live = True

    def __init__(
        self,
        pipeline: str,
        size: tuple[int, int],
        *,
        fps: float = 30.0,
        name: str = "GStreamer pipeline",
        silence_s: float = SILENCE_S,
        launch: str = LAUNCH,
    ) -> None:
        """Describe the pipeline; it runs while `frames()` is iterated.

        Args:
            pipeline: in the syntax of gst-launch-1.0, without a sink. Its video is converted and scaled.
            size: width and height of the frames, in pixels.
            fps: what recorders assume; the pipeline has its own pace.
            name: for people.
            silence_s: seconds without a picture after which it is given up.
            launch: the program.
        """
        if not pipeline.strip() or min(size) < 1 or not silence_s > 0:
            raise ConfigError(f"pipeline {pipeline!r} of {size[0]} x {size[1]}", wanted="a pipeline, and its size")
        self.name, self.fps = name, fps
        self._size, self._silence_s, self._launch = size, silence_s, launch
        caps = f"video/x-raw,format=BGR,width={size[0]},height={size[1]}"
        newest = "queue max-size-buffers=1 leaky=downstream"
        convert = f"videoconvert ! videoscale ! {caps} ! fdsink fd=1 sync=false"
        self.command = shlex.split(f"-q {pipeline} ! {newest} ! {convert}")
        self._epoch: float | None = None
        self._number = 0

    def frames(self) -> Iterator[Frame]:
        """Run the pipeline and yield its frames; times are those of arrival, and go on when it is run again.

        Raises `SourceError` when the program is missing, the pipeline ends, or nothing comes for `silence_s` seconds.
        """
        program = shutil.which(self._launch)
        if program is None:
            raise SourceError(f"{self._launch} is not installed", hint="sudo apt-get install gstreamer1.0-tools")
        with tempfile.TemporaryFile() as told:
            process = subprocess.Popen(
                [program, *self.command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=told
            )
            assert process.stdout is not None
            try:
                while True:
                    yield self._frame(process.stdout, told)
            finally:
                _quit(process)

    def _frame(self, pipe: IO[bytes], told: IO[bytes]) -> Frame:
        width, height = self._size
        stride = -(-3 * width // 4) * 4  # rows begin at multiples of 4 bytes
        raw = self._read(pipe, stride * height, told)
        image = np.frombuffer(raw, np.uint8).reshape(height, stride)[:, : 3 * width].reshape(height, width, 3)
        now = time.monotonic()
        self._epoch = now if self._epoch is None else self._epoch
        self._number += 1
        return Frame(now - self._epoch, self._number - 1, image)

    def _read(self, pipe: IO[bytes], size: int, told: IO[bytes]) -> bytearray:
        data = bytearray()
        while len(data) < size:
            if not select.select([pipe], [], [], self._silence_s)[0]:
                raise SourceError(f"{self.name} sent nothing for {self._silence_s:g} s{_last_words(told)}")
            piece = pipe.read1(size - len(data))  # type: ignore[attr-defined]
            if not piece:
                raise SourceError(
                    f"{self.name} stopped sending frames{_last_words(told)}",
                    hint=f"{self._launch} {shlex.join(self.command)} > frames.bgr",
                )
            data += piece
        return data


def _last_words(told: IO[bytes]) -> str:
    """Return what the pipeline complained about last, after a colon; "" if it did not."""
    told.seek(0, 2)
    told.seek(max(0, told.tell() - 2000))
    lines = [line.strip() for line in told.read().decode(errors="replace").splitlines() if line.strip()]
    wrong = [line for line in lines if "ERROR" in line or "WARNING" in line or "error" in line]
    return f": {' '.join((wrong or lines)[-2:])}" if lines else ""


def _quit(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(QUIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        if process.stdout is not None:
            process.stdout.close()
