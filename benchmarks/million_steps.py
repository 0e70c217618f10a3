"""One million decode steps of one state: does memory or the time of a step grow, does a value stop being finite?

    python -m benchmarks.million_steps build/demo-int8-cpu --plot benchmarks/results/million_steps.png

Exits with 1 if a limit is broken; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.constant_memory import plot
from benchmarks.measure import machine, memory_mb, show_progress
from runtime import VisualRWKV
from runtime.guard import Watchdog
from runtime.state import State

ROWS = 1000  # measurements in a run
FIELDS = ("step", "ms", "anon_mb", "largest")
MEMORY, MEDIANS = 0.005, 0.05  # how far the last tenth may lie above the first, as a share


def run(bundle: Path, steps: int, threads: int | None, seed: int = 0) -> list[dict[str, float]]:
    """Feed `steps` random tokens, one at a time; return a row for every thousandth of them.

    What is measured goes into arrays that are there from the beginning, so that measuring takes no memory.

    Raises `SystemExit` if the state or the logits stop being finite, or a value passes the watchdog's limit.
    """
    watchdog, rng, every = Watchdog(), np.random.default_rng(seed), max(1, steps // ROWS)
    table, times = np.full((steps // every, len(FIELDS)), np.nan), np.zeros(every)
    with VisualRWKV.load(bundle, threads=threads) as model:
        engine, state = model.engine, model.engine.new_state()
        for number in range(len(table)):
            for i, token in enumerate(rng.integers(1, model.manifest.vocab_size - 1, every).tolist()):
                start = time.perf_counter()
                logits = engine.advance([token], state)
                times[i] = time.perf_counter() - start
            fault = watchdog.fault(state)
            step = (number + 1) * every
            if fault or not np.isfinite(logits).all():
                raise SystemExit(f"after {step} steps: {fault or 'logits that are not finite'}")
            show_progress(f"{step:,} of {steps:,} steps")
            table[number] = step, 1e3 * float(np.median(times)), memory_mb()["anon"], _largest(state)
    return [dict(zip(FIELDS, row, strict=True)) for row in table.tolist()]


def _largest(state: State) -> float:
    """The largest absolute value of a state."""
    return max(float(np.abs(buffer.read()).max()) for buffer in state.inputs.values())


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args(argv)
    rows = run(args.bundle, args.steps, args.threads)
    show_progress("")
    tenth, held, figures = max(1, len(rows) // 10), True, {}
    print(f"{'':<20}{'first tenth':>12}{'last tenth':>12}{'limit':>9}")
    for key, name, limit in (("ms", "ms per token", MEDIANS), ("anon_mb", "RssAnon, MB", MEMORY), ("largest", "", 0.0)):
        values = [row[key] for row in rows]
        first, last = statistics.median(values[:tenth]), statistics.median(values[-tenth:])
        figures[key] = [first, last]
        if name:
            held &= last <= first * (1 + limit)
            verdict = "pass" if last <= first * (1 + limit) else "FAIL"
            print(f"{name:<20}{first:>12.3f}{last:>12.3f}{limit:>+9.1%}  {verdict}")
    largest = max(row["largest"] for row in rows)
    print(f"finite in all {rows[-1]['step']:.0f} steps, the largest value of the state is {largest:.1f}")
    if args.plot:
        plot(rows, args.plot)
    print(json.dumps({"machine": machine(), "steps": rows[-1]["step"], "held": held, **figures}))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
