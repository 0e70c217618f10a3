"""What every benchmark needs: the machine, its memory bandwidth, the memory of a process."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np


def machine() -> dict[str, str]:
    """Return processor, cores, Python and package versions."""
    import onnxruntime

    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "?")
    return {
        "cpu": cpu,
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def read_bandwidth(threads: int, seconds: float = 1.0) -> float:
    """Return the streaming read bandwidth in GB/s: the median of repeated sums over 256 MB a thread."""
    blocks = [np.ones(64 << 20, np.int32) for _ in range(threads)]
    rates, end = [], time.perf_counter() + seconds
    with ThreadPoolExecutor(threads) as pool:
        while time.perf_counter() < end or len(rates) < 3:
            start = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, blocks))
            rates.append(sum(block.nbytes for block in blocks) / (time.perf_counter() - start) / 1e9)
    return statistics.median(rates)


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
