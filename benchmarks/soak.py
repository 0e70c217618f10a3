"""Watch the looped sample video for an hour and ask a question every ten seconds: does anything grow or slow down?

    python -m benchmarks.soak build/demo-int8-cpu --plot benchmarks/results/soak.png

Prints what was measured against its limits; the exit code is 1 if one is broken, and the last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from apps.sources import open_source
from benchmarks.measure import machine, memory_mb, show_progress
from runtime import GenerateOptions, VisualRWKV
from runtime.watch import Watch

VIDEO = Path("apps/demo/sample.mp4")
QUESTIONS = ("How many circles are there?", "What colour was the square in the first picture?", "图里有什么？")
OPTIONS = GenerateOptions(max_tokens=16)
MEMORY, MEDIANS = 0.005, 0.05  # how far the last tenth may lie above the first, as a share
GOLDEN = 0.618034
FIELDS = ("seconds", "anon_mb", "ttft_ms", "tokens")


class Record:
    """Measurements in arrays that are there from the beginning, so that measuring takes no memory."""

    def __init__(self, rows: int, fields: int) -> None:
        """Make room for `rows`."""
        self._array = np.full((rows, fields), np.nan)
        self._count = 0

    def add(self, *values: float) -> None:
        """Add a row; beyond the room, nothing."""
        if self._count < len(self._array):
            self._array[self._count] = values
            self._count += 1

    @property
    def rows(self) -> np.ndarray:
        """What was added, [rows, fields]."""
        return self._array[: self._count]


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Watch and ask; return the measurements and the counters."""
    seconds = 60 * args.minutes
    frames = Record(int(2 * seconds * args.fps) + 100, 2)
    asked = Record(int(2 * seconds / args.every) + 100, len(FIELDS))
    with VisualRWKV.load(args.bundle, threads=args.threads) as model:
        observe, began = model.metrics.observe, time.monotonic()

        def observed(name: str, value: float) -> None:
            observe(name, value)
            if name == "vrwkv_frame_seconds":
                frames.add(time.monotonic() - began, 1e3 * value)

        model.metrics.observe = observed  # type: ignore[method-assign, assignment]
        session, source = model.session(), open_source(str(args.video), loop=True)
        with session.watch(source, fps=args.fps, policy="latest", window=args.window) as watch:
            _ask_on(watch, asked, began, args)
            stats, error = vars(watch.stats), watch.error
            held = {"session": session.nbytes, "watch": watch.nbytes}
        if error is not None:
            raise SystemExit(f"the watch ended: {error}")
        sound = all(bool(np.isfinite(a).all()) for a in session.snapshot().state.arrays.values())
    return {"frames": frames.rows, "asked": asked.rows, "stats": stats, "bytes": held, "finite": sound}


def _ask_on(watch: Watch, asked: Record, began: float, args: argparse.Namespace) -> None:
    for number, question in enumerate(itertools.cycle(QUESTIONS), 1):
        # Questions come at all moments between two frames, evenly: how long they wait for the border is part of it.
        due = began + number * args.every + (number * GOLDEN % 1) / args.fps
        if due > began + 60 * args.minutes:
            return
        time.sleep(max(0.0, due - time.monotonic()))
        if watch.ended:
            return
        last = None
        for chunk in watch.ask(question, options=OPTIONS):
            last = chunk
        assert last is not None and last.stats is not None
        now, anon, ttft = time.monotonic() - began, memory_mb()["anon"], 1e3 * last.stats.ttft_s
        asked.add(now, anon, ttft, watch.tokens)
        show_progress(f"{now / 60:.1f} of {args.minutes:g} minutes, {anon:.1f} MB, {ttft:.0f} ms to the first token")


def judge(found: dict[str, Any], warmup: float) -> list[tuple[str, float, float, float, bool]]:
    """Compare the last tenth with the first after `warmup` seconds: name, both, the largest share, whether it holds."""
    rows = []
    for name, table, column, limit in (
        ("RssAnon, MB", found["asked"], 1, MEMORY),
        ("frame, ms (median)", found["frames"], 1, MEDIANS),
        ("TTFT, ms (median)", found["asked"], 2, MEDIANS),
    ):
        values = table[table[:, 0] >= warmup][:, column]
        tenth = max(1, len(values) // 10)
        first, last = float(np.median(values[:tenth])), float(np.median(values[-tenth:]))
        rows.append((name, first, last, limit, last <= first * (1 + limit)))
    return rows


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw memory, time per frame and time to first token over the hour."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.8), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, table, column, title in zip(
        axes,
        (found["asked"], found["frames"], found["asked"]),
        (1, 1, 2),
        ("RssAnon, MB", "ms per frame", "ms to the first token"),
        strict=True,
    ):
        axis.plot(table[:, 0] / 60, table[:, column], ".", markersize=2)
        axis.set(xlabel="minutes", title=title, ylim=(0, 1.3 * float(np.percentile(table[:, column], 99))))
        axis.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("bundle", type=Path)
    p.add_argument("--video", type=Path, default=VIDEO)
    p.add_argument("--minutes", type=float, default=60.0)
    p.add_argument("--warmup", type=float, default=300.0, metavar="S", help="left out: until bounded caches are full")
    p.add_argument("--fps", type=float, default=5.0)
    p.add_argument("--every", type=float, default=10.0, metavar="S", help="seconds from question to question")
    p.add_argument("--window", type=int, metavar="N", help="watch with a window of N frames instead of one state")
    p.add_argument("--threads", type=int)
    p.add_argument("--plot", type=Path)
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    args = parser().parse_args(argv)
    found = run(args)
    show_progress("")
    rows = judge(found, args.warmup)
    print(f"{'':<22}{'first tenth':>12}{'last tenth':>12}{'limit':>9}")
    for name, first, last, limit, holds in rows:
        print(f"{name:<22}{first:>12.3f}{last:>12.3f}{limit:>+9.1%}  {'pass' if holds else 'FAIL'}")
    stats = found["stats"]
    ended = sum(stats[name] for name in ("fed", "dropped", "unchanged", "failed"))
    nothing_lost = not stats["failed"] and 0 <= stats["read"] - ended <= 2  # one may wait, one be in hand
    print(f"{'state finite':<55}  {'pass' if found['finite'] else 'FAIL'}")
    print(f"{'every frame accounted for':<55}  {'pass' if nothing_lost else 'FAIL'}")
    print(", ".join(f"{count} {name}" for name, count in stats.items() if count))
    if args.plot:
        plot(found, args.plot)
    held = all(row[-1] for row in rows) and found["finite"] and nothing_lost
    kept = {"questions": len(found["asked"]), "stats": stats, "bytes": found["bytes"], "held": held}
    kept |= {"finite": found["finite"], "accounted": nothing_lost}
    figures = {name: [first, last] for name, first, last, *_ in rows}
    print(json.dumps({"machine": machine(), **kept, **figures}))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
