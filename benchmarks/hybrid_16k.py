"""Throughput at 16K tokens of context: ours against a hybrid decoder in the manner of LongLLaVA, in turns.

    python -m benchmarks.hybrid_16k                                # 0.1B, 1 thread
    python -m benchmarks.hybrid_16k --size 0.4B --threads 2
    python -m benchmarks.hybrid_16k --bundle build/hm              # a bundle of HM beside ours

The rival is transformers' Jamba with random weights: one layer of attention to seven of Mamba as in LongLLaVA, grouped
keys and values, a dense feed-forward (LongLLaVA's experts would read more), our width, layers and vocabulary. Mamba
runs in transformers' plain PyTorch, as it does on every CPU. The cache of its attention is filled with random numbers,
ours reads every token. Installs transformers into build/peers (once). Prints JSON as its last line.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.peers.over_context import command
from benchmarks.peers.process import run

CONTEXTS = (1024, 4096, 16384)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    command(__doc__ or "", "jamba", CONTEXTS, argv)


if __name__ == "__main__":
    run(main)
