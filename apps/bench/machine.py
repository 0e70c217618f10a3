"""What a figure needs beside it: the machine, its memory bandwidth, the memory of a process, medians with spread."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

BANDWIDTH_BYTES = 512 << 20  # read in one pass, all threads together: larger than any cache
BLOCK_BYTES = 256 << 20  # and at most this much by one thread


def machine() -> dict[str, str]:
    """Return processor, cores, Python and package versions."""
    import onnxruntime

    return {
        "cpu": _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def read_bandwidth(threads: int, seconds: float = 0.5) -> float:
    """Return the streaming read bandwidth in GB/s: the median of repeated passes over memory no cache can hold."""
    size = min(BLOCK_BYTES, BANDWIDTH_BYTES // threads)
    blocks = [np.ones(size // 4, np.int32) for _ in range(threads)]
    rates: list[float] = []
    end = time.perf_counter() + seconds
    with ThreadPoolExecutor(threads) as pool:
        while time.perf_counter() < end or len(rates) < 3:
            start = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, blocks))
            rates.append(threads * size / (time.perf_counter() - start) / 1e9)
    return statistics.median(rates)


def memory_mb(pid: int | str = "self") -> dict[str, float] | None:
    """Return resident MB of a process, "rss" in all and "anon" what no file backs; None where /proc does not tell."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        named = {"rss": fields["VmRSS"], "anon": fields["RssAnon"]}
    except (OSError, KeyError):
        return None
    return {name: float(value.split()[0]) * 1024 / 1e6 for name, value in named.items()}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, and the quartiles around it ("low", "high")."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def _processor() -> str:
    """The name the system gives its processor; boards without one tell the board."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        named = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model"))]
        board = Path("/proc/device-tree/model")
        if not named and board.exists():
            named = [board.read_text(encoding="utf-8").strip("\0\n ")]
    except OSError:
        named = []
    return named[0] if named else platform.processor() or platform.machine()
