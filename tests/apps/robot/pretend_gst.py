"""Stands in for gst-launch-1.0: writes pictures as the pipeline's first word says, with its row padding."""

from __future__ import annotations

import re
import sys
import time

kind = sys.argv[2]
width, height = map(int, re.search(r"width=(\d+),height=(\d+)", " ".join(sys.argv[3:])).groups())  # type: ignore[union-attr]
row = -(-3 * width // 4) * 4
if kind == "broken":
    sys.exit('WARNING: erroneous pipeline: no element "broken"')
for number in range(3 if kind != "endless" else 10**9):
    picture = (bytes([number % 256]) * 3 * width).ljust(row, b"\xff") * height
    sys.stdout.buffer.write(picture if kind != "cut" else picture[: len(picture) // 2])
    sys.stdout.buffer.flush()
    if kind == "silent":
        time.sleep(60)
