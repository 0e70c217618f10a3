"""From pictures to the pixels that vision towers were trained on, bit-equal to PIL and float32 arithmetic."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from runtime.errors import ConfigError, InputError
from runtime.spec import RegionSpec, ViewSpec, VisionSpec

MAX_PIXELS = 64_000_000  # larger pictures are refused before they are decoded: 64 Mpx is 192 MB of RGB

# Pillow would try some forty decoders on a file, one of which starts another program.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

ImageSource = np.ndarray | str | Path | Image.Image

_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}
_FROM_CHANNELS = {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}


def load_image(source: ImageSource) -> np.ndarray:
    """Return a picture as RGB uint8 [H, W, 3], a new array.

    Args:
        source: a uint8 array as OpenCV gives it ([H, W, 3] BGR, [H, W, 4] BGRA, [H, W] or [H, W, 1] grey),
            a path, or a PIL image. As in the official code, alpha is dropped and EXIF orientation is not
            applied.

    Raises:
        InputError: not a picture, empty, unreadable, another dtype, or more than `MAX_PIXELS`.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _from_pil(source, "the PIL image")
    if isinstance(source, (str, Path)):
        try:
            with Image.open(source, formats=FORMATS) as image:
                return _from_pil(image, str(source))
        except InputError:
            raise
        except Exception as error:  # decoders of hostile files raise nearly anything
            raise InputError(
                f"cannot read image {str(source)!r}: {error}",
                hint="give the path of a complete PNG or JPEG file",
            ) from None
    raise InputError(
        f"an image of type {type(source).__name__}", wanted="a uint8 NumPy array (BGR), a path or a PIL image"
    )


def prepare(image: np.ndarray, view: ViewSpec) -> np.ndarray:
    """Resize and normalise RGB uint8 [H, W, 3] for one view: float32 [3, height, width].

    A view of a tile sees that cell of the picture alone, cut before anything is resized.

    Source: torchvision on PIL images, as in the official preprocessing: resampled to uint8, then (x / 255 -
        mean) / std.
    Raises `ConfigError` if the view takes features instead of pixels, or crops to another shape than a
    square.
    """
    if view.kind != "pixels":
        raise ConfigError(f"view {view.name!r} takes precomputed features", hint="give them to Engine.encode")
    pixels = np.asarray(_fit(Image.fromarray(_tile(image, view.tile)), view))
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    out = np.empty((3, view.height, view.width), np.float32)
    for channel in range(3):  # only 256 values can occur, so normalise those
        table = (levels - np.float32(view.mean[channel])) / np.float32(view.std[channel])
        np.take(table, pixels[..., channel], out=out[channel], mode="clip")
    return out


def split_regions(image: np.ndarray, regions: RegionSpec) -> list[np.ndarray]:
    """Cut a picture [H, W, 3] into squares of `regions.size`, row by row.

    The picture is first resized (aspect not kept) to the canvas that `regions.waste` finds least wasteful, the first of
    equals. Source: VisualRWKV v7.02 ("fit") and v7.03, v7.04 ("fit_and_area"), whose arithmetic is kept.
    """
    size = regions.size
    height, width = image.shape[:2]
    columns, rows = (range(max(1, -(-side // size) - 1), -(-side // size) + 1) for side in (width, height))
    grid = min(
        ((c, r) for c in columns for r in rows),
        key=lambda cr: _waste(cr[0] * size, cr[1] * size, width, height, regions.waste == "fit_and_area"),
    )
    canvas = Image.fromarray(image).resize((grid[0] * size, grid[1] * size), _RESAMPLING[regions.interpolation])
    tiles = np.asarray(canvas).reshape(grid[1], size, grid[0], size, 3).swapaxes(1, 2)
    return [np.ascontiguousarray(tile) for row in tiles for tile in row]


def prepare_views(images: Sequence[np.ndarray], vision: VisionSpec) -> dict[str, np.ndarray]:
    """Prepare pictures [H, W, 3] for every view: name -> float32 [I, 3, height, width]."""
    return {view.name: np.stack([prepare(image, view) for image in images]) for view in vision.views}


def frame_hash(image: np.ndarray) -> str:
    """Return 32 hex digits that identify a picture's shape, dtype and every pixel (SHA-256)."""
    digest = hashlib.sha256(f"{image.dtype}{image.shape}".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()[:32]


def _from_array(array: np.ndarray) -> np.ndarray:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8:
        hint = "convert it: (x * 255).round().astype(np.uint8)" if array.dtype.kind == "f" else "convert it to 8 bits"
        raise InputError(f"an image of dtype {array.dtype}", wanted="uint8", hint=hint)
    if array.ndim not in (2, 3) or channels not in _FROM_CHANNELS or not array.size:
        hint = "move the channels last: x.transpose(1, 2, 0)" if array.ndim == 3 and len(array) in (1, 3, 4) else ""
        raise InputError(
            f"an image of shape {list(array.shape)}",
            wanted="[H, W, 3] BGR, [H, W, 4] BGRA or [H, W] grey",
            hint=hint,
        )
    _check_size(array.shape[1], array.shape[0], "the array")
    rgb: np.ndarray = cv2.cvtColor(np.ascontiguousarray(array), _FROM_CHANNELS[channels])
    return rgb


def _from_pil(image: Image.Image, name: str) -> np.ndarray:
    _check_size(*image.size, name)
    try:
        return np.array(image.convert("RGB"))
    except Exception as error:
        raise InputError(f"cannot decode {name}: {error}", hint="is the file complete?") from None


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS or not width * height:
        raise InputError(
            f"{name} has {width} x {height} pixels",
            wanted=f"1 to {MAX_PIXELS} pixels",
            hint="scale it down first",
        )


def _fit(image: Image.Image, view: ViewSpec) -> Image.Image:
    filter_ = _RESAMPLING[view.interpolation]
    if view.fit == "stretch":
        return image.resize((view.width, view.height), filter_)
    if view.height != view.width:
        raise ConfigError(f"view {view.name!r} crops to {view.height} x {view.width}", wanted="a square")
    side = view.height
    short = min(image.size)
    width, height = (side if length == short else side * length // short for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    if width * height > MAX_PIXELS:  # a very long picture: resize only what the crop keeps
        x, y = image.width / width, image.height / height
        kept = (left * x, top * y, min((left + side) * x, image.width), min((top + side) * y, image.height))
        return image.resize((side, side), filter_, box=kept)
    return image.resize((width, height), filter_).crop((left, top, left + side, top + side))


def _tile(image: np.ndarray, tile: tuple[int, int, int]) -> np.ndarray:
    """Cut out one cell of a picture [H, W, 3]; at least one pixel, so that a picture one pixel wide has cells too."""
    count, row, column = tile
    top, height = _span(image.shape[0], count, row)
    left, width = _span(image.shape[1], count, column)
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def _span(length: int, count: int, index: int) -> tuple[int, int]:
    part = max(1, length // count)
    return min(index * part, length - part), part


def _waste(canvas_width: int, canvas_height: int, width: int, height: int, with_area: bool) -> int:
    """Pixels of the canvas that the picture fitted into it leaves empty; with the difference of areas if asked for."""
    scale = min(canvas_width / width, canvas_height / height)
    canvas = canvas_width * canvas_height
    empty = abs(canvas - int(width * scale) * int(height * scale))
    return empty + (abs(canvas - width * height) if with_area else 0)
