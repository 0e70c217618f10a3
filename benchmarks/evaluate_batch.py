"""Questions per second of an evaluation, several at a time against one after the other.

    python -m benchmarks.evaluate_batch build/demo-int8-cpu --threads 1

Asks the questions of the demo task about some scenes it never saw; the scenes are drawn before the clock starts, as a
data set would lie on the disk. Every round asks all of them with every batch, one
after the other, so that a noisy neighbour meets them all; the table shows medians over rounds, of wall and of
processor time. Every answer must be the same, whatever the batch. Prints JSON as its last line, and writes it into
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from apps.evaluate.answers import Answer, Answers
from apps.evaluate.run import ask_all
from apps.evaluate.sample import Sample, open_picture
from apps.evaluate.source import Data, Notes
from apps.evaluate.tasks import TASKS
from benchmarks.measure import machine
from runtime import GenerateOptions, VisualRWKV

RESULTS = Path(__file__).parent / "results" / "evaluate_batch.json"
BATCHES = (1, 2, 8, 16)


def once(model: VisualRWKV, samples: list[Sample], batch: int, folder: Path) -> tuple[float, float, dict[str, Answer]]:
    """Ask all; return questions per second of wall and of processor time, and the answers."""
    options = GenerateOptions(max_tokens=TASKS["demo"].max_tokens)
    with Answers(folder / "answers.jsonl", {}, fresh=True) as answers:
        wall, cpu = time.perf_counter(), time.process_time()
        ask_all(model, samples, answers, len(samples), before=0, batch=batch, options=options)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return len(samples) / wall, len(samples) / cpu, answers.found


@dataclass(frozen=True, eq=False)
class Held:
    """A picture in memory, RGB."""

    pixels: np.ndarray

    def __call__(self) -> np.ndarray:
        return self.pixels


def drawn(samples: list[Sample]) -> list[Sample]:
    """Return the samples with their pictures in memory, each once."""
    held: dict[str, Held] = {}
    for sample in samples:
        if sample.group not in held:
            held[sample.group] = Held(np.ascontiguousarray(open_picture(sample.pictures[0])[:, :, ::-1]))
    return [replace(sample, pictures=(held[sample.group],)) for sample in samples]


def measure(bundle: Path, threads: int | None, rounds: int, scenes: int) -> dict[str, Any]:
    """Measure all batches, in turns. A fresh model for each, so that none finds pictures in a cache."""
    rows = TASKS["demo"].source.read(Data(Path(), limit=scenes), True, Notes())
    samples = drawn([row for row in rows if isinstance(row, Sample)])
    rates: dict[int, list[tuple[float, float]]] = {batch: [] for batch in BATCHES}
    said: dict[str, Answer] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for batch in BATCHES:
                with VisualRWKV.load(bundle, threads=threads, verify=False, undo_bytes=0) as model:
                    once(model, samples[-4:], batch, Path(folder))  # warm, on a scene that comes last
                    wall, cpu, answers = once(model, samples, batch, Path(folder))
                rates[batch].append((wall, cpu))
                said = said or answers
                assert answers == said, f"batch {batch} gives other answers"
    table = []
    for batch, found in rates.items():
        ratios = [[now[i] / alone[i] for now, alone in zip(found, rates[1], strict=True)] for i in (0, 1)]
        wall, cpu = (statistics.median(column) for column in zip(*found, strict=True))
        speedup, cpu_speedup = (statistics.median(column) for column in ratios)
        row = {"batch": batch, "questions_per_s": wall, "questions_per_cpu_s": cpu}
        table.append({**row, "speedup": speedup, "cpu_speedup": cpu_speedup})
    return {"rows": table, "questions": len(samples)}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scenes", type=int, default=30)
    parser.add_argument("--json", type=Path, default=RESULTS)
    args = parser.parse_args()
    found = measure(args.bundle, args.threads, args.rounds, args.scenes)
    print(f"{'batch':>6} {'questions/s':>12} {'speed-up':>9} {'questions/CPU s':>16} {'speed-up':>9}")
    for row in found["rows"]:
        print(
            f"{row['batch']:>6} {row['questions_per_s']:>12.1f} {row['speedup']:>9.2f}"
            f" {row['questions_per_cpu_s']:>16.1f} {row['cpu_speedup']:>9.2f}"
        )
    result = {"machine": machine(), "bundle": args.bundle.name, "threads": args.threads, "rounds": args.rounds, **found}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
