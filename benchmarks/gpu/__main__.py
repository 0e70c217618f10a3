"""python -m benchmarks.gpu: build the kernels for this machine's GPU, check them, measure them, write a report.

Needs an NVIDIA GPU, nvcc and PyTorch; no network, no TensorRT. Checks come first: if one fails, nothing is measured.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import correctness, decoding, engines, speed
from benchmarks.gpu.device import Device, Emulation, Gpu
from benchmarks.gpu.kernels import ROOT, Kernels, decode_library

_EXAMPLES = """examples:
  python -m benchmarks.gpu --out results          all of it; minutes
  python -m benchmarks.gpu --check                correctness only
  python -m benchmarks.gpu --dry-run              the script's logic on a CPU, at tiny sizes; its times mean nothing
  python -m benchmarks.gpu --bundle build/demo-int8-cuda
                                                  the bundle's step on onnxruntime's CUDA provider, too
  python -m benchmarks.gpu --bundle build/demo-int8-rtx
                                                  the same, and whether TensorRT-RTX has an engine for this GPU
Engines and flash-linear-attention's kernels are measured where they are installed; the report says why one is not.
"""
_SANITIZED = "VRWKV_SANITIZED"  # set inside the run that compute-sanitizer watches


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 1 where a check failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write gpu.json and gpu.md; default: nowhere")
    parser.add_argument("--check", action="store_true", help="check only, measure nothing")
    parser.add_argument("--quick", action="store_true", help="few and small cases")
    parser.add_argument("--dry-run", action="store_true", help="emulate the GPU on the CPU, at tiny sizes")
    parser.add_argument("--seed", type=int, help="of the random inputs; default: another one every time")
    parser.add_argument("--library", type=Path, metavar="FILE", help="a plugin library that is built already")
    parser.add_argument("--captured-steps", type=int, default=2048, metavar="N", help="default: 2048")
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="for onnxruntime's CUDA provider and TensorRT-RTX")
    chosen = parser.parse_args(arguments)
    device: Device = Emulation() if chosen.dry_run else Gpu()
    seed = int.from_bytes(os.urandom(4), "little") if chosen.seed is None else chosen.seed
    report: dict[str, Any] = {"date": datetime.date.today().isoformat(), "seed": seed, **device.about()}
    with tempfile.TemporaryDirectory() as folder:
        say("building the kernels")
        kernels = Kernels(device, Path(folder), chosen.library)
        say(f"checking every kernel against float64 (seed {seed})")
        report["checks"] = correctness.check_all(device, kernels, seed, chosen.quick or chosen.dry_run)
        if _SANITIZED in os.environ:
            return int(not all(row["ok"] for row in report["checks"]))
        library = decode_library(device, Path(folder))
        say("checking the whole decode step")
        report["checks"] += decoding.check_steps(device, library)
        say(f"{chosen.captured_steps} captured steps against uncaptured ones")
        report["checks"].append(decoding.captured(device, library, chosen.captured_steps))
        report["engines"], report["skipped"] = try_engines(device, chosen, kernels.path)
        report["checks"] += report["engines"]
        say("looking for races")
        report["races"] = races(device, kernels.path)
        good = all(row["ok"] for row in report["checks"]) and report["races"] in ("none", "not looked for")
        if good and not chosen.check:
            say("measuring")
            bandwidth = speed.copy_bandwidth(device)
            report["copy_gb_per_second"] = bandwidth
            report["products"] = speed.products(device, kernels, bandwidth)
            report["steps"] = speed.steps(device, kernels, bandwidth)
            report["decode"] = decoding.measure(device, library, bandwidth)
            report["prefill"] = speed.prefill(device, kernels)
    text = markdown(report)
    print(text)
    if chosen.out:
        chosen.out.mkdir(parents=True, exist_ok=True)
        (chosen.out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        (chosen.out / "gpu.md").write_text(text + "\n", encoding="utf-8")
    return int(not good)


def try_engines(
    device: Device, chosen: argparse.Namespace, library: Path
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return what other engines did, and why the others were not tried. One that breaks costs nobody else a figure."""
    rows: list[dict[str, Any]] = []
    skipped = {}
    for name, run in (
        ("onnxruntime", lambda: engines.onnxruntime(device, chosen.bundle, chosen.captured_steps)),
        ("TensorRT-RTX", lambda: engines.rtx(device, chosen.bundle, library)),
    ):
        say(f"trying {name}")
        try:
            rows += run()
        except engines.Skipped as reason:
            skipped[name] = str(reason)
        except Exception as error:  # an engine or a driver that fails in a way of its own
            rows.append({"case": name, "error": f"{type(error).__name__}: {error}", "ok": False})
    if reason := engines.flash_linear_attention(device):
        skipped["flash-linear-attention"] = reason
    return rows, skipped


