"""The native step against onnxruntime on the same bundles: decode, shared steps and prefill, in turns.

    python -m benchmarks.native_step                          # 0.1B, 0.4B and 1.5B, int8 and int4
    python -m benchmarks.native_step --sizes 0.1B --threads 2 --rounds 9
    python -m benchmarks.native_step --sizes v6-0.4B --json benchmarks/results/native_step_v6.json   # RWKV-6
    python -m benchmarks.native_step --bundle build/demo-int8-cpu

Random weights of the released sizes (v6-0.4B, an RWKV-6 of 24 x 1024, is none); they are written and exported once,
into --work. Every round measures all of it, one after the other, so that a noisy neighbour meets both; the table shows
medians over rounds, wall clock. Bandwidth is that of plain reading with as many threads, measured in the same rounds;
its share counts the bytes that were really read: FFN rows of units that are exactly zero are not. Random weights make
half of them zero, trained ones more. Prints JSON as its last line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import machine, memory_mb, read_bandwidth
from runtime.backends.native import NativeBackend
from runtime.backends.ort import OrtBackend
from runtime.bundle import Bundle
from runtime.engine import Engine

RESULTS = Path(__file__).parent / "results" / "native_step.json"
SIZES, PRECISIONS = ("0.1B", "0.4B", "1.5B"), ("int8", "int4")
RWKV6_SIZES = ("v6-0.4B", "v6-1.6B")
PREFILL, BATCH = 256, 8


def random_bundle(size: str, precision: str, work: Path) -> Path:
    """Return a text model with random weights, exported unless it is there."""
    from benchmarks.random_checkpoint import write
    from export.build import export_bundle

    bundle, checkpoint = work / f"text-{size}-{precision}", work / f"text-{size}.pth"
    if not bundle.exists():
        work.mkdir(parents=True, exist_ok=True)
        if not checkpoint.exists():
            write(checkpoint, size, text_only=True)
        export_bundle(checkpoint, bundle, precision=precision, drift=0)
    return bundle


def seconds(run: Callable[[], object], least: float = 0.4) -> float:
    """Return the mean time of a call, over calls for a while."""
    run()
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < least or count < 2:
        run()
        count += 1
    return spent / count


def rates(engine: Engine) -> dict[str, float]:
    """Return tokens per second: one session, eight that share steps, a prompt."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, engine.manifest.vocab_size - 1, PREFILL)
    one, many, prompt = engine.new_state(), engine.new_state(BATCH), engine.new_state()
    rows = engine.embed(ids[:BATCH])
    return {
        "decode": 1 / seconds(lambda: engine.step(rows[:1], one)),
        "batch": BATCH / seconds(lambda: engine.step(rows, many)),
        "prefill": PREFILL / seconds(lambda: engine.advance(ids, prompt), 0.0),
    }


def measure(path: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Measure one bundle."""
    bundle = Bundle.open(path, verify=False)
    before, native = memory_mb(), NativeBackend(threads, required=True)
    mine = Engine(bundle, native)
    mine.advance([5], mine.new_state())
    after = memory_mb()
    assert native.step is not None
    engines = {"native": mine, "onnxruntime": Engine(bundle, OrtBackend(threads))}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    bandwidth = []
    for _ in range(rounds):
        bandwidth.append(read_bandwidth(threads, 0.3))
        for name, engine in engines.items():
            found[name].append(rates(engine))
    mine.step(mine.embed([5]), mine.new_state())
    table = {name: {key: statistics.median(r[key] for r in rows) for key in rows[0]} for name, rows in found.items()}
    ratio = {
        key: statistics.median(a[key] / b[key] for a, b in zip(found["native"], found["onnxruntime"], strict=True))
        for key in table["native"]
    }
    rate, limit = native.step.bytes_read / 1e9, statistics.median(bandwidth)
    shares = [a["decode"] * rate / limit for a, limit in zip(found["native"], bandwidth, strict=True)]
    result = {
        "bundle": path.name,
        "isa": native.step.isa,
        **table,
        "ratio": ratio,
        "batch_over_one": statistics.median(a["batch"] / a["decode"] for a in found["native"]),
        "read_mb_per_token": rate * 1e3,
        "weights_mb": native.step.weight_bytes / 1e6,
        "bandwidth_gb_s": limit,
        "share_of_bandwidth": statistics.median(shares),
        "rss_over_weights": (after["rss"] - before["rss"]) / (native.step.weight_bytes / 1e6),
    }
    for engine in engines.values():
        engine.close()
    return result


def show(result: dict[str, Any]) -> None:
    """Print one bundle's figures."""
    print(f"{result['bundle']}: {result['weights_mb']:.0f} MB of weights, {result['isa']}")
    for key in ("decode", "batch", "prefill"):
        mine, other = result["native"][key], result["onnxruntime"][key]
        print(f"  {key:>8} {mine:9.1f} tokens/s, onnxruntime {other:9.1f}, ratio {result['ratio'][key]:5.2f}")
    print(
        f"  {result['read_mb_per_token']:.0f} MB read per token, {100 * result['share_of_bandwidth']:.0f} % of "
        f"{result['bandwidth_gb_s']:.1f} GB/s; {BATCH} sessions give {result['batch_over_one']:.2f} times one; "
        f"RSS grew by {result['rss_over_weights']:.2f} times the weights"
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, action="append", help="measure this one instead; repeatable")
    parser.add_argument("--sizes", nargs="+", choices=(*SIZES, *RWKV6_SIZES), default=SIZES)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--work", type=Path, default=Path("build/native"), help="where random models go")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=RESULTS)
    args = parser.parse_args()
    bundles = args.bundle or [random_bundle(size, p, args.work) for size in args.sizes for p in args.precisions]
    rows = []
    for path in bundles:
        rows.append(measure(path, args.threads, args.rounds))
        show(rows[-1])
    result = {"machine": machine(), "threads": args.threads, "rounds": args.rounds, "rows": rows}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
