"""Decoding and prefill: ours against llama.cpp and the `rwkv` package, on the same random RWKV-7 weights, in turns.

    python -m benchmarks.decode_peers                          # 0.1B: int8 against Q8_0, int4 against Q4_0
    python -m benchmarks.decode_peers --size 1.5B --threads 2 --rounds 7
    python -m benchmarks.decode_peers --without rwkv           # without a peer that cannot be installed

Installs the peers into build/peers (once; llama.cpp is compiled for this machine), writes one random checkpoint,
exports our bundles from it and lets llama.cpp quantise its own files of the same weights. Logits are compared before
anything is timed: a peer that computes something else is no peer. Prints JSON as its last line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import machine, read_bandwidth
from benchmarks.peers import models
from benchmarks.peers.environments import environment
from benchmarks.peers.process import Peer, run
from benchmarks.peers.rounds import Turns, ratio, take_turns
from runtime.errors import ConfigError, ParityError, TargetUnavailable
from runtime.targets import DEVICES

PROMPT = 33  # tokens whose logits are compared
# Relative RMS difference of logits. Two 8-bit formats of the same weights differ by the roundings of both, which random
# weights multiply (benchmarks/quant_error.py), two 4-bit formats by much more: Q4_0 by 0.60 after 24 random layers; a
# wrong model is off by 1.4.
LIMITS = {"8": 0.15, "4": 0.9}
RIVALS = {"int8": "llama.cpp q8_0", "int4": "llama.cpp q4_0"}


def ours_devices(wanted: str | None) -> list[str]:
    """Return the devices to measure: the one asked for, or all that run a "cpu" bundle by name, or "cpu"."""
    if wanted:
        return [wanted]
    return [name for name in ("native", "onnxruntime") if name in DEVICES] or ["cpu"]


def open_ours(bundle: Path, name: str, devices: Sequence[str], threads: int) -> list[Peer]:
    """Start our runtime on each device; of several, one that this machine lacks is left out, and said so."""
    peers = []
    for device in devices:
        try:
            peers.append(Peer(f"{name} {device}", "benchmarks.peers.ours", bundle, device, threads=threads))
        except TargetUnavailable as error:
            if len(devices) == 1:
                raise
            print(f"without {device}: {error.found.splitlines()[-1]}", file=sys.stderr, flush=True)
    return peers


def open_all(size: str, threads: int, devices: Sequence[str], without: Sequence[str], work: Path) -> list[Peer]:
    """Start every engine. Raises `TargetUnavailable` for one that cannot be had here."""
    peers = []
    with contextlib.ExitStack() as stack:
        for precision in ("int8", "int4"):
            for peer in open_ours(models.bundle(size, precision, work), f"ours {precision}", devices, threads):
                peers.append(stack.enter_context(peer))
        if "llama.cpp" not in without:
            python = environment("llama.cpp")
            for kind in ("q8_0", "q4_0"):
                file = models.gguf(size, kind, python, work)
                peer = Peer(f"llama.cpp {kind}", "benchmarks.peers.llama_cpp", file, threads=threads, python=python)
                peers.append(stack.enter_context(peer))
        if "rwkv" not in without:
            python, file = environment("torch"), models.checkpoint(size, work)
            peer = Peer("rwkv package fp32", "benchmarks.peers.rwkv_pip", file, threads=threads, python=python)
            peers.append(stack.enter_context(peer))
        stack.pop_all()
    return peers


def compare_logits(peers: Sequence[Peer], reference: str, vocabulary: int = 65536) -> dict[str, float]:
    """Return each engine's relative RMS difference to the first whose name starts with `reference`.

    Raises `ParityError` where one passes its limit.
    """
    prompt = np.random.default_rng(7).integers(1, vocabulary - 1, PROMPT).tolist()
    logits = {peer.name: np.array(peer("logits", tokens=prompt)) for peer in peers}
    first = next(name for name in logits if name.startswith(reference))
    norm = float(np.sqrt(np.mean(logits[first] ** 2)))
    errors = {name: float(np.sqrt(np.mean((found - logits[first]) ** 2))) / norm for name, found in logits.items()}
    wrong = {name: error for name, error in errors.items() if not error <= LIMITS["4" if "4" in name else "8"]}
    if wrong:
        raise ParityError(f"not the same model as {first}: {wrong}", wanted=f"differences within {LIMITS}")
    return errors


def measure(peers: Sequence[Peer], threads: int, rounds: int, tokens: int, prefill: int) -> dict[str, Any]:
    """Measure all engines in turns; return a row for each, and their ratios."""
    calls: dict[str, Any] = {"bandwidth": lambda: read_bandwidth(threads, 0.4)}
    for peer in peers:
        calls[f"decode {peer.name}"] = lambda peer=peer: tokens / peer("decode", tokens=tokens)
        calls[f"prefill {peer.name}"] = lambda peer=peer: prefill / peer("prefill", tokens=prefill)
    turns = take_turns(calls, rounds)
    bandwidth = statistics.median(turns["bandwidth"])
    rows = []
    for peer in peers:
        decode = turns[f"decode {peer.name}"]
        read = peer.ready["read_per_token"]
        rows.append(
            {
                "name": peer.name,
                "engine": peer.ready["engine"],
                "decode_tokens_s": statistics.median(decode),
                "decode_quartiles": np.percentile(decode, [25, 75]).tolist(),
                "prefill_tokens_s": statistics.median(turns[f"prefill {peer.name}"]),
                "read_per_token_mb": read / 1e6,
                "percent_of_bandwidth": 100 * statistics.median(decode) * read / 1e9 / bandwidth,
                "memory_mb": peer.memory_mb(),
            }
        )
    return {"bandwidth_gb_s": bandwidth, "rows": rows, "ratios": ratios(turns)}


def ratios(turns: Turns) -> dict[str, float]:
    """Return ours over llama.cpp's, of the same number of bits, as medians of the ratios of each round."""
    found = {}
    for what in ("decode", "prefill"):
        for precision, rival in RIVALS.items():
            for name in turns:
                if name.startswith(f"{what} ours {precision}") and f"{what} {rival}" in turns:
                    found[f"{name} / {rival}"] = ratio(turns[name], turns[f"{what} {rival}"])
    return found


