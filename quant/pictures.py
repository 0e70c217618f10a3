"""The user's own pictures: a folder, a video or a camera, checked before anything is learned from them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from runtime.errors import InputError, SourceError
from runtime.image import load_image

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
MOST = 64  # pictures that are used: the moments of more change the rounding no further
BLANK = 2.0  # grey levels: a picture that varies less is a covered lens
_SPACING = 15  # frames between those taken of a camera, so that they differ
_FAILURES = 30  # frames in a row that cannot be read before a camera counts as broken


class Pictures:
    """Checked pictures, read from disk again each time they are used."""

    def __init__(self, sources: list[Path | np.ndarray], found: int, unreadable: int = 0, blank: int = 0) -> None:
        """Hold paths, or PNG files in memory."""
        self._sources, self.found, self.unreadable, self.blank = sources, found, unreadable, blank

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return picture `index` as BGR uint8 [H, W, 3]."""
        source = self._sources[index]
        if isinstance(source, Path):
            return np.ascontiguousarray(load_image(source)[..., ::-1])
        picture = cv2.imdecode(source, cv2.IMREAD_COLOR)
        assert picture is not None
        return np.asarray(picture, np.uint8)

    def __str__(self) -> str:
        left_out = [f"{n} {what}" for n, what in ((self.unreadable, "unreadable"), (self.blank, "blank")) if n]
        return f"{len(self)} of {self.found} pictures" + (f" ({', '.join(left_out)} left out)" if left_out else "")


def find_pictures(source: str, most: int = MOST) -> Pictures:
    """Find and check pictures to calibrate on. The same source gives the same pictures.

    Args:
        source: a folder (searched with its subfolders), a video file, or the number of a camera.
        most: how many to keep, evenly spread over what there is.

    Raises:
        SourceError: nothing there, or the camera or video cannot be read.
        InputError: more than half of the pictures cannot be read or show nothing.
    """
    path = Path(source)
    if path.is_dir():
        return _of_folder(path, most)
    if not source.isdecimal() and not path.is_file():
        raise SourceError(f"there is no {source}", wanted="a folder of pictures, a video file or a camera's number")
    frames = _of_camera(int(source), most) if source.isdecimal() else _of_video(path, most)
    kept = [frame for frame in frames if not _is_blank(frame)]
    blank = len(frames) - len(kept)
    return _judged(Pictures([cv2.imencode(".png", f)[1] for f in kept], len(frames), 0, blank), source)


def questions_of(source: str) -> tuple[str, ...]:
    """Return the lines of questions.txt in a folder of pictures; none where there is no such file."""
    file = Path(source) / "questions.txt"
    if not file.is_file():
        return ()
    return tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())


def _of_folder(folder: Path, most: int) -> Pictures:
    paths = sorted(
        Path(root) / name
        for root, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
    )
    if not paths:
        raise SourceError(f"no pictures in {folder}", wanted=f"files ending in {', '.join(sorted(SUFFIXES))}")
    chosen: list[Path | np.ndarray] = []
    unreadable = blank = 0
    for path in _spread(paths, most):
        try:
            picture = load_image(path)
        except InputError:
            unreadable += 1
            continue
        if _is_blank(picture):
            blank += 1
        else:
            chosen.append(path)
    return _judged(Pictures(chosen, len(paths), unreadable, blank), str(folder))


def _of_video(path: Path, most: int) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    try:
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        every = max(1, count // most)
        frames = [frame for i, frame in enumerate(_read(capture, 1)) if i % every == 0][:most]
    finally:
        capture.release()
    if not frames:
        raise SourceError(f"{path} is no video that OpenCV can read", hint="give a folder of pictures instead")
    return frames


def _of_camera(number: int, most: int) -> list[np.ndarray]:
    capture = cv2.VideoCapture(number)
    try:
        frames: list[np.ndarray] = []
        for i, frame in enumerate(_read(capture, _FAILURES)):
            if i % _SPACING == 0:
                frames.append(frame)
            if len(frames) == most:
                break
    finally:
        capture.release()
    if len(frames) < most:
        raise SourceError(
            f"camera {number} gave {len(frames)} of {most} frames", hint="is it plugged in, and not in use?"
        )
    return frames


def _read(capture: cv2.VideoCapture, failures: int) -> Iterator[np.ndarray]:
    """Yield frames until so many in a row cannot be read."""
    failed = 0
    while failed < failures:
        good, frame = capture.read()
        failed = 0 if good else failed + 1
        if good:
            yield frame


def _spread(paths: list[Path], most: int) -> list[Path]:
    if len(paths) <= most:
        return paths
    return [paths[i * len(paths) // most] for i in range(most)]


def _is_blank(picture: np.ndarray) -> bool:
    small = cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA)
    return float(small.astype(np.float32).std(axis=(0, 1)).max()) < BLANK


def _judged(pictures: Pictures, source: str) -> Pictures:
    looked = len(pictures) + pictures.unreadable + pictures.blank
    if 2 * len(pictures) < looked:
        raise InputError(
            f"{source}: of {looked} pictures {pictures.unreadable} cannot be read and {pictures.blank} show nothing",
            wanted="pictures of what the model will see, most of them usable",
            hint="take the lens cap off, or leave --calibrate out",
        )
    return pictures


def drawn(count: int, seed: int = 5) -> list[np.ndarray]:
    """Return simple drawn pictures, BGR uint8 [192, 256, 3], for where there are none of the user's own."""
    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(count):
        ends = rng.integers(0, 256, (2, 3)).astype(np.float32)
        ramp = np.linspace(0, 1, 192, dtype=np.float32)[:, None, None]
        picture = np.repeat(ends[0] * (1 - ramp) + ends[1] * ramp, 256, axis=1)
        for _ in range(int(rng.integers(2, 7))):
            colour = rng.integers(0, 256, 3).tolist()
            centre = int(rng.integers(0, 256)), int(rng.integers(0, 192))
            size = int(rng.integers(10, 70))
            if rng.random() < 0.5:
                cv2.circle(picture, centre, size, colour, -1)
            else:
                cv2.rectangle(picture, centre, (centre[0] + size, centre[1] + size), colour, -1)
        pictures.append((picture + rng.normal(0, 4, picture.shape)).clip(0, 255).astype(np.uint8))
    return pictures
