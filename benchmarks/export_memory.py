"""Seconds and peak memory of an int8 export, run in a process of its own.

    python -m benchmarks.export_memory text-1.5B.pth build/text-1.5B-int8

Prints JSON as its last line. `anon` counts what is not mapped from files: the memory an export really needs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import machine, memory_mb


def export(checkpoint: Path, bundle: Path) -> dict[str, float]:
    """Export in a child process; return its seconds and peak memory in MB."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "export", str(checkpoint), "--int8", "--overwrite", "--out", str(bundle)]
    peak = {"rss": 0.0, "anon": 0.0}
    with subprocess.Popen(command) as child:
        while child.poll() is None:
            try:
                now = memory_mb(child.pid)
            except (OSError, KeyError):
                break
            peak = {key: max(peak[key], now[key]) for key in peak}
            time.sleep(0.02)
    if child.returncode:
        raise SystemExit(f"the export failed with {child.returncode}")
    return {"seconds": time.perf_counter() - start, "peak_rss_mb": peak["rss"], "peak_anon_mb": peak["anon"]}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path)
    args = parser.parse_args()
    print(json.dumps({"machine": machine(), **export(args.checkpoint, args.bundle)}))


if __name__ == "__main__":
    main()
