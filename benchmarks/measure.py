"""What every benchmark needs: the machine, its memory bandwidth, the memory of a process."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from apps.bench.machine import machine, read_bandwidth

__all__ = ["machine", "median_seconds", "memory_mb", "read_bandwidth", "show_progress"]


def memory_mb(pid: int | str = "self") -> dict[str, float]:
    """Return resident megabytes of a process: "rss" in all, "anon" what is not mapped from files."""
    fields = dict(line.split(":", 1) for line in _lines(f"/proc/{pid}/status") if ":" in line)
    kilobytes = {name: float(fields[key].split()[0]) for name, key in (("rss", "VmRSS"), ("anon", "RssAnon"))}
    return {name: value * 1024 / 1e6 for name, value in kilobytes.items()}


def show_progress(text: str) -> None:
    """Write over the last line of the terminal; nothing where the output goes elsewhere."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def median_seconds(run: Callable[[], object], seconds: float = 2.0, least: int = 3) -> float:
    """Return the median time of one call, over calls for `seconds` and at least `least`, after one to warm up."""
    run()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < least:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