def races(device: Device, library: Path) -> str:
    """Return "none" or what compute-sanitizer found in a small run of all kernels; "not looked for" without it."""
    tool = shutil.which("compute-sanitizer")
    if device.dry or tool is None:
        return "not looked for"
    inside = {**os.environ, _SANITIZED: "1"}
    for kind in ("racecheck", "memcheck"):
        command = [tool, "--tool", kind, "--error-exitcode", "9", sys.executable, "-m", "benchmarks.gpu", "--quick"]
        command += ["--library", str(library)]
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=inside, capture_output=True, text=True, timeout=300, check=False
            )
        except subprocess.TimeoutExpired:
            return f"{kind} took more than 300 s"
        if done.returncode:
            return f"{kind} ended with {done.returncode}:\n" + (done.stdout + done.stderr)[-2000:]
    return "none"


def markdown(report: dict[str, Any]) -> str:
    """Return the report as text."""
    lines = [f"{report['date']}, {report['device']}"]
    lines += [f"{key} {report[key]}" for key in ("capability", "torch", "cuda", "driver") if key in report]
    bad = [row for row in report["checks"] if not row["ok"]]
    lines += [f"checks: {len(report['checks']) - len(bad)} of {len(report['checks'])} passed; races: {report['races']}"]
    lines += [f"FAILED {row}" for row in bad]
    lines += [f"skipped {name}: {reason}" for name, reason in report["skipped"].items()]
    if "copy_gb_per_second" not in report:
        return "\n".join(lines)
    lines += [
        f"copy: {report['copy_gb_per_second']:.0f} GB/s",
        "",
        "| kernel | µs | GB/s | of copy |",
        "|---|---|---|---|",
    ]
    for row in report["products"] + report["steps"]:
        lines.append(
            f"| {row['case']} | {row['microseconds']:.1f} | {row['gb_per_second']:.0f} | {row['of_copy']:.0%} |"
        )
    lines += ["", "| decode step | µs | tokens/s | of copy | PyTorch eager, captured µs |", "|---|---|---|---|---|"]
    for row in report["decode"]:
        other = row.get("pytorch_microseconds", {})
        beside = ", ".join(f"{value:.0f}" for value in other.values())
        figures = f"{row['microseconds']:.0f} | {row['tokens_per_second']:.0f} | {row['of_copy']:.0%}"
        lines.append(f"| {row['case']} | {figures} | {beside} |")
    lines += ["", "| engine | tokens/s | prefill of 256, tokens/s | error | limit |", "|---|---|---|---|---|"]
    for row in report["engines"]:
        if "tokens_per_second" in row:
            rates = f"{row['tokens_per_second']:.0f} | {row['prefill_tokens_per_second']:.0f}"
            lines.append(f"| {row['case']} | {rates} | {row['error']:.1e} | {row['limit']:.0e} |")
        elif "loaded" in row:
            lines.append(f"| {row['case']} | {'yes' if row['loaded'] else 'no'} | | | |")
    lines += ["", "| prefill, one layer | tokens/s |", "|---|---|"]
    for row in report["prefill"]:
        rates = ", ".join(f"{name} {rate:.3g}" for name, rate in row["tokens_per_second"].items())
        lines.append(f"| {row['case']} | {rates} |")
    return "\n".join(lines)


def say(line: str) -> None:
    """Print progress."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
