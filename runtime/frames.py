"""Frames of a camera on their way to a model: made into pictures, kept in a ring of fixed size, compared.

The ring copies what it is given: a driver may reuse its buffer for the next frame.
"""

from __future__ import annotations

import io
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from PIL import Image

from runtime.errors import ConfigError
from runtime.image import MAX_PIXELS

THUMB = 32  # pixels a side of the grey pictures that are compared
CODED = ("JPEG", "PNG")  # what cameras send; other decoders never see their bytes


def as_picture(raw: Any) -> np.ndarray | None:
    """Return a frame as uint8 [H, W], [H, W, 3] BGR or [H, W, 4] BGRA, or None if it is no picture.

    Takes such arrays, uint16 ones (the low byte is dropped), and bytes of a JPEG or PNG file. What is larger than
    `runtime.image.MAX_PIXELS` is no picture, and its bytes are not decoded.
    """
    if isinstance(raw, (bytes, bytearray, memoryview)):
        return _decode(bytes(raw))
    if not isinstance(raw, np.ndarray) or raw.dtype not in (np.uint8, np.uint16) or raw.ndim not in (2, 3):
        return None
    if not 0 < raw.shape[0] * raw.shape[1] <= MAX_PIXELS or (raw.ndim == 3 and raw.shape[2] not in (1, 3, 4)):
        return None
    return (raw >> 8).astype(np.uint8) if raw.dtype == np.uint16 else raw


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """Return a picture of `as_picture` as float32 [32, 32] of mean grey levels from 0 to 255."""
    small = cv2.resize(picture, (THUMB, THUMB), interpolation=cv2.INTER_AREA).astype(np.float32)
    if small.ndim == 2:
        return small
    grey: np.ndarray = small[..., :3] @ np.array([0.114, 0.587, 0.299], np.float32)  # BGR; BT.601, as OpenCV
    return grey


@dataclass(eq=False)
class Slot:
    """Room for one frame."""

    image: np.ndarray = field(default_factory=lambda: np.empty((0, 0, 3), np.uint8))
    time_s: float = 0.0  # as the source tells, else when it came, on the monotonic clock


class FrameRing:
    """The newest frames nobody has taken yet, and room for those in use. Thread-safe.

    Room for `waiting + in_use` frames is allocated with the first frame, and again only where a frame has another
    shape.
    """

    def __init__(self, waiting: int, in_use: int) -> None:
        """Hold up to `waiting` frames, beside up to `in_use` that are taken and not given back.

        Raises `ConfigError` for fewer than one of either.
        """
        if min(waiting, in_use) < 1:
            raise ConfigError(f"a ring for {waiting} waiting frames and {in_use} in use", wanted="at least 1 of each")
        self.changed = threading.Condition()
        self._free = [Slot() for _ in range(waiting + in_use)]
        self._slots = tuple(self._free)
        self._waiting: deque[Slot] = deque()
        self._most = waiting
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def nbytes(self) -> int:
        """Bytes of all pictures, used or not."""
        return sum(slot.image.nbytes for slot in self._slots)

    @property
    def full(self) -> bool:
        """Whether the next frame will replace one that waits."""
        return len(self._waiting) >= self._most

    def put(self, picture: np.ndarray, time_s: float) -> None:
        """Copy a frame in; without room the oldest that waits is dropped, and counted."""
        with self.changed:
            if self.full:
                self._free.append(self._waiting.popleft())
                self.dropped += 1
            if not self._slots[0].image.size:
                for slot in self._slots:
                    slot.image = np.empty(picture.shape, np.uint8)
            slot = self._free.pop()
            try:
                if slot.image.shape != picture.shape:
                    slot.image = np.empty(0, np.uint8)  # before the new one is made: never two at a time
                    slot.image = np.empty(picture.shape, np.uint8)
                np.copyto(slot.image, picture)
            except BaseException:
                self._free.append(slot)
                raise
            slot.time_s = time_s
            self._waiting.append(slot)
            self.changed.notify_all()

    def take(self, newest: bool = False) -> Slot | None:
        """Take the oldest frame that waits, or the newest, dropping the others; None if there is none."""
        with self.changed:
            while newest and len(self._waiting) > 1:
                self._free.append(self._waiting.popleft())
                self.dropped += 1
            return self._waiting.popleft() if self._waiting else None

    def give_back(self, slot: Slot) -> None:
        """Let a frame's room be used again."""
        with self.changed:
            self._free.append(slot)
            self.changed.notify_all()


def _decode(data: bytes) -> np.ndarray | None:
    try:
        with Image.open(io.BytesIO(data), formats=CODED) as image:
            if not 0 < image.width * image.height <= MAX_PIXELS:
                return None
            rgb = np.asarray(image.convert("RGB"))
    except Exception:  # decoders of hostile bytes raise nearly anything
        return None
    return np.ascontiguousarray(rgb[..., ::-1])
