"""Measure exported variants: exact match of greedy answers on held-out scenes, and paired differences.

Every variant is exported to a bundle and answers the same questions through the runtime's engine. A difference is
judged over scenes, not over questions, since questions about one scene are not independent.
"""

from __future__ import annotations

import csv
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apps.demo.ablation.data import VOCABULARY, Row, draw_rows, features, frozen_tower, prompt_of
from apps.demo.ablation.variants import CLAIMS, VARIANTS, Claim
from apps.demo.dataset import Words, make_pool
from apps.demo.evaluate import interval
from runtime import VisualRWKV
from runtime.errors import ConfigError
from runtime.prompt import ImageSlot, turn_pieces
from runtime.state import State

FIRST_SEED = 60_000  # of held-out scenes; those of the training reports begin at 0
LONGEST = 8  # tokens of an answer
Z = 1.96  # of a 95 % interval
Report = Callable[[str], None]


@dataclass(frozen=True)
class Questions:
    """What is asked: rows (of the default template, for their items) and features [scenes, 16, 128] float32."""

    rows: list[Row]
    tokens: np.ndarray


def questions(scenes: int, each: int, first: int = FIRST_SEED) -> Questions:
    """Up to `each` questions about every scene of the seeds from `first` on."""
    words = Words(VOCABULARY)
    drawn, pictures = make_pool(first, scenes)
    tokens = features(frozen_tower(words), drawn, torch.from_numpy(pictures)).tokens.float().numpy()
    return Questions(draw_rows(words, prompt_of("first"), drawn, each, random.Random(first), tokens.shape[1]), tokens)


def bundle_of(folder: Path, name: str, report: Report = lambda line: None) -> Path:
    """Export a variant's checkpoint, unless its bundle is newer; returns the bundle."""
    from export.build import export_bundle
    from export.config import ExportConfig

    weights, config, out = folder / f"{name}.safetensors", folder / f"{name}.json", folder / f"{name}-fp32-cpu"
    if not weights.exists():
        raise ConfigError(f"{weights} does not exist", hint="run `python -m apps.demo.ablation train` first")
    manifest = out / "manifest.json"
    if not manifest.exists() or manifest.stat().st_mtime < weights.stat().st_mtime:
        report(f"exporting {name}")
        loaded = ExportConfig.load(config, weights.name)
        export_bundle(weights, out, precision="fp32", config=loaded, overwrite=True)
    return out


def read(model: VisualRWKV, tokens: np.ndarray, question: str, state: State) -> np.ndarray:
    """Feed a picture, given as features [cells, D] float32, and a question; returns the logits [V] of the answer."""
    engine = model.engine
    encoded = engine.encode_with_features({"features": tokens[None]})
    if encoded.features is not None:
        for slot, array in engine.context(encoded.features).items():
            state.write(slot, array)
    seen = encoded.embeddings[0]
    logits = np.zeros(0, np.float32)
    for piece in turn_pieces(model.manifest.prompt, question, 1):
        if isinstance(piece, ImageSlot):
            logits = engine.advance(seen, state, (0, len(seen)))
        else:
            logits = engine.advance(model.tokenizer.encode(piece), state)
    return logits


def answer(model: VisualRWKV, tokens: np.ndarray, question: str, longest: int = LONGEST) -> str:
    """Greedy answer to a question about one picture, given as features [cells, D] float32."""
    state = model.engine.new_state()
    logits, said = read(model, tokens, question, state), list[int]()
    while len(said) < longest:
        said.append(int(logits.argmax()))
        if said[-1] in model.manifest.tokenizer.stop_ids:
            break
        logits = model.engine.advance(said[-1:], state)
    text = b"".join(model.tokenizer.token_bytes(i) for i in said if model.tokenizer.has_text(i))
    return text.decode(errors="replace").split(model.manifest.prompt.turn_end)[0].strip()


def judge(model: VisualRWKV, asked: Questions) -> np.ndarray:
    """Which answers are right, bool [questions]."""
    return np.array([answer(model, asked.tokens[r.scene], r.item.question) == r.item.answer for r in asked.rows])


def guess(rows: Sequence[Row]) -> np.ndarray:
    """Which answers are right, bool [questions], for one who always gives the most frequent answer of a kind."""
    often = {k: Counter(r.item.answer for r in rows if r.item.kind == k) for k in {r.item.kind for r in rows}}
    return np.array([often[r.item.kind].most_common(1)[0][0] == r.item.answer for r in rows])


