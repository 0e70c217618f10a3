"""Time per token and memory over the context: ours, and decoders whose cache grows, in turns at every length."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.charts import over_context as chart
from benchmarks.measure import machine, read_bandwidth
from benchmarks.peers import models
from benchmarks.peers.environments import environment
from benchmarks.peers.process import Peer
from benchmarks.peers.rounds import ratio, take_turns

FEED = 4096  # tokens fed to ours in one call


def over_context(
    ours: Sequence[Callable[[], Peer]],
    theirs: Sequence[Callable[[], Peer]],
    contexts: Sequence[int],
    *,
    threads: int,
    rounds: int,
    tokens: int,
    feed: bool = True,
) -> dict[str, Any]:
    """Measure all engines at every context.

    Args:
        ours: what starts our workers. They read all the tokens of the context, unless `feed` is off.
        theirs: what starts workers with the operation "context", which fills a cache.
        contexts: numbers of tokens, rising.
        threads: of each engine, and of the bandwidth.
        rounds: turns at every context.
        tokens: decoded in a turn.
        feed: off where a step's time at any context is known not to differ (`benchmarks.constant_memory`).

    Returns:
        {"engines": ready answers, "rows": one for each context and engine}. Memory is that of the whole process, and
        "above_start_mb" what it grew by since before the model was loaded.
    """
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        mine = [stack.enter_context(start()) for start in ours]
        others = [stack.enter_context(start()) for start in theirs]
        done = 0
        for context in contexts:
            cache = dict.fromkeys((peer.name for peer in mine), 0)
            for peer in mine:
                for begin in range(done, context if feed else done, FEED):
                    _tell(f"{peer.name} reads up to {min(begin + FEED, context)}")
                    peer("feed", tokens=min(FEED, context - begin))
            done = context
            read = {peer.name: peer.ready["read_per_token"] for peer in mine}
            for peer in others:
                _tell(f"{peer.name} gets a cache of {context}")
                filled = peer("context", length=context)
                cache[peer.name], read[peer.name] = filled["cache"], sum(filled.values())
            _tell("")
            calls: dict[str, Callable[[], float]] = {"bandwidth": lambda: read_bandwidth(threads, 0.3)}
            for peer in (*mine, *others):
                calls[peer.name] = lambda peer=peer: peer("decode", tokens=tokens) / tokens  # type: ignore[misc]
            turns = take_turns(calls, rounds)
            bandwidth = statistics.median(turns["bandwidth"])
            for peer in (*mine, *others):
                held = peer.memory_mb()
                rows.append(
                    {
                        "context": context,
                        "name": peer.name,
                        "ms_per_token": 1e3 * statistics.median(turns[peer.name]),
                        "memory_mb": held["rss"],
                        "anon_mb": held["anon"],
                        "above_start_mb": held["rss"] - peer.ready["before_mb"]["rss"],
                        "cache_mb": cache[peer.name] / 1e6,
                        "read_per_token_mb": read[peer.name] / 1e6,
                        "least_ms": 1e3 * read[peer.name] / (bandwidth * 1e9),
                        "bandwidth_gb_s": bandwidth,
                        "times_faster": {p.name: ratio(turns[p.name], turns[peer.name]) for p in others},
                    }
                )
        return {"engines": {peer.name: peer.ready for peer in (*mine, *others)}, "rows": rows}


def verdicts(rows: Sequence[dict[str, Any]], context: int) -> list[str]:
    """Return lines that compare ours with each rival at one context.

    The second ratio is against what the rival could reach if it read its weights and cache at the full bandwidth
    measured in the same run: no way of writing its code could make it faster than that.
    """
    here = {row["name"]: row for row in rows if row["context"] == context}
    lines = []
    for name, row in here.items():
        for rival, times in row["times_faster"].items():
            other = here[rival]
            if rival == name or not name.startswith("ours"):
                continue
            less = 100 * (1 - row["above_start_mb"] / other["above_start_mb"])
            lines.append(
                f"at {context}: {name} is {times:.2f}x as fast as {rival}"
                f" ({other['least_ms'] / row['ms_per_token']:.2f}x its limit), with {less:.0f} % less memory"
                f" ({100 * (1 - row['memory_mb'] / other['memory_mb']):.0f} % of whole processes)"
            )
    return lines


def show(found: dict[str, Any]) -> None:
    """Print the rows."""
    print(
        f"{'context':>8} {'engine':<24}{'ms/token':>10}{'tokens/s':>10}{'least ms':>10}{'RSS MB':>9}"
        f"{'model MB':>10}{'cache MB':>10}"
    )
    for row in found["rows"]:
        print(
            f"{row['context']:>8} {row['name']:<24}{row['ms_per_token']:>10.2f}{1e3 / row['ms_per_token']:>10.1f}"
            f"{row['least_ms']:>10.2f}{row['memory_mb']:>9.0f}{row['above_start_mb']:>10.0f}{row['cache_mb']:>10.0f}"
        )
    for line in verdicts(found["rows"], found["rows"][-1]["context"]):
        print(line)


def command(doc: str, kind: str, contexts: Sequence[int], argv: Sequence[str] | None) -> None:
    """Run the command line of a comparison with transformers' "llama" or "jamba"."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("0.1B", "0.4B", "1.5B"), default="0.1B")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=4, help="decoded per engine, context and round (default: 4)")
    parser.add_argument("--contexts", type=lambda text: tuple(map(int, text.split(","))), default=contexts)
    parser.add_argument("--precision", action="append", help="of ours, may be repeated (default: int8 and fp32)")
    parser.add_argument("--dtype", action="append", help="of the rival, may be repeated (default: float32, bfloat16)")
    parser.add_argument("--bundle", type=Path, help="a bundle to measure beside ours")
    parser.add_argument("--device", default="auto", help="of ours")
    parser.add_argument("--no-feed", dest="feed", action="store_false", help="do not let ours read the context")
    parser.add_argument("--work", type=Path, default=models.WORK)
    parser.add_argument("--json", type=Path, help="write the result here, too")
    parser.add_argument("--plot", type=Path, help="draw speed and memory over context")
    args = parser.parse_args(argv)
    bundles = {f"ours {p}": models.bundle(args.size, p, args.work) for p in args.precision or ("int8", "fp32")}
    if args.bundle:
        bundles[f"ours {args.bundle.name}"] = args.bundle
    start = functools.partial(Peer, threads=args.threads)
    rival = functools.partial(start, python=environment("torch"))
    found = over_context(
        [functools.partial(start, name, "benchmarks.peers.ours", path, args.device) for name, path in bundles.items()],
        [
            functools.partial(rival, f"{kind} {dtype}", "benchmarks.peers.transformers_decoder", kind, args.size, dtype)
            for dtype in args.dtype or ("float32", "bfloat16")
        ],
        args.contexts,
        threads=args.threads,
        rounds=args.rounds,
        tokens=args.tokens,
        feed=args.feed,
    )
    show(found)
    result = {"machine": machine(), "size": args.size, "threads": args.threads, "rounds": args.rounds, **found}
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        chart(result, args.plot)
    print(json.dumps(result))


def _tell(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:<64}", end="" if text else "\r", file=sys.stderr, flush=True)
