"""Search for inputs that break a parser, guided by the code they reach (atheris).

    python -m tests.fuzz state --seconds 600
    python -m tests.fuzz all --seconds 60 --corpus build/fuzz

A finding is written to the corpus folder as "crash-…" and named in the output; the exit code is then not 0.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

NAMES = ("picture", "manifest", "graph", "state", "text")
LONGEST = 1 << 14  # bytes of an input
HANG = 20  # seconds
MEMORY = 2 << 30  # bytes


def fuzz(target: str, seconds: int, corpus: Path, seed: int) -> None:
    """Fuzz one target in this process, which the fuzzer ends."""
    with atheris.instrument_imports(include=["runtime"]):
        from tests.fuzz import targets
    folder = corpus / target
    folder.mkdir(parents=True, exist_ok=True)
    for index, data in enumerate(targets.seeds(target)):
        (folder / f"seed-{index}").write_bytes(data)
    # The fuzzer's own limit looks at the largest memory ever, which a process inherits from the one that started it.
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    options = [
        "-rss_limit_mb=0",
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        f"-timeout={HANG}",
        f"-max_len={LONGEST}",
    ]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={folder}/", str(folder)], targets.TARGETS[target])
    atheris.Fuzz()


def main() -> int:
    """Run the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("target", choices=(*NAMES, "all"))
    p.add_argument("--seconds", type=int, default=60, help="for each target")
    p.add_argument("--corpus", type=Path, help="folder of inputs to go on with; it grows (default: a temporary one)")
    p.add_argument("--seed", type=int, default=1)
    args = p.parse_args()
    with tempfile.TemporaryDirectory(prefix="vrwkv-corpus-") as temporary:
        corpus = args.corpus or Path(temporary)
        if args.target != "all":
            fuzz(args.target, args.seconds, corpus, args.seed)
        options = ["--seconds", str(args.seconds), "--corpus", str(corpus), "--seed", str(args.seed)]
        runs = [subprocess.run([sys.executable, "-m", "tests.fuzz", name, *options]) for name in NAMES]
    return max(run.returncode != 0 for run in runs)


if __name__ == "__main__":
    sys.exit(main())
