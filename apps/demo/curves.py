"""Draw the learning curves: `python -m apps.demo.curves` makes training_curves.png of training_log.csv (matplotlib)."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

LOG = Path(__file__).with_name("training_log.csv")
TOWER = ("cell form", "cell colour", "cell size", "cell text")
KINDS = ("colour", "shape", "count", "relation", "where", "what", "light")
FRAMES = ("current frame after 4", "current frame after 12", "first frame after 12", "seen after 12")

Curve = list[tuple[float, float]]


def curves(log: Path) -> tuple[dict[str, Curve], dict[str, Curve], dict[str, Curve]]:
    """Return the tower's curves over pictures, and those of kinds and of frames over answers, later runs in series."""
    tower: dict[str, Curve] = defaultdict(list)
    kinds: dict[str, Curve] = defaultdict(list)
    frames: dict[str, Curve] = defaultdict(list)
    before, run, last = 0.0, "", 0.0
    with log.open(newline="") as file:
        for row in csv.DictReader(file):
            seen, value, name = float(row["seen"]), float(row["value"]), row["quantity"]
            if row["phase"] == "tower":
                if name in TOWER:
                    tower[name.removeprefix("cell ")].append((seen, value))
                continue
            if row["run"] != run:
                before, run = before + last, row["run"]
            last = seen
            kind = name.removesuffix(" en")
            if kind in KINDS:
                kinds[kind].append((before + seen, value))
            if name in FRAMES:
                frames[name].append((before + seen, value))
    return tower, kinds, frames


def main() -> None:
    """Draw them and write the picture."""
    figure = Figure(figsize=(14, 3.6), layout="constrained")
    labels = ("pictures (tower alone)", "answers (symbolic, language, joint, watching)", "answers (watching)")
    for axis, group, label in zip(figure.subplots(1, 3), curves(LOG), labels, strict=True):
        for name, points in group.items():
            axis.plot(*zip(*points, strict=True), label=name, linewidth=1.2)
        axis.set(xlabel=label, ylabel="held-out accuracy", ylim=(0, 1.02))
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
        axis.locator_params(axis="x", nbins=5)
    figure.savefig(LOG.with_name("training_curves.png"), dpi=100)


if __name__ == "__main__":
    main()
