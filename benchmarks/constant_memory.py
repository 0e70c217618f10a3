"""10,000 decode steps: does time per token or memory grow?

    python -m benchmarks.constant_memory build/demo-int8-cpu --plot benchmarks/results/constant_memory.png

Prints a table and, as its last line, JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

from benchmarks.measure import machine, memory_mb
from runtime import VisualRWKV

EVERY = 100


def run(bundle: Path, steps: int, threads: int | None) -> list[dict[str, float]]:
    """Decode `steps` tokens greedily; return the median ms per token and the anonymous memory of every 100 steps."""
    rows = []
    with VisualRWKV.load(bundle, threads=threads) as model:
        engine, state = model.engine, model.engine.new_state()
        token, times = 1, []
        for step in range(1, steps + 1):
            start = time.perf_counter()
            logits = engine.advance([token], state)
            times.append(time.perf_counter() - start)
            # Greedy decoding of one model settles into a loop: walk through the vocabulary instead.
            token = 1 + (int(logits.argmax()) + step) % (model.manifest.vocab_size - 2)
            if step % EVERY == 0:
                rows.append({"step": step, "ms": 1e3 * statistics.median(times), "anon_mb": memory_mb()["anon"]})
                times = []
        if not all(np.isfinite(state.array(slot.name)).all() for slot in model.manifest.slots):
            raise SystemExit("the state is not finite")
    return rows


def plot(rows: list[dict[str, float]], path: Path) -> None:
    """Draw both curves over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    steps = [row["step"] for row in rows]
    for axis, key, label in zip(figure.subplots(1, 2), ("ms", "anon_mb"), ("ms per token", "RssAnon, MB"), strict=True):
        axis.plot(steps, [row[key] for row in rows], linewidth=1)
        axis.set(xlabel="decode steps", title=label, ylim=(0, 1.3 * max(row[key] for row in rows)))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    rows = run(args.bundle, args.steps, args.threads)
    print(f"{'step':>8} {'ms/token':>9} {'RssAnon MB':>11}")
    for row in rows[:: max(1, len(rows) // 10)] + rows[-1:]:
        print(f"{row['step']:>8.0f} {row['ms']:>9.3f} {row['anon_mb']:>11.2f}")
    if args.plot:
        plot(rows, args.plot)
    print(json.dumps({"machine": machine(), "first": rows[0], "last": rows[-1]}))


if __name__ == "__main__":
    main()
