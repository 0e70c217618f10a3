"""Time per token and memory from 1K to 24K tokens of context: ours against LLaVA-1.5's kind of decoder, in turns.

    python -m benchmarks.context_24k                               # 0.1B, 1 thread
    python -m benchmarks.context_24k --size 0.4B --threads 2
    python -m benchmarks.context_24k --size 1.5B --dtype bfloat16 --no-feed

The rival is a Llama decoder with a KV cache (transformers, random weights) with our width, layers and vocabulary and
the proportions of LLaVA-1.5's Vicuna, in float32 and bfloat16. Its cache is filled with random numbers: feeding 24K
tokens would take it very long, and the time of a step does not depend on them. Ours reads every token. The language
model is compared, without the vision tower. Installs transformers into build/peers (once). Prints JSON as its last
line.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.peers.over_context import command
from benchmarks.peers.process import run

CONTEXTS = (1024, 2048, 4096, 8192, 16384, 24576)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    command(__doc__ or "", "llama", CONTEXTS, argv)


if __name__ == "__main__":
    run(main)
