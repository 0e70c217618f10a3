"""One function for every kind of camera, all of them returning an `apps.sources.Source`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import cv2
import numpy as np

from apps.robot.gst import GStreamerSource, csi_pipeline
from apps.sources import DEFAULT_FPS, ArraySource, CaptureSource, FolderSource, Frame, Source, as_bgr, open_source
from runtime.errors import ConfigError, SourceError

FORMS = "v4l2:/dev/video0?size=1280x720&fps=30&fourcc=MJPG, csi:0?size=1280x720&fps=30&flip=2, gst:640x480:PIPELINE"


class Pairs:
    """A source from a function that opens a camera and returns an iterator of (seconds, array).

    **Usage**

        def readings():
            with my_driver() as camera:
                for reading in camera:
                    yield reading.stamp, reading.pixels

        session.watch(Pairs(readings, name="my driver"))
    """

    def __init__(
        self,
        opener: Callable[[], Iterable[tuple[float, np.ndarray]]],
        *,
        name: str = "frames",
        live: bool = True,
        fps: float = DEFAULT_FPS,
    ) -> None:
        """A `live` source is opened again when its iterator ends or raises; others end with it."""
        self.name, self.live, self.fps = name, live, fps
        self._opener = opener

    def frames(self) -> Iterator[Frame]:
        """Yield the pairs as frames, numbered from 0; raises `SourceError` for what is no picture."""
        for number, (time_s, raw) in enumerate(self._opener()):
            image = as_bgr(raw)
            if image is None:
                found = f"{getattr(raw, 'dtype', type(raw).__name__)} {np.shape(raw)}"
                raise SourceError(f"{self.name} gave {found}", wanted="[height, width, 3] uint8, BGR")
            yield Frame(float(time_s), number, image)


def stamped(source: Source) -> Iterator[tuple[float, np.ndarray]]:
    """Yield (seconds, [H, W, 3] uint8 BGR) of a source, for a loop of your own; raises `SourceError` as it does."""
    for frame in source.frames():
        yield frame.time_s, frame.image


def v4l2(
    device: int | str = 0,
    *,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    fourcc: str | None = None,
) -> Source:
    """Return a camera of Video4Linux (USB cameras, capture cards).

    Args:
        device: its number, or a path ("/dev/video2", "/dev/v4l/by-id/…", which stays the same when cables move).
        size: width and height to ask for; the camera gives the nearest it has.
        fps: frames a second to ask for.
        fourcc: pixel format to ask for: "MJPG" lets most USB cameras give large pictures at full pace.
    """
    if fourcc is not None and len(fourcc) != 4:
        raise ConfigError(f"pixel format {fourcc!r}", wanted='four letters, such as "MJPG" or "YUYV"')
    asked = [(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*fourcc))] if fourcc else []
    asked += [(cv2.CAP_PROP_FRAME_WIDTH, size[0]), (cv2.CAP_PROP_FRAME_HEIGHT, size[1])] if size else []
    asked += [(cv2.CAP_PROP_FPS, round(fps))] if fps else []
    asked += [(cv2.CAP_PROP_BUFFERSIZE, 1)]  # what waits in the driver is old

    def open_device() -> cv2.VideoCapture:
        capture = cv2.VideoCapture(device, cv2.CAP_V4L2)
        for prop, value in asked:
            capture.set(prop, value)
        return capture

    return CaptureSource(f"camera {device}", open_device, live=True)


def rtsp(url: str, *, user: str = "", password: str = "") -> Source:
    """Return a network camera. `user` and `password` are put into the address, any character allowed in them.

    It is read over TCP, and counts as lost after 8 s of silence. Its `name` holds no password.
    """
    if not re.match(r"rtsps?://", url):
        raise ConfigError("an address that is not of a network camera", wanted="rtsp://HOST/PATH")
    if user or password:
        scheme, _, rest = url.partition("://")
        url = f"{scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{rest.rpartition('@')[2]}"
    return open_source(url)


def csi(sensor: int = 0, *, size: tuple[int, int] = (1280, 720), fps: int = 30, flip: int = 0) -> Source:
    """Return a CSI camera of a Jetson; the arguments are those of `apps.robot.csi_pipeline`."""
    pipeline = csi_pipeline(sensor, size, fps, flip)
    return GStreamerSource(pipeline, size, fps=fps, name=f"CSI camera {sensor}")


def gstreamer(pipeline: str, size: tuple[int, int], *, fps: float = 30.0) -> Source:
    """Return the video of a GStreamer pipeline without a sink, scaled to `size` (width, height)."""
    return GStreamerSource(pipeline, size, fps=fps)


def video(path: str | Path, *, loop: bool = False) -> Source:
    """Return the frames of a video file, with their times in it; raises `SourceError` where there is none."""
    if not Path(path).is_file():
        raise SourceError(f"there is no {path}", wanted="a video file")
    return open_source(str(path), loop=loop)


def folder(path: str | Path, *, fps: float = 1.0, loop: bool = False) -> Source:
    """Return the pictures of a folder in the order of their names; raises `SourceError` where there are none."""
    if not Path(path).is_dir():
        raise SourceError(f"there is no folder {path}", wanted="a folder of pictures")
    return FolderSource(Path(path), fps=fps, loop=loop)


def arrays(images: Iterable[np.ndarray], *, fps: float = DEFAULT_FPS) -> Source:
    """Return NumPy arrays as a source: [H, W, 3] uint8 BGR, or grey, BGRA, 16 bits."""
    return ArraySource(images, fps=fps)


def from_text(text: str) -> Source:
    """Turn what a person types into a source: the forms of `FORMS`, and whatever `apps.sources.open_source` takes."""
    kind, _, rest = text.partition(":")
    if kind == "gst":
        scale, _, pipeline = rest.partition(":")
        return gstreamer(pipeline, _size(scale, text))
    if kind not in ("v4l2", "csi"):
        return open_source(text)
    parts = urlsplit(f"//x/{rest}")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    known = {"size", "fps", "fourcc"} if kind == "v4l2" else {"size", "fps", "flip"}
    if set(options) - known:
        raise ConfigError(f"{text!r} has {', '.join(sorted(set(options) - known))}", wanted=FORMS)
    place = unquote(parts.path)[1:]
    size = _size(options["size"], text) if "size" in options else None
    whole = {name: _whole(options[name], text) for name in ("fps", "flip") if name in options}
    if kind == "csi":
        return csi(
            _whole(place or "0", text), size=size or (1280, 720), fps=whole.get("fps", 30), flip=whole.get("flip", 0)
        )
    device = int(place) if place.isdigit() else place or 0
    return v4l2(device, size=size, fps=whole.get("fps"), fourcc=options.get("fourcc"))


def _size(text: str, whole: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not found:
        raise ConfigError(f"{whole!r} has size {text!r}", wanted=FORMS)
    return int(found[1]), int(found[2])


def _whole(text: str, whole: str) -> int:
    if not re.fullmatch(r"\d{1,5}", text):
        raise ConfigError(f"{whole!r} has {text!r}", wanted=FORMS)
    return int(text)
