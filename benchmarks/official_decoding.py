"""The official way of decoding, the whole sequence again for every token, against one streaming step, in turns.

    python -m benchmarks.official_decoding build/demo-int8-cpu
    python -m benchmarks.official_decoding --contexts 64,256,1024,2048     # a random-weight 0.1B model

Both run in our runtime, on the same weights: the difference is the method alone. VisualRWKV's own code generates this
way: with one picture of 1,024 tokens, a token costs at least that of the row for 1024. Prints JSON as its last line.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import machine
from benchmarks.peers import models
from benchmarks.peers.process import Peer, run
from benchmarks.peers.rounds import ratio, take_turns


def measure(bundle: Path, contexts: Sequence[int], threads: int, rounds: int, device: str) -> list[dict[str, float]]:
    """Return a row for each context: seconds of the next token, both ways."""
    with Peer("ours", "benchmarks.peers.ours", bundle, device, threads=threads) as peer:
        calls: dict[str, Any] = {"step": lambda: peer("decode", tokens=8) / 8}
        for context in contexts:
            calls[f"{context}"] = lambda context=context: peer("rerun", tokens=context + 1)
        turns = take_turns(calls, rounds)
    step = statistics.median(turns["step"])
    return [
        {
            "context": context,
            "rerun_ms": 1e3 * statistics.median(turns[f"{context}"]),
            "step_ms": 1e3 * step,
            "times": ratio(turns[f"{context}"], turns["step"]),
        }
        for context in contexts
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?", help="default: a random-weight RWKV-7 0.1B in int8")
    parser.add_argument("--contexts", type=lambda text: tuple(map(int, text.split(","))), default=(64, 256, 1024, 2048))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, default=models.WORK)
    parser.add_argument("--json", type=Path, help="write the result here, too")
    args = parser.parse_args(argv)
    bundle = args.bundle or models.bundle("0.1B", "int8", args.work)
    rows = measure(bundle, args.contexts, args.threads, args.rounds, args.device)
    print(f"{'context':>8}{'again, ms/token':>18}{'streaming, ms/token':>21}{'times':>8}")
    for row in rows:
        print(f"{row['context']:>8.0f}{row['rerun_ms']:>18.1f}{row['step_ms']:>21.2f}{row['times']:>8.1f}")
    result = {"machine": machine(), "bundle": bundle.name, "threads": args.threads, "rounds": args.rounds, "rows": rows}
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    run(main)