def scores(right: np.ndarray, rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Accuracy with its 95 % interval (Wilson) over all questions and by kind."""
    kinds = np.array([r.item.kind for r in rows])
    out = {}
    for name in ("all", *sorted(set(kinds))):
        part = right if name == "all" else right[kinds == name]
        low, high = interval(int(part.sum()), len(part))
        out[name] = {"asked": len(part), "right": int(part.sum()), "accuracy": float(part.mean()),
                     "low": low, "high": high}  # fmt: skip
    return out


def paired(better: np.ndarray, worse: np.ndarray, scene: np.ndarray) -> tuple[float, float, float]:
    """Mean difference of two variants' answers to the same questions, and its 95 % interval, clustered by scene."""
    difference = better.astype(float) - worse.astype(float)
    mean, count = float(difference.mean()), len(difference)
    groups = np.unique(scene, return_inverse=True)[1]
    sums, sizes = np.bincount(groups, difference), np.bincount(groups)
    clusters = len(sums)
    spread = float(((sums - mean * sizes) ** 2).sum()) * clusters / max(1, clusters - 1)
    reach = Z * math.sqrt(spread) / count
    return mean, mean - reach, mean + reach


def verdict(low: float, high: float) -> str:
    """Whether a claim that a difference is positive holds on these scenes."""
    return "holds" if low > 0 else "does not hold" if high < 0 else "undecided"


def compare(claim: Claim, right: dict[str, np.ndarray], rows: Sequence[Row]) -> dict[str, Any]:
    """A claim with its measured difference, over all questions and by kind."""
    scene, kinds = np.array([r.scene for r in rows]), np.array([r.item.kind for r in rows])
    mean, low, high = paired(right[claim.better], right[claim.worse], scene)
    by_kind = {}
    for kind in sorted(set(kinds)):
        k = kinds == kind
        found = paired(right[claim.better][k], right[claim.worse][k], scene[k])
        by_kind[kind] = dict(zip(("difference", "low", "high"), found, strict=True))
    whole = {"difference": mean, "low": low, "high": high, "verdict": verdict(low, high)}
    return {**asdict(claim), **whole, "kinds": by_kind}


def measure(folder: Path, names: Sequence[str], asked: Questions, report: Report = print) -> dict[str, Any]:
    """Export and measure variants; returns what `benchmarks/results/ablation.json` holds besides the machine."""
    right = {}
    for name in names:
        with VisualRWKV.load(bundle_of(folder, name, report), threads=1) as model:
            right[name] = judge(model, asked)
        report(f"{name}: {right[name].mean():.1%} of {len(asked.rows)}")
    chosen = [c for c in CLAIMS if c.better in right and c.worse in right]
    return {
        "scenes": len(asked.tokens),
        "questions": len(asked.rows),
        "guess": {"title": "(always the most frequent answer)", **scores(guess(asked.rows), asked.rows)},
        "variants": {n: {"title": VARIANTS[n].title, **scores(r, asked.rows)} for n, r in right.items()},
        "claims": [compare(claim, right, asked.rows) for claim in chosen],
    }


def table(found: dict[str, Any]) -> str:
    """The results as text."""
    kinds = [k for k in next(iter(found["variants"].values())) if k not in ("title", "all")]
    lines = [f"{'variant':<48}{'all':>7}  {'95 % interval':<14}" + "".join(f"{k:>9}" for k in kinds)]
    for row in (*found["variants"].values(), found["guess"]):
        span = f"{row['all']['low'] * 100:.1f} - {row['all']['high'] * 100:.1f}"
        line = f"{row['title']:<48}{row['all']['accuracy']:>7.1%}  {span:<14}"
        lines.append(line + "".join(f"{row[k]['accuracy']:>9.1%}" for k in kinds))
    lines += ["", f"{'papers':<48}{'diff.':>7}  {'95 % interval':<14}  here"]
    for claim in found["claims"]:
        span = f"{claim['low'] * 100:+.1f} - {claim['high'] * 100:+.1f}"
        lines.append(f"{claim['says']:<48}{claim['difference'] * 100:>+7.1f}  {span:<14}  {claim['verdict']}")
    return "\n".join(lines)


def training_of(folder: Path) -> dict[str, Any]:
    """How long the variants in `folder` were trained, from the log's last line of each: steps, answers, minutes."""
    path = folder / "log.csv"
    out: dict[str, Any] = {}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                out[row["variant"]] = {"steps": int(row["step"]), "answers": int(row["answers"]),
                                       "minutes, all variants together": float(row["minutes"])}  # fmt: skip
    return out


def save(found: dict[str, Any], path: Path) -> None:
    """Write the figures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
