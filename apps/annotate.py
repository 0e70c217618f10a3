"""Questions and answers drawn over frames, and the video file they are written to.

OpenCV draws ASCII only, so text goes through Pillow, with whatever font of this machine has the characters.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from apps.fonts import drawable, font_for, missing, wrap
from apps.sources import Frame
from runtime.errors import ConfigError

CODECS = {".mp4": "mp4v", ".avi": "MJPG"}
MIN_SIDE = 360  # frames smaller than this are enlarged by a whole factor, for the text to be readable
MAX_GAP_S = 2.0  # a longer silence of the camera is cut out of the video
BACKGROUND = 0.65  # how much of the frame the strip behind the text hides


@dataclass(frozen=True)
class Caption:
    """What is written over a frame."""

    question: str = ""
    answer: str = ""
    note: str = ""


class Captioner:
    """Draws captions. The text is drawn once and blended into every frame until it changes."""

    def __init__(self, font_file: Path | None = None) -> None:
        """`font_file` is used first; raises `ConfigError` when it is no font."""
        self._font_file = font_file
        if font_file is not None:
            try:
                ImageFont.truetype(str(font_file), 16)
            except OSError as error:
                raise ConfigError(f"{font_file} is no font: {error}", wanted="a .ttf, .otf or .ttc file") from None
        self.lost: set[str] = set()  # characters no font had
        self._drawn: tuple[Caption, int, int] | None = None
        self._strip = np.zeros((0, 0, 3), np.float32)
        self._keep = np.zeros((0, 0, 1), np.float32)

    def draw(self, image: np.ndarray, caption: Caption) -> np.ndarray:
        """Return a copy of `image` ([H, W, 3] uint8 BGR) with the caption at its foot."""
        out = image.copy()
        if caption == Caption():
            return out
        height, width = image.shape[:2]
        if self._drawn != (caption, height, width):
            self._prepare(caption, height, width)
            self._drawn = (caption, height, width)
        foot = out[height - self._strip.shape[0] :]
        foot[:] = (foot * self._keep + self._strip).astype(np.uint8)
        return out

    def _prepare(self, caption: Caption, height: int, width: int) -> None:
        size, margin = max(14, height // 22), max(6, width // 60)
        texts = ((caption.question, 255), (caption.answer, 255), (caption.note, 170))
        lines: list[tuple[str, int]] = []
        everything = "".join(text for text, _ in texts)
        font = font_for(everything, size, self._font_file)
        self.lost |= missing(everything, font)
        for text, grey in texts:
            lines += [(line, grey) for line in wrap(drawable(text, font), font, width - 2 * margin)]
        step = round(size * 1.35)
        lines = lines[-max(1, (height - 2 * margin) // step) :]  # the newest lines, when not all fit
        mask = Image.new("L", (width, min(height, step * len(lines) + 2 * margin)), 0)
        pen = ImageDraw.Draw(mask)
        for row, (line, grey) in enumerate(lines):
            pen.text((margin, margin + row * step), line, fill=grey, font=font)
        alpha = np.asarray(mask, np.float32)[:, :, None] / 255
        self._strip = np.broadcast_to(255 * alpha, (*alpha.shape[:2], 3)).astype(np.float32)
        self._keep = ((1 - alpha) * (1 - BACKGROUND)).astype(np.float32)


class Recorder:
    """Writes frames with the current caption to a video file. Safe to use from two threads."""

    def __init__(self, path: Path, *, fps: Callable[[], float], font_file: Path | None = None) -> None:
        """`fps` is asked at the first frame; `ConfigError` for an unknown ending or a missing folder."""
        if path.suffix.lower() not in CODECS:
            raise ConfigError(f"cannot write a video called {path.name}", wanted=" or ".join(CODECS))
        if not path.parent.is_dir():
            raise ConfigError(f"the folder {path.parent} does not exist", hint=f"mkdir -p {path.parent}")
        self.path, self.fps, self.frames = path, 0.0, 0
        self._ask_fps = fps
        self._captioner = Captioner(font_file)
        self._caption = Caption()
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self._last: np.ndarray | None = None
        self._shift_s = 0.0  # what cut silences have taken from the time
        self._lock = threading.Lock()

    @property
    def lost(self) -> str:
        """The characters that were drawn as "?" because no font of this machine has them."""
        return "".join(sorted(self._captioner.lost))

    def caption(self, caption: Caption) -> None:
        """Set the text of the frames to come."""
        with self._lock:
            self._caption = caption

    def add(self, frame: Frame) -> None:
        """Write a frame at its time: repeated where the source is slower than the video, else skipped."""
        with self._lock:
            if self._writer is None:
                self._open(frame)
            due_s = frame.time_s - self._shift_s
            if due_s - self.frames / self.fps > MAX_GAP_S:
                self._shift_s = frame.time_s - self.frames / self.fps
                due_s = self.frames / self.fps
            self._last = _letterbox(frame.image, self._size)
            while self.frames <= round(due_s * self.fps):
                self._write()

    def hold(self, seconds: float) -> None:
        """Show the last frame for a while longer, with the caption of now."""
        with self._lock:
            for _ in range(round(seconds * self.fps) if self._last is not None else 0):
                self._write()

    def close(self) -> None:
        """Finish the file. Safe to call twice."""
        with self._lock:
            if self._writer is not None:
                self._writer.release()
            self._writer, self._last = None, None

    def _open(self, frame: Frame) -> None:
        height, width = frame.image.shape[:2]
        factor = max(1, -(-MIN_SIDE // min(height, width)))
        self._size = (width * factor // 2 * 2, height * factor // 2 * 2)  # codecs want even sides
        self._shift_s, self.fps = frame.time_s, min(max(self._ask_fps(), 5.0), 30.0)
        codec = cv2.VideoWriter.fourcc(*CODECS[self.path.suffix.lower()])
        self._writer = cv2.VideoWriter(str(self.path), codec, self.fps, self._size)
        if not self._writer.isOpened():
            raise ConfigError(
                f"OpenCV cannot write {self.path}", hint="choose another folder, or a name ending in .avi"
            )

    def _write(self) -> None:
        if self._writer is not None and self._last is not None:
            self._writer.write(self._captioner.draw(self._last, self._caption))
            self.frames += 1


def _letterbox(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Fit a frame into `size` (width, height), keeping its aspect: a camera may change its resolution."""
    width, height = size
    scale = min(width / image.shape[1], height / image.shape[0])
    w, h = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    out = np.zeros((height, width, 3), np.uint8)
    top, left = (height - h) // 2, (width - w) // 2
    out[top : top + h, left : left + w] = cv2.resize(image, (w, h), interpolation=smooth)
    return out
