"""Seconds and peak memory of an export, run in a process of its own.

    python -m benchmarks.export_memory text-1.5B.pth build/text-1.5B-int8
    python -m benchmarks.export_memory text-7B.safetensors build/text-7B-int4 --precision int4 --decode

Prints JSON as its last line. `anon` counts what is not mapped from files: the memory an export really needs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import machine, median_seconds, memory_mb, read_bandwidth
from runtime import VisualRWKV


def export(checkpoint: Path, bundle: Path, precision: str = "int8") -> dict[str, float]:
    """Export in a child process; return its seconds and peak memory in MB."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "export", str(checkpoint), f"--{precision}", "--overwrite", "--out", str(bundle)]
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


def decode(bundle: Path, threads: int) -> dict[str, float]:
    """Decode in turns with reading memory; return tokens per second, the bandwidth, and the limit it sets."""
    with VisualRWKV.load(bundle, threads=threads) as model:
        state = model.engine.new_state()
        times, bandwidth = [], []
        for _ in range(5):
            bandwidth.append(read_bandwidth(threads, 0.5))
            times.append(median_seconds(lambda: model.engine.advance([7], state), seconds=3, least=3))
        rate, speed = 1 / statistics.median(times), statistics.median(bandwidth)
        limit = speed * 1e9 / model.manifest.budget.weights
        return {
            "decode_tokens_s": rate,
            "bandwidth_gb_s": speed,
            "weights_mb": model.manifest.budget.weights / 1e6,
            "limit_tokens_s": limit,
            "resident_mb": memory_mb()["rss"],
        }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8", "int4"), default="int8")
    parser.add_argument("--decode", action="store_true", help="also decode with the bundle, beside measured bandwidth")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    result: dict[str, object] = {"machine": machine(), "precision": args.precision}
    result.update(export(args.checkpoint, args.bundle, args.precision))
    result["bundle_mb"] = sum(path.stat().st_size for path in args.bundle.iterdir()) / 1e6
    if args.decode:
        result.update(decode(args.bundle, args.threads))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
