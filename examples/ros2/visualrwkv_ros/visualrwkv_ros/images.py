"""sensor_msgs/Image -> BGR array, without cv_bridge (which brings an OpenCV of its own)."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

# encoding -> bytes per pixel as the message says it, channels of the array, conversion to BGR
ENCODINGS: dict[str, tuple[int, int, int | None]] = {
    "bgr8": (3, 3, None),
    "8UC3": (3, 3, None),
    "rgb8": (3, 3, cv2.COLOR_RGB2BGR),
    "bgra8": (4, 4, cv2.COLOR_BGRA2BGR),
    "8UC4": (4, 4, cv2.COLOR_BGRA2BGR),
    "rgba8": (4, 4, cv2.COLOR_RGBA2BGR),
    "mono8": (1, 1, cv2.COLOR_GRAY2BGR),
    "8UC1": (1, 1, cv2.COLOR_GRAY2BGR),
    "mono16": (2, 1, cv2.COLOR_GRAY2BGR),
    "16UC1": (2, 1, cv2.COLOR_GRAY2BGR),
    "yuv422_yuy2": (2, 2, cv2.COLOR_YUV2BGR_YUY2),
    "yuv422": (2, 2, cv2.COLOR_YUV2BGR_UYVY),
}


def to_bgr(message: Any) -> np.ndarray:
    """Return a sensor_msgs/Image as [height, width, 3] uint8 BGR, a copy of its own.

    Raises `ValueError` for an encoding that is not in `ENCODINGS`, or data that is not as long as the message says.
    """
    if message.encoding not in ENCODINGS:
        raise ValueError(f"encoding {message.encoding!r}; wanted one of {', '.join(ENCODINGS)}")
    size, channels, conversion = ENCODINGS[message.encoding]
    height, width, step = message.height, message.width, message.step
    data = np.frombuffer(message.data, np.uint8)
    if step < width * size or data.size < height * step or height * width == 0:
        raise ValueError(f"{data.size} bytes, {height} rows of {step}, for {width} x {height} {message.encoding}")
    rows = data[: height * step].reshape(height, step)[:, : width * size]
    if size == 2 and channels == 1:  # 16 bits: the high byte is what a picture of 8 bits keeps
        rows = rows.reshape(height, width, 2)[..., 0 if message.is_bigendian else 1]
    pixels = np.ascontiguousarray(rows).reshape(height, width, channels)
    return pixels.copy() if conversion is None else cv2.cvtColor(pixels, conversion)


def seconds(stamp: Any) -> float:
    """Return a builtin_interfaces/Time in seconds."""
    return float(stamp.sec) + float(stamp.nanosec) * 1e-9
