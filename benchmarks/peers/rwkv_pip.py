"""The `rwkv` package as a worker: `python -m benchmarks.peers.rwkv_pip TEXT.safetensors THREADS`, fp32 on torch.

Runs in the environment "torch". The package reads .pth files: one is written beside the checkpoint.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers.tensors import iterate_tensors
from benchmarks.peers.worker import seconds, serve


def main(checkpoint: str, threads: str) -> None:
    """Load the checkpoint and answer calls."""
    os.environ.update(RWKV_V7_ON="1", RWKV_JIT_ON="1", RWKV_CUDA_ON="0")
    import torch

    torch.set_num_threads(int(threads))
    pth = Path(checkpoint).with_suffix(".pth")
    if not pth.exists():
        part = pth.with_suffix(".part")
        torch.save(
            {name: torch.from_numpy(array).bfloat16() for name, array in iterate_tensors(Path(checkpoint))}, part
        )
        part.replace(pth)
    from rwkv.model import RWKV

    model: Any = RWKV(model=str(pth.with_suffix("")), strategy="cpu fp32")
    rng, held = random.Random(0), [None]
    read = sum(4 * tensor.numel() for name, tensor in model.z.items() if name != "emb.weight")
    vocabulary = model.z["head.weight"].shape[1]

    def decode(tokens: int) -> float:
        def run() -> None:
            for _ in range(tokens):
                held[0] = model.forward([rng.randrange(1, vocabulary - 1)], held[0])[1]

        return seconds(run)

    def prefill(tokens: int) -> float:
        wanted = [rng.randrange(1, vocabulary - 1) for _ in range(tokens)]
        return seconds(lambda: model.forward(wanted, None))

    def logits(tokens: list[int]) -> list[float]:
        found: list[float] = model.forward(tokens, None)[0].float().tolist()
        return found

    def ready() -> dict[str, Any]:
        return {"engine": "rwkv package, torch", "read_per_token": read}

    serve({"ready": ready, "decode": decode, "prefill": prefill, "logits": logits})


if __name__ == "__main__":
    main(*sys.argv[1:])
