"""A random-weight v7.00 0.1B checkpoint with the full-size fused tower, from file to answer about a photograph.

    python -m benchmarks.official_size --work build/official --threads 2

Exports it in int8 in a process of its own (seconds, peak memory), then measures the vision graph, prefill and decode,
beside the measured read bandwidth and, with `--peer` (pip install rwkv), the `rwkv` package on the same language model,
in turns. The answer is nonsense, as the weights are; that it comes is the point. Prints JSON as its last line.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.export_memory import export
from benchmarks.measure import machine, median_seconds, memory_mb, read_bandwidth
from benchmarks.random_checkpoint import write
from runtime import GenerateOptions, VisualRWKV

ROUNDS, DECODE, PREFILL = 5, 24, 256


def photograph() -> Image.Image:
    """A real photograph that matplotlib ships (Grace Hopper, by the US Navy: public domain)."""
    from matplotlib import cbook

    with cbook.get_sample_data("grace_hopper.jpg") as file:
        return Image.open(file).convert("RGB")


def peer_model(checkpoint: Path, work: Path, threads: int) -> Any:
    """Load the language model of `checkpoint` into the `rwkv` package, fp32 on the CPU."""
    import os

    os.environ.update(RWKV_V7_ON="1", RWKV_JIT_ON="1", RWKV_CUDA_ON="0")
    from rwkv.model import RWKV

    torch.set_num_threads(threads)
    text = work / "text.pth"
    if not text.exists():
        tensors = torch.load(checkpoint, weights_only=True, mmap=True)
        torch.save({k.removeprefix("rwkv."): v for k, v in tensors.items() if k.startswith("rwkv.")}, text)
    return RWKV(model=str(text.with_suffix("")), strategy="cpu fp32")


def measure(bundle: Path, threads: int, peer: Any) -> dict[str, Any]:
    """Measure a bundle, in turns with the peer where there is one."""
    with VisualRWKV.load(bundle, threads=threads) as model:
        engine, rng = model.engine, np.random.default_rng(0)
        session = model.session()
        session.see(photograph())
        chunks = list(session.ask("Who is this?", options=GenerateOptions(max_tokens=16, ignore_stop=True)))
        shapes = {spec.name: spec.resolve(I=1) for spec in model.manifest.graph("vision").inputs}
        pixels = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        prompt, state = rng.integers(1, 60000, PREFILL), engine.new_state()
        runs = {
            "ours prefill": lambda: engine.advance(prompt, state),
            "ours decode": lambda: engine.advance([7], state),
        }
        if peer is not None:
            held: list[Any] = [None]

            def peer_decode() -> None:
                held[0] = peer.forward([7], held[0])[1]

            runs["peer prefill"] = lambda: peer.forward(list(map(int, prompt)), None)
            runs["peer decode"] = peer_decode
        rates: dict[str, list[float]] = {name: [] for name in runs}
        bandwidth = []
        for _ in range(ROUNDS):
            bandwidth.append(read_bandwidth(threads, 0.5))
            for name, call in runs.items():
                tokens = PREFILL if "prefill" in name else 1
                rates[name].append(tokens / median_seconds(call, seconds=1.5))
        gb_per_token = model.manifest.budget.weights / 1e9
        median = {name: statistics.median(values) for name, values in rates.items()}
        limit = statistics.median(bandwidth) / gb_per_token
        return {
            "answer": "".join(chunk.text for chunk in chunks),
            "ttft_s": chunks[-1].stats.ttft_s if chunks[-1].stats else None,
            "vision_s": median_seconds(lambda: engine.encode(pixels), seconds=5, least=2),
            "image_tokens": model.manifest.vision.tokens if model.manifest.vision else 0,
            **{f"{name} tokens/s": value for name, value in median.items()},
            "bandwidth_gb_s": statistics.median(bandwidth),
            "weights_mb": gb_per_token * 1e3,
            "decode limit tokens/s": limit,
            "decode % of limit": 100 * median["ours decode"] / limit,
            "resident": memory_mb(),
        }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/official"), help="folder for 4 GB of files")
    parser.add_argument("--size", default="0.1B")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", action="store_true", help="measure the rwkv package in the same run")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    checkpoint, bundle = args.work / f"v700-{args.size}.pth", args.work / f"v700-{args.size}-int8"
    if not checkpoint.exists():
        write(checkpoint, args.size)
    exported = export(checkpoint, bundle)
    measured = measure(bundle, args.threads, peer_model(checkpoint, args.work, args.threads) if args.peer else None)
    result = {"machine": machine(), "threads": args.threads, "export": exported, **measured}
    for key, value in result.items():
        print(f"{key:>24}: {value if not isinstance(value, float) else f'{value:.3g}'}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
