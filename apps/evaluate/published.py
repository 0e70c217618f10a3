"""What the authors report for their models, to stand beside a measured figure.

Sources: "VisualRWKV: Exploring Recurrent Neural Networks for Visual Language Models" (arXiv 2406.13362), table 2, for
v6.0; the table of the README of VisualRWKV-HD and -UHD (arXiv 2410.11665); the table of the repository's README for
v7.00. POPE is the mean F1 score over its categories, MME the perception score; all else is accuracy in percent.
The models were run in bfloat16 with the official code, on the splits that the papers name.
"""

from __future__ import annotations

_SHORT_TABLE = ("vqav2", "scienceqa", "textvqa", "gqa")
_PAPER_TABLE = ("vqav2", "gqa", "scienceqa", "textvqa", "pope", "mme", "mmbench", "mmbench_cn")
_HD_TABLE = ("scienceqa", "textvqa", "gqa", "mme", "pope", "mmbench", "mmbench_cn")

# By what the manifest calls the family and the width of the model.
FIGURES: dict[tuple[str, int], dict[str, float]] = {
    key: dict(zip(tasks, values, strict=True))
    for key, tasks, values in (
        (("rwkv6 6.00", 2048), _PAPER_TABLE, (69.4, 55.2, 59.1, 43.6, 83.2, 1204.9, 55.8, 53.2)),
        (("rwkv6 6.00", 2560), _PAPER_TABLE, (71.5, 59.6, 65.3, 48.7, 83.1, 1369.2, 59.5, 56.3)),
        (("rwkv6 6.00", 4096), _PAPER_TABLE, (75.8, 64.3, 68.2, 51.0, 84.7, 1387.8, 65.8, 63.7)),
        (("rwkv6 6.12", 2048), _HD_TABLE, (54.39, 54.71, 60.84, 1378.62, 86.0, 60.31, 55.41)),
        (("rwkv6 6.13", 2048), _HD_TABLE, (56.97, 56.31, 59.52, 1321.33, 85.3, 58.42, 52.84)),
        (("rwkv7 7.00", 768), _SHORT_TABLE, (75.22, 50.62, 37.90, 59.92)),
        (("rwkv7 7.00", 1024), _SHORT_TABLE, (77.85, 54.98, 41.05, 62.30)),
        (("rwkv7 7.00", 2048), _SHORT_TABLE, (79.84, 59.74, 49.49, 63.20)),
    )
}


def published(family: str, width: int, task: str) -> float | None:
    """Return the reported headline of a task, in percent (MME in points), or None."""
    return FIGURES.get((family.lower(), width), {}).get(task)
