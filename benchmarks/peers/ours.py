"""Our runtime as a worker: `python -m benchmarks.peers.ours BUNDLE DEVICE THREADS`."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from apps.bench.measure import read_per_token
from benchmarks.measure import memory_mb
from benchmarks.peers.worker import seconds, serve
from runtime import VisualRWKV


def main(bundle: str, device: str, threads: str) -> None:
    """Load a bundle and answer calls."""
    import onnxruntime  # noqa: F401 (libraries are not the model's memory)

    before = memory_mb()
    model = VisualRWKV.load(bundle, device, threads=int(threads), verify=False)
    engine, manifest, rng = model.engine, model.manifest, np.random.default_rng(0)
    state = engine.new_state()

    def ids(count: int) -> list[int]:
        found: list[int] = rng.integers(1, manifest.vocab_size - 1, count).tolist()
        return found

    def decode(tokens: int) -> float:
        wanted = ids(tokens)
        return seconds(lambda: [engine.advance([token], state) for token in wanted])

    def feed(tokens: int) -> float:
        """Feed more tokens, in one call."""
        wanted = ids(tokens)
        return seconds(lambda: engine.advance(wanted, state))

    def rerun(tokens: int) -> float:
        """The official way to the next token: the whole sequence from the beginning."""
        wanted, fresh = ids(tokens), engine.new_state()
        return seconds(lambda: engine.advance(wanted, fresh))

    def logits(tokens: list[int]) -> list[float]:
        found: list[float] = engine.advance(tokens, engine.new_state()).tolist()
        return found

    def ready() -> dict[str, Any]:
        return {
            "engine": engine.backend.name,
            "format": manifest.precision,
            "read_per_token": round(read_per_token(model, engine.new_state())["total"]),
            "before_mb": before,
        }

    serve({"ready": ready, "decode": decode, "feed": feed, "prefill": rerun, "rerun": rerun, "logits": logits})


if __name__ == "__main__":
    main(*sys.argv[1:])
