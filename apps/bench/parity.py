"""Whether a bundle computes the right thing on this machine, before anyone is told how fast.

    python -m apps.bench.parity BUNDLE [--device D] [--threads N]

Feeds seeded tokens twice, in one call and cut into pieces, which must agree; and, where the bundle also runs on another
backend here, through that one, too. In a process of its own, so that a second copy of the weights does not stay behind.
Prints JSON as its last line; exits with 1 if an error passes its limit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from runtime import VisualRWKV
from runtime.errors import TargetUnavailable, VisualRWKVError
from runtime.targets import DEVICES

# Relative RMS error, by the bundle's precision: what the exporter allows between a bundle and torch.
LIMITS = {"fp32": 1e-4, "fp16": 1e-2, "int8": 5e-2, "int4": 0.25}
REFERENCE = "onnxruntime"
TOKENS, CUTS = 33, (17, 15, 1)


def logits_of(path: Path, device: str, threads: int | None, cuts: tuple[int, ...]) -> tuple[str, np.ndarray]:
    """Feed seeded tokens in pieces of `cuts`; return the backend's name and the logits [len(cuts), V] after each."""
    with VisualRWKV.load(path, device, threads=threads, verify=False) as model:
        rng = np.random.default_rng(3)
        tokens = rng.integers(1, model.manifest.vocab_size - 1, sum(cuts))
        state, start, rows = model.engine.new_state(), 0, []
        for length in cuts:
            rows.append(model.engine.advance(tokens[start : start + length], state).copy())
            start += length
        return model.engine.backend.name, np.stack(rows)


def check(path: Path, device: str, threads: int | None) -> dict[str, Any]:
    """Return the backend, the rows compared (what, error, limit) and whether all are within their limits."""
    with VisualRWKV.load(path, device, threads=threads) as model:  # every file's digest, once
        precision = model.manifest.precision
    limit = LIMITS.get(precision, LIMITS["int4"])
    name, pieces = logits_of(path, device, threads, CUTS)
    _, whole = logits_of(path, device, threads, (TOKENS,))
    errors = {"cut into pieces": _error(pieces[-1], whole[-1])}
    if REFERENCE in DEVICES:
        try:
            other, reference = logits_of(path, REFERENCE, threads, CUTS)
        except TargetUnavailable:
            other = name
        if other != name:
            errors[f"against {other}"] = _error(pieces, reference)
    rows = [{"what": what, "error": error, "limit": limit} for what, error in errors.items()]
    return {"backend": name, "rows": rows, "green": max(errors.values()) <= limit}


def check_apart(path: Path, device: str, threads: int | None) -> dict[str, Any]:
    """`check`, in a child process. Raises what the child says when it cannot load the bundle."""
    command = [sys.executable, "-m", "apps.bench.parity", str(path), "--device", device]
    command += ["--threads", str(threads)] if threads else []
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found: dict[str, Any] = json.loads(child.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        raise VisualRWKVError(child.stderr.strip().removeprefix("error: ") or "the parity check died") from None
    return found


def _error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Relative RMS error; infinite where a value is not finite."""
    if not (np.isfinite(found).all() and np.isfinite(wanted).all()):
        return float("inf")
    return float(np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2)))


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args(argv)
    try:
        found = check(args.bundle, args.device, args.threads)
    except VisualRWKVError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found))
    return 0 if found["green"] else 1


if __name__ == "__main__":
    sys.exit(main())
