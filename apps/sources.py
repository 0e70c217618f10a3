"""Where frames come from: a camera, a video file, a stream, a folder of pictures, arrays.

A source is an iterator of `Frame`: a time and an H x W x 3 uint8 BGR picture. It knows nothing of threads or
models; `apps.latest.LatestFrame` reads it in the background. Iterate `source.frames()` to see every frame.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from runtime.errors import SourceError

PICTURES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
OPEN_TIMEOUT_MS = 8000  # of a stream that does not answer
READ_TIMEOUT_MS = 8000  # of a stream that goes silent
MAX_CORRUPT = 30  # frames in a row that cannot be decoded before a source counts as broken
DEFAULT_FPS = 25.0


@dataclass(frozen=True)
class Frame:
    """One picture: seconds since the source began, its number from 0, and [H, W, 3] uint8 BGR pixels."""

    time_s: float
    number: int
    image: np.ndarray


class Source(Protocol):
    """Anything that yields frames. `live` sources end only by failing and are worth reconnecting to."""

    name: str  # for people; holds no password
    live: bool
    fps: float

    def frames(self) -> Iterator[Frame]:
        """Open the source and yield its frames; raises `SourceError` where it cannot be opened or read."""
        ...


class Capture(Protocol):
    """The part of `cv2.VideoCapture` that is used here."""

    def isOpened(self) -> bool: ...
    def read(self) -> tuple[bool, Any]: ...
    def get(self, prop: int, /) -> float: ...
    def release(self) -> None: ...


class CaptureSource:
    """Frames of a camera, a stream or a video file, through OpenCV.

    A camera or stream is live: its frames carry the time of their arrival, and the clock goes on when it is
    opened again. A file ends, or starts over with `loop`; its frames carry their time in the video.
    """

    def __init__(self, name: str, opener: Callable[[], Capture], *, live: bool, loop: bool = False) -> None:
        self.name, self.live, self.loop = name, live, loop
        self.fps = DEFAULT_FPS
        self.corrupt = 0  # frames that could not be decoded, since the beginning
        self._open = opener
        self._epoch: float | None = None
        self._number = 0

    def frames(self) -> Iterator[Frame]:
        """Yield frames until a file ends; `SourceError` when a live source stops or nothing decodes."""
        if not self.live:
            self._number = 0
        while True:
            begin = self._number
            capture = self._open()
            try:
                yield from self._read(capture)
            finally:
                capture.release()
            if self._number == begin:
                raise SourceError(
                    f"{self.name} holds no frame that can be decoded",
                    hint="play it with ffplay, or convert it: ffmpeg -i INPUT -c:v libx264 out.mp4",
                )
            if not self.loop:
                return

    def _read(self, capture: Capture) -> Iterator[Frame]:
        if not capture.isOpened():
            raise SourceError(
                f"{self.name} cannot be opened",
                hint="check the cable, the address and that no other program holds it"
                if self.live
                else "check that it is a video OpenCV can read",
            )
        rate = capture.get(cv2.CAP_PROP_FPS)
        self.fps = rate if 1.0 <= rate <= 240.0 else DEFAULT_FPS
        # A video file behind http ends like a file.
        ends = not self.live or capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0
        corrupt = 0
        while True:
            good, raw = capture.read()
            if not good:
                if ends:
                    return
                raise SourceError(f"{self.name} stopped sending frames")
            image = as_bgr(raw)
            if image is None:
                corrupt, self.corrupt = corrupt + 1, self.corrupt + 1
                if corrupt >= MAX_CORRUPT:
                    raise SourceError(f"{self.name} sent {corrupt} corrupt frames in a row")
                continue
            corrupt = 0
            yield Frame(self._time(), self._number, image)
            self._number += 1

    def _time(self) -> float:
        if not self.live:
            return self._number / self.fps
        now = time.monotonic()
        if self._epoch is None:
            self._epoch = now
        return now - self._epoch


class FolderSource:
    """The pictures of a folder in natural order of their names (frame2 before frame10), `fps` a second."""

    def __init__(self, folder: Path, *, fps: float = 1.0, loop: bool = False) -> None:
        """Raises `SourceError` when the folder holds no picture."""
        self.name, self.live, self.fps, self.loop = str(folder), False, fps, loop
        self.files = sorted((f for f in folder.iterdir() if f.suffix.lower() in PICTURES), key=_natural)
        if not self.files:
            raise SourceError(f"{folder} holds no picture", wanted=" ".join(sorted(PICTURES)))

    def frames(self) -> Iterator[Frame]:
        """Yield one frame per readable picture; raises `SourceError` when none can be decoded."""
        number = 0
        while True:
            begin = number
            for file in self.files:
                image = as_bgr(cv2.imread(str(file), cv2.IMREAD_COLOR))
                if image is not None:
                    yield Frame(number / self.fps, number, image)
                    number += 1
            if number == begin:
                raise SourceError(f"none of the {len(self.files)} pictures in {self.name} can be decoded")
            if not self.loop:
                return


class ArraySource:
    """Arrays from your own code: [H, W, 3] uint8 BGR, or anything `as_bgr` takes, at `fps`."""

    def __init__(self, images: Iterable[np.ndarray], *, fps: float = DEFAULT_FPS, name: str = "arrays") -> None:
        self.name, self.live, self.fps = name, False, fps
        self._images = images

    def frames(self) -> Iterator[Frame]:
        """Yield the arrays; raises `SourceError` for one that is no picture."""
        for number, raw in enumerate(self._images):
            image = as_bgr(raw)
            if image is None:
                raise SourceError(
                    f"array {number} is {getattr(raw, 'dtype', type(raw).__name__)} {np.shape(raw)}",
                    wanted="[height, width, 3] uint8, BGR",
                )
            yield Frame(number / self.fps, number, image)


def as_bgr(raw: Any) -> np.ndarray | None:
    """Return `raw` as [H, W, 3] uint8 BGR, or None when it is no picture.

    Takes grey, BGR and BGRA, 8 or 16 bits: what cameras and image files really deliver.
    """
    if not isinstance(raw, np.ndarray) or raw.size == 0 or raw.ndim not in (2, 3):
        return None
    if raw.dtype == np.uint16:
        raw = (raw >> 8).astype(np.uint8)
    if raw.dtype != np.uint8:
        return None
    channels = 1 if raw.ndim == 2 else raw.shape[2]
    if channels == 3:
        return raw
    if channels == 1:
        return cv2.cvtColor(raw, cv2.COLOR_GRAY2BGR)
    if channels == 4:
        return cv2.cvtColor(raw, cv2.COLOR_BGRA2BGR)
    return None


def open_source(text: str, *, fps: float | None = None, loop: bool = False) -> Source:
    """Turn what a person types into a source: a camera number, a URL, a video file or a folder.

    `fps` is the pace of a folder (1 picture a second otherwise). Opening a camera, stream or file waits until
    `frames()`; raises `SourceError` for a path that does not exist.
    """
    if re.match(r"(v4l2|csi|gst):", text):
        from apps.robot import from_text

        return from_text(text)
    if re.fullmatch(r"\d+", text):
        index = int(text)
        return CaptureSource(f"camera {index}", lambda: _open_camera(index), live=True)
    if re.match(r"[a-z][a-z0-9+.-]+://", text, re.IGNORECASE):
        return CaptureSource(redact(text), lambda: _open_stream(text), live=True)
    path = Path(text).expanduser()
    if path.is_dir():
        return FolderSource(path, fps=fps or 1.0, loop=loop)
    if path.is_file():
        return CaptureSource(str(path), lambda: _quiet(cv2.VideoCapture, str(path)), live=False, loop=loop)
    device = re.fullmatch(r"/dev/video(\d+)", text)
    raise SourceError(
        f"there is no {text}",
        wanted="a camera number, a video file, a folder of pictures, an rtsp:// or http:// address, or one of "
        "v4l2:/dev/video0, csi:0, gst:640x480:PIPELINE",
        hint="look at the cameras with: ls /dev/video*" if device else "",
    )


def first_camera(candidates: Iterable[int] | None = None) -> int | None:
    """Return the number of the first camera that opens and delivers a frame, or None."""
    for index in _camera_numbers() if candidates is None else candidates:
        capture = _open_camera(index)
        try:
            if capture.isOpened() and as_bgr(capture.read()[1]) is not None:
                return index
        finally:
            capture.release()
    return None


def redact(url: str) -> str:
    """Return a URL that can be printed: user name and password hidden."""
    return re.sub(r"(?<=://)[^/]*@", "***@", url)


def _camera_numbers() -> list[int]:
    devices = Path("/dev")
    if Path("/sys/class").is_dir():  # Linux: ask only for what exists, since a failing open is slow and noisy
        names = (re.fullmatch(r"video(\d+)", d.name) for d in devices.glob("video*"))
        return sorted(int(name[1]) for name in names if name)
    return [0, 1]


def _open_camera(index: int) -> Capture:
    return _quiet(cv2.VideoCapture, index)


def _open_stream(url: str) -> Capture:
    timeouts = [
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
        OPEN_TIMEOUT_MS,
        cv2.CAP_PROP_READ_TIMEOUT_MSEC,
        READ_TIMEOUT_MS,
    ]
    return _quiet(cv2.VideoCapture, url, cv2.CAP_FFMPEG, timeouts)


def _quiet(build: Callable[..., Any], *arguments: Any) -> Capture:
    """Open without OpenCV's own messages: what went wrong is told by `SourceError`."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        return build(*arguments)
    finally:
        cv2.utils.logging.setLogLevel(level)


def _natural(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path.name.lower())
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
