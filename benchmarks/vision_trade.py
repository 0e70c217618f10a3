"""What an image costs, and what can be chosen: towers, picture sizes, image tokens; fused against plain operators.

    python -m benchmarks.vision_trade --work build/trade --threads 2 --json trade.json --png trade.png

Each tower has random weights of the released sizes (time does not depend on them), runs in a process of its own, and
in turns: plain, fused, plain, fused. The language model behind it is a random 0.1B in int8.

The accuracy column is the embedded demo model's, which has a small tower of its own: exported again with other image
tokens or another picture size, without being trained for it. It says what the flag alone does to a trained model. What
a model loses that was trained for fewer tokens, it cannot say. `--scenes 0` leaves it out. JSON is the last line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import random_tower as towers
from benchmarks.measure import machine, median_seconds, memory_mb, show_progress
from benchmarks.random_tower import Choice
from runtime import VisualRWKV
from runtime.backends.ort import OrtBackend
from runtime.spec import GraphSpec

CHOICES = (
    Choice("v7.00: DINOv2 + SigLIP 448, SAM 1024", towers.fused(448), 1024),
    Choice("the same at half the side: 224, SAM 512", towers.fused(224), 256),
    Choice("v6.11: DINOv2 + SigLIP 448", towers.pair(448), 1024),
    Choice("v7.01: SigLIP 448", towers.alone(448), 1024),
    Choice("v7.01: SigLIP 224", towers.alone(224), 256),
    Choice("v6.0: CLIP 336", towers.clip(), 577),
)
TOKENS = (16, 64, 256, 576, 1024)
DEMO = ({"num_token_per_image": 16}, {"num_token_per_image": 64}, {"num_token_per_image": 4}, {"image_size": 96},
        {"image_size": 48}, {"image_size": 32})  # fmt: skip
FIRST_SCENE = 50_000  # held out
DEMO_CHECKPOINT = Path("apps/demo/demo.safetensors")


def encode(spec: GraphSpec, folder: Path, threads: int) -> dict[str, float]:
    """Encode one picture, twice; return the seconds of the second, and the memory it left."""
    backend = OrtBackend(threads)
    runner = backend.load(spec, folder / spec.file)
    views = {i.name: backend.allocate(i.resolve(I=1), i.dtype) for i in spec.inputs}
    made = {o.name: backend.allocate(o.resolve(I=1), o.dtype) for o in spec.outputs}
    rng = np.random.default_rng(0)
    for view in views.values():
        view.write(rng.standard_normal(view.shape, np.float32))
    for _ in range(2):
        start = time.perf_counter()
        runner.run(views, made)
        seconds = time.perf_counter() - start
    (embeddings,) = (buffer.read() for buffer in made.values())
    norm = float(np.linalg.norm(embeddings))
    return {"seconds": seconds, "norm": norm, **{f"{k}_mb": v for k, v in memory_mb().items()}}


def cost(choice: Choice, work: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Measure a tower in both forms, in turns, each time in a new process."""
    folder = work / choice.name.replace(" ", "_").replace(":", "").replace("+", "and").replace(",", "")
    show_progress(f"tracing {choice.name}")
    specs = towers.write(choice, folder)
    runs: dict[str, list[dict[str, float]]] = {form: [] for form in specs}
    for number in range(rounds):
        for form in specs:
            show_progress(f"{choice.name}, {form}, round {number + 1} of {rounds}")
            which = ["--one", choice.name, "--form", form, "--folder", str(folder), "--threads", str(threads)]
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.vision_trade", *which], check=True, capture_output=True, text=True
            )
            runs[form].append(json.loads(done.stdout.splitlines()[-1]))
    row: dict[str, Any] = {"choice": choice.name, "tokens": choice.tokens}
    for form, found in runs.items():
        row[form] = {key: statistics.median(run[key] for run in found) for key in found[0]}
    row["ratio"] = row["plain"]["seconds"] / row["fused"]["seconds"]
    return row


def prefill(work: Path, threads: int) -> list[dict[str, float]]:
    """Return what so many image tokens cost a 0.1B language model."""
    from benchmarks.native_step import random_bundle

    show_progress("prefill")
    rows = []
    with VisualRWKV.load(random_bundle("0.1B", "int8", work), threads=threads) as model:
        engine, rng = model.engine, np.random.default_rng(0)
        for tokens in TOKENS:
            image, state = rng.standard_normal((tokens, engine.manifest.width), np.float32), engine.new_state()
            rows.append({"tokens": tokens, "seconds": median_seconds(partial(engine.advance, image, state))})
    return rows


