"""Decoding while other programs are busy, against decoding in quiet, in turns: ours and llama.cpp at 1 and 2 threads.

    python -m benchmarks.contention
    python -m benchmarks.contention --neighbours 2 --threads 1,2,4 --size 0.4B
    python -m benchmarks.contention --without llama.cpp

The neighbours are processes that compute without a pause; they are stopped (SIGSTOP) for the quiet turns, so that both
are measured side by side. Prints JSON as its last line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.decode_peers import open_ours, ours_devices
from benchmarks.measure import machine
from benchmarks.peers import models
from benchmarks.peers.environments import environment
from benchmarks.peers.process import Peer, run
from benchmarks.peers.rounds import ratio, take_turns

# Ends by itself when its parent is gone, so that an interrupted benchmark leaves no busy process behind.
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100_000))"


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[Callable[[bool], None]]:
    """Start busy processes, stopped; yield what lets them run (True) and stops them (False)."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]

    def let_run(busy: bool) -> None:
        for process in processes:
            os.kill(process.pid, signal.SIGCONT if busy else signal.SIGSTOP)

    try:
        let_run(False)
        yield let_run
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(peers: Sequence[Peer], count: int, rounds: int, tokens: int) -> list[dict[str, Any]]:
    """Return a row for each engine: tokens per second in quiet and with `count` busy neighbours."""
    with neighbours(count) as let_run:

        def decode(peer: Peer, busy: bool) -> float:
            let_run(busy)
            try:
                return float(tokens / peer("decode", tokens=tokens))
            finally:
                let_run(False)

        calls: dict[str, Callable[[], float]] = {}
        for peer in peers:
            calls[f"{peer.name} quiet"] = lambda peer=peer: decode(peer, False)  # type: ignore[misc]
            calls[f"{peer.name} busy"] = lambda peer=peer: decode(peer, True)  # type: ignore[misc]
        turns = take_turns(calls, rounds)
    return [
        {
            "name": peer.name,
            "threads": peer.threads,
            "quiet_tokens_s": statistics.median(turns[f"{peer.name} quiet"]),
            "busy_tokens_s": statistics.median(turns[f"{peer.name} busy"]),
            "busy_over_quiet": ratio(turns[f"{peer.name} busy"], turns[f"{peer.name} quiet"]),
        }
        for peer in peers
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("0.1B", "0.4B", "1.5B"), default="0.1B")
    parser.add_argument("--threads", type=lambda text: tuple(map(int, text.split(","))), default=(1, 2))
    parser.add_argument("--neighbours", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=16, help="decoded per engine and turn (default: 16)")
    parser.add_argument("--device", help="measure this device of ours only")
    parser.add_argument("--without", action="append", default=[], choices=("llama.cpp",))
    parser.add_argument("--work", type=Path, default=models.WORK)
    parser.add_argument("--json", type=Path, help="write the result here, too")
    args = parser.parse_args(argv)
    bundle, python = models.bundle(args.size, "int8", args.work), None
    if "llama.cpp" not in args.without:
        python = environment("llama.cpp")
        file = models.gguf(args.size, "q8_0", python, args.work)
    with contextlib.ExitStack() as stack:
        peers = []
        for threads in args.threads:
            for peer in open_ours(bundle, f"ours int8, threads {threads},", ours_devices(args.device), threads):
                peers.append(stack.enter_context(peer))
            if python is not None:
                name = f"llama.cpp q8_0, threads {threads}"
                peer = Peer(name, "benchmarks.peers.llama_cpp", file, threads=threads, python=python)
                peers.append(stack.enter_context(peer))
        rows = measure(peers, args.neighbours, args.rounds, args.tokens)
    print(f"{'engine':<34}{'quiet, tokens/s':>17}{'busy, tokens/s':>17}{'busy/quiet':>12}")
    for row in rows:
        print(
            f"{row['name']:<34}{row['quiet_tokens_s']:>17.1f}{row['busy_tokens_s']:>17.1f}{row['busy_over_quiet']:>12.2f}"
        )
    result = {
        "machine": machine(),
        "size": args.size,
        "neighbours": args.neighbours,
        "rounds": args.rounds,
        "rows": rows,
    }
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    run(main)