def show(found: dict[str, Any]) -> None:
    """Print a measurement."""
    print(f"{'engine':<28}{'decode/s':>10}{'prefill/s':>11}{'MB read':>9}{'% of bw':>9}{'RSS MB':>9}{'anon MB':>9}")
    for row in found["rows"]:
        print(
            f"{row['name']:<28}{row['decode_tokens_s']:>10.2f}{row['prefill_tokens_s']:>11.1f}"
            f"{row['read_per_token_mb']:>9.0f}{row['percent_of_bandwidth']:>9.1f}"
            f"{row['memory_mb']['rss']:>9.0f}{row['memory_mb']['anon']:>9.0f}"
        )
    print(f"reading memory: {found['bandwidth_gb_s']:.1f} GB/s")
    for name, value in found["ratios"].items():
        print(f"{name}: {value:.2f}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("0.1B", "0.4B", "1.5B"), default="0.1B")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=16, help="decoded per engine and round (default: 16)")
    parser.add_argument("--prefill", type=int, default=256, help="tokens of the prompt (default: 256)")
    parser.add_argument("--device", help="measure this device of ours only")
    parser.add_argument("--without", action="append", default=[], choices=("llama.cpp", "rwkv"))
    parser.add_argument("--work", type=Path, default=models.WORK)
    parser.add_argument("--json", type=Path, help="write the result here, too")
    args = parser.parse_args(argv)
    if min(args.threads, args.rounds, args.tokens, args.prefill) < 1:
        raise ConfigError("threads, rounds, tokens and prefill", wanted="at least 1 each")
    peers = open_all(args.size, args.threads, ours_devices(args.device), args.without, args.work)
    with contextlib.ExitStack() as stack:
        for peer in peers:
            stack.enter_context(peer)
        errors = compare_logits(peers, "ours int8")
        found = measure(peers, args.threads, args.rounds, args.tokens, args.prefill)
    show(found)
    print("logits against ours int8:", ", ".join(f"{name} {error:.3f}" for name, error in errors.items()))
    options = {"size": args.size, "threads": args.threads, "rounds": args.rounds, "tokens": args.tokens}
    result = {"machine": machine(), **options, "prefill": args.prefill, **found, "logits": errors}
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    run(main)
