"""Tokens per second of one session, and of several that answer at the same time and share steps.

    python -m benchmarks.batched build/text-0B1-int8 --threads 1

Without a bundle, exports a random-weight RWKV-7 0.1B text model in int8 first. Every round measures all numbers of
sessions, one after the other, so that a noisy neighbour meets them all; the table shows medians over rounds. Prints
JSON as its last line, and writes it into benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import machine, memory_mb, read_bandwidth
from runtime import GenerateOptions, VisualRWKV
from runtime.session import Session

RESULTS = Path(__file__).parent / "results" / "batched.json"
SESSIONS = (1, 2, 4, 8, 16)


def random_bundle(work: Path) -> Path:
    """Export a random-weight 0.1B text model, unless it is there."""
    from benchmarks.random_checkpoint import write
    from export.build import export_bundle

    work.mkdir(parents=True, exist_ok=True)
    checkpoint, bundle = work / "text-0.1B.pth", work / "text-0.1B-int8"
    if not checkpoint.exists():
        write(checkpoint, "0.1B", text_only=True)
    if not bundle.exists():
        export_bundle(checkpoint, bundle, precision="int8")
    return bundle


def tokens_per_second(sessions: list[Session], tokens: int) -> tuple[float, float]:
    """Let all sessions answer at the same time; return tokens decoded per second of wall and of processor time.

    Prompts are fed before the clock starts; it stops when the first answer is complete, so that all were decoding.
    """
    options = GenerateOptions(max_tokens=100_000, ignore_stop=True)
    start, stop = threading.Barrier(len(sessions) + 1), threading.Event()
    counts = [0] * len(sessions)

    def answer(index: int) -> None:
        chunks = iter(sessions[index].ask(f"Question {index}: what do you see?", options=options))
        next(chunks)
        start.wait(600)
        for chunk in chunks:
            counts[index] += len(chunk.token_ids)
            if counts[index] >= tokens or stop.is_set():
                stop.set()
                break
        chunks.close()  # type: ignore[attr-defined]

    threads = [threading.Thread(target=answer, args=(i,)) for i in range(len(sessions))]
    for thread in threads:
        thread.start()
    start.wait(600)
    wall, cpu = time.perf_counter(), time.process_time()
    stop.wait()
    wall, cpu, total = time.perf_counter() - wall, time.process_time() - cpu, sum(counts)
    for thread in threads:
        thread.join()
    return total / wall, total / cpu


def measure(bundle: Path, threads: int | None, rounds: int, tokens: int) -> dict[str, Any]:
    """Measure all numbers of sessions, in turns."""
    rates: dict[int, list[tuple[float, float]]] = {count: [] for count in SESSIONS}
    memory, bandwidth = {}, []
    with VisualRWKV.load(bundle, threads=threads, verify=False) as model:
        pool = [model.session() for _ in range(max(SESSIONS))]
        for _ in range(rounds):
            bandwidth.append(read_bandwidth(1, 0.3))
            for count in SESSIONS:
                sessions = pool[:count]
                for session in sessions:
                    session.reset()
                rates[count].append(tokens_per_second(sessions, tokens))
                memory[count] = memory_mb()["anon"]
        max_batch = model.scheduler.max_batch
    rows = []
    for count, found in rates.items():
        wall, cpu = (statistics.median(column) for column in zip(*found, strict=True))
        row = {"sessions": count, "tokens_per_s": wall, "tokens_per_cpu_s": cpu, "anon_mb": memory[count]}
        ratios = [[now[i] / alone[i] for now, alone in zip(found, rates[1], strict=True)] for i in (0, 1)]
        row["speedup"], row["cpu_speedup"] = (statistics.median(column) for column in ratios)
        rows.append(row)
    return {"rows": rows, "max_batch": max_batch, "bandwidth_gb_s": statistics.median(bandwidth)}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--work", type=Path, default=Path("build/batched"), help="where a random model goes")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=24, help="per session and round")
    parser.add_argument("--json", type=Path, default=RESULTS)
    args = parser.parse_args()
    found = measure(args.bundle or random_bundle(args.work), args.threads, args.rounds, args.tokens)
    print(f"{'sessions':>8} {'tokens/s':>9} {'speed-up':>9} {'tokens/CPU s':>13} {'speed-up':>9} {'RssAnon MB':>11}")
    for row in found["rows"]:
        print(
            f"{row['sessions']:>8} {row['tokens_per_s']:>9.1f} {row['speedup']:>9.2f} {row['tokens_per_cpu_s']:>13.1f}"
            f" {row['cpu_speedup']:>9.2f} {row['anon_mb']:>11.1f}"
        )
    result = {"machine": machine(), "threads": args.threads, "rounds": args.rounds, "tokens": args.tokens, **found}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
