"""Where pictures come from: the camera of the browser, frame by frame over its WebSocket, or the robot's own source.

Both keep the newest picture only. Whoever reads asks for one that is newer than the last it saw.
"""

from __future__ import annotations

import base64
import io
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np
from PIL import Image

from apps.latest import LatestFrame
from runtime.errors import InputError, SourceError

FRAME_BYTES = 2 << 20  # of one JPEG from a page
FRAME_PIXELS = 4 << 20  # checked before it is decoded
THUMB_SIDE = 176  # pixels: what the history shows
PREVIEW_SIDE = 720  # pixels: what the page shows of the robot's camera


class Shot(NamedTuple):
    """A picture and its number; numbers of one camera only grow."""

    number: int
    image: np.ndarray  # [H, W, 3] uint8 BGR


class Camera(Protocol):
    """What is asked and watched."""

    name: str

    def newest(self, after: int = -1, timeout: float = 0.0) -> Shot | None:
        """Return the newest picture with a number above `after`, waiting up to `timeout` seconds; else None."""
        ...


class PageCamera:
    """The newest picture a page has sent."""

    name = "the camera of the page"

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._data, self._number = b"", -1

    def put(self, data: bytes) -> None:
        """Take a JPEG; the one before is forgotten. Raises `InputError` for one that is too large."""
        if len(data) > FRAME_BYTES:
            raise InputError(f"a picture of {len(data)} bytes", wanted=f"at most {FRAME_BYTES}")
        with self._changed:
            self._data, self._number = data, self._number + 1
            self._changed.notify_all()

    def newest(self, after: int = -1, timeout: float = 0.0) -> Shot | None:
        """As `Camera.newest`. Raises `InputError` for bytes that are no JPEG."""
        with self._changed:
            self._changed.wait_for(lambda: self._number > after, timeout)
            data, number = self._data, self._number
        return Shot(number, decode(data)) if number > after else None


class RobotCamera:
    """The source the server was started with; every page sees the same."""

    def __init__(self, reader: LatestFrame) -> None:
        # Of a file only its own name: where it lies is nobody's business.
        name = reader.source.name
        self.name = name if "://" in name else Path(name).name
        self._reader, self._lock = reader, threading.Lock()
        self._preview: tuple[int, bytes] = (-1, b"")
        self._notices: deque[tuple[int, str]] = deque(maxlen=10)
        self._told, self._failed = 0, False

    def newest(self, after: int = -1, timeout: float = 0.0) -> Shot | None:
        """As `Camera.newest`. Raises `SourceError` when the source has failed for good."""
        frame = self._reader.latest(after=after, timeout=timeout)
        return Shot(frame.number, frame.image) if frame is not None else None

    def preview(self, after: int) -> tuple[int, bytes] | None:
        """Return number and JPEG of the newest picture if it is newer than `after`. Never waits, never raises."""
        try:
            shot = self.newest(after)
        except SourceError:
            return None
        if shot is None:
            return None
        with self._lock:
            if self._preview[0] != shot.number:
                self._preview = shot.number, encode(shot.image, PREVIEW_SIDE, 80)
            return self._preview

    def notices(self, after: int) -> list[tuple[int, str]]:
        """Return the last things that happened to the source whose number is above `after`."""
        with self._lock:
            fresh, error = self._reader.notices(), self._reader.error
            if error is not None and not self._failed:
                self._failed = True
                fresh = [*fresh, error.found]
            for text in fresh:
                self._told += 1
                self._notices.append((self._told, text))
            return [notice for notice in self._notices if notice[0] > after]


class Tap:
    """What one watch reads of a camera; `close` ends it within a quarter of a second."""

    live = True  # older pictures give way to newer ones

    def __init__(self, camera: Camera, shown: Callable[[Shot], None] = lambda shot: None) -> None:
        """`shown` is told of every picture, in the thread that reads."""
        self.name, self._camera, self._shown = camera.name, camera, shown
        self._closed = threading.Event()

    def frames(self) -> Iterator[np.ndarray | None]:
        """Yield pictures as they come, None for one that cannot be decoded."""
        number = -1
        while not self._closed.is_set():
            try:
                shot = self._camera.newest(number, 0.25)
            except SourceError:
                raise  # of the robot's camera, for good
            except InputError:
                yield None
                self._closed.wait(0.25)
                continue
            if shot is not None:
                number = shot.number
                self._shown(shot)
                yield shot.image

    def close(self) -> None:
        """End `frames`."""
        self._closed.set()


def decode(data: bytes) -> np.ndarray:
    """Return a JPEG as [H, W, 3] uint8 BGR. Raises `InputError` for anything else, before its pixels are decoded."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as picture:
            if picture.width * picture.height > FRAME_PIXELS:
                raise InputError(
                    f"a picture of {picture.width} x {picture.height}", wanted=f"at most {FRAME_PIXELS} pixels"
                )
            rgb = np.asarray(picture.convert("RGB"))
    except InputError:
        raise
    except Exception as error:  # decoders of hostile bytes raise nearly anything
        raise InputError(f"bytes that are no JPEG: {type(error).__name__}", wanted="a JPEG picture") from None
    return np.ascontiguousarray(rgb[..., ::-1])


def encode(image: np.ndarray, side: int, quality: int) -> bytes:
    """Return a picture as JPEG, its longer side at most `side` pixels."""
    scale = side / max(image.shape[:2])
    if scale < 1:
        size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def thumbnail(image: np.ndarray) -> str:
    """Return a small copy of a picture as a data: address, a few kilobytes long."""
    return "data:image/jpeg;base64," + base64.b64encode(encode(image, THUMB_SIDE, 72)).decode("ascii")
