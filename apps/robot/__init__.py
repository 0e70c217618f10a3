"""Where a robot's frames come from: one protocol, an adapter for every kind of camera.

A source has a `name`, says whether it is `live`, and yields `Frame`s (seconds, number, [H, W, 3] uint8 BGR) each time
`frames()` is called: `apps.sources.Source`. Every source goes into `session.watch(source)` and into
`apps.latest.LatestFrame` as it is. What has no adapter here becomes a source with `Pairs` (an iterator that you pull
from) or `Mailbox` (a callback that pushes).
"""

from __future__ import annotations

from apps.robot.adapters import Pairs, arrays, csi, folder, from_text, gstreamer, rtsp, stamped, v4l2, video
from apps.robot.gst import GStreamerSource, csi_pipeline
from apps.robot.mailbox import Mailbox
from apps.sources import Frame, Source

__all__ = [
    "Frame",
    "GStreamerSource",
    "Mailbox",
    "Pairs",
    "Source",
    "arrays",
    "csi",
    "csi_pipeline",
    "folder",
    "from_text",
    "gstreamer",
    "rtsp",
    "stamped",
    "v4l2",
    "video",
]