def answers(options: dict[str, int], work: Path, scenes: int, threads: int) -> dict[str, Any]:
    """Export the demo model with other options, and ask it about scenes it never saw."""
    from apps.demo.evaluate import evaluate, rows_of
    from apps.demo.questions import KINDS
    from export.build import export_bundle
    from export.config import ExportConfig

    data = json.loads(DEMO_CHECKPOINT.with_suffix(".json").read_text(encoding="utf-8"))
    data["vocabulary"] = str((DEMO_CHECKPOINT.parent / data["vocabulary"]).resolve())
    size = options.get("image_size", data["vision"]["image_size"])
    data["vision"]["image_size"] = size
    data["num_token_per_image"] = options.get("num_token_per_image", data["num_token_per_image"])
    bundle = work / f"demo-{size}px-{data['num_token_per_image']}"
    show_progress(f"the demo model at {size} pixels, {data['num_token_per_image']} tokens")
    if not bundle.exists():
        export_bundle(DEMO_CHECKPOINT, bundle, config=ExportConfig.from_dict(data))
    with VisualRWKV.load(bundle, threads=threads) as model:
        tally = evaluate(model, range(FIRST_SCENE, FIRST_SCENE + scenes), list(KINDS))
    (row,) = (row for row in rows_of(tally) if row["kind"] == "all kinds")
    return {"image_size": size, "tokens": data["num_token_per_image"], **{k: row[k] for k in ("accuracy", "asked")}}


def show(found: dict[str, Any]) -> str:
    """Return the tables as text."""
    lines = [f"{'towers':<42}{'tokens':>7}{'plain s':>9}{'fused s':>9}{'ratio':>7}{'plain MB':>10}{'fused MB':>10}"]
    for row in found["towers"]:
        plain, fused = row["plain"], row["fused"]
        lines.append(
            f"{row['choice']:<42}{row['tokens']:>7}{plain['seconds']:>9.2f}{fused['seconds']:>9.2f}"
            f"{row['ratio']:>7.2f}{plain['rss_mb']:>10.0f}{fused['rss_mb']:>10.0f}"
        )
    lines += ["", f"{'image tokens':<14}{'prefill, 0.1B int8, s':>22}"]
    lines += [f"{row['tokens']:<14}{row['seconds']:>22.2f}" for row in found["prefill"]]
    lines += ["", f"{'demo model':<28}{'accuracy':>9}{'asked':>7}   (trained for 64 pixels and 16 tokens)"]
    for row in found["demo"]:
        name = f"{row['image_size']} pixels, {row['tokens']} tokens"
        lines.append(f"{name:<28}{row['accuracy']:>9.1%}{row['asked']:>7}")
    return "\n".join(lines)


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw seconds and memory of every tower, plain and fused."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names, places = [row["choice"] for row in found["towers"]], np.arange(len(found["towers"]))
    for axes, key, title in ((left, "seconds", "seconds per picture"), (right, "rss_mb", "resident MB")):
        for shift, form in ((0.2, "plain"), (-0.2, "fused")):
            axes.barh(places - shift, [row[form][key] for row in found["towers"]], 0.38, label=form)
        axes.set(title=title)
    left.set_yticks(places, names)
    left.invert_yaxis()
    left.legend(frameon=False)
    threads = found["threads"]
    figure.suptitle(f"vision towers on {threads} thread{'s' * (threads != 1)}, random weights")
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/trade"), help="folder for up to 10 GB of graphs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", metavar="TEXT", default="", help="towers whose name holds this")
    parser.add_argument("--scenes", type=int, default=60, help="of the demo model; 0 leaves its column out")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--png", type=Path, metavar="FILE")
    for hidden in ("--one", "--form", "--folder"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        graph = towers.graph_of(next(choice for choice in CHOICES if choice.name == args.one))
        spec = GraphSpec("vision", f"{args.form}.onnx", graph.inputs, graph.outputs, ())
        print(json.dumps(encode(spec, Path(args.folder), args.threads)))
        return
    chosen = [choice for choice in CHOICES if args.only in choice.name]
    if not chosen:
        parser.error(f"no tower's name holds {args.only!r}: {'; '.join(choice.name for choice in CHOICES)}")
    found = {
        "machine": machine(),
        "threads": args.threads,
        "towers": [cost(choice, args.work, args.threads, args.rounds) for choice in chosen],
        "prefill": prefill(args.work, args.threads),
        "demo": [answers(options, args.work, args.scenes, args.threads) for options in DEMO] if args.scenes else [],
    }
    show_progress("")
    print(show(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if args.png:
        plot(found, args.png)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
