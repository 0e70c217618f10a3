"""The charts of BENCHMARKS.md, drawn again from the JSON of a benchmark.

python -m benchmarks.charts benchmarks/results/context_24k.json benchmarks/results/context_24k.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def over_context(found: dict[str, Any], path: Path) -> None:
    """Draw speed and memory over the context, a line for each engine; dashed: the rivals' limit by bandwidth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    speed, memory = figure.subplots(1, 2)
    names = list(dict.fromkeys(row["name"] for row in found["rows"]))
    for number, name in enumerate(names):
        rows = [row for row in found["rows"] if row["name"] == name]
        contexts, colour = [row["context"] for row in rows], f"C{number}"
        speed.plot(contexts, [1e3 / row["ms_per_token"] for row in rows], marker="o", color=colour, label=name)
        if not name.startswith("ours"):
            speed.plot(contexts, [1e3 / row["least_ms"] for row in rows], linestyle="--", linewidth=1, color=colour)
        memory.plot(contexts, [row["above_start_mb"] for row in rows], marker="o", color=colour, label=name)
    speed.set(xlabel="tokens of context", title="decode, tokens/s (dashed: the rival's limit)", ylim=(0, None))
    memory.set(xlabel="tokens of context", title="memory of model and cache, MB", ylim=(0, None))
    figure.suptitle(f"{found['size']}, {found['threads']} thread{'s' * (found['threads'] != 1)}, random weights")
    speed.legend(frameon=False)
    memory.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="JSON of context_24k or hybrid_16k")
    parser.add_argument("png", type=Path)
    args = parser.parse_args(argv)
    over_context(json.loads(args.result.read_text(encoding="utf-8")), args.png)


if __name__ == "__main__":
    main()
