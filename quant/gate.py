"""The gate: what a quantised bundle loses against its float bundle, judged, told and written into it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from quant.apply import with_file
from quant.compare import Stage, compare
from quant.conversation import Gallery
from quant.limits import ENOUGH, LIMITS, Limits
from quant.task import Item, Result, answer_both
from runtime.bundle import Bundle
from runtime.errors import ParityError

QUALITY_FILE = "quality.json"
DRIFT = 1_000  # tokens of the long conversation unless told
_SMALL = 4e8  # bytes of float weights, up to which that many are compared; of larger models fewer, down to `_LEAST`
_LEAST = 250

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Quality:
    """What was compared, and what of it is past the limits."""

    precision: str
    stages: tuple[Stage, ...]
    task: Result | None = None

    @property
    def limits(self) -> Limits:
        """The limits of this precision."""
        return LIMITS[self.precision]

    def failures(self) -> list[str]:
        """Return a line for everything past its limit."""
        limits, lines = self.limits, []
        conversation = [stage for stage in self.stages if stage.name != "prompts"]
        for stage in self.stages:
            for name, error in (("logits", stage.logits), ("state", stage.state)):
                if not error <= limits.logits:
                    lines.append(f"{stage.name}: {name} {error:.2%}, limit {limits.logits:.0%}")
            if stage.sure >= ENOUGH and stage.sure_agreement < limits.agreement:
                lines.append(f"{stage.name}: agreement {stage.sure_agreement:.2%}, limit {limits.agreement:.1%}")
        for stage in conversation[1:]:
            bound = limits.growth * conversation[0].logits
            if stage.logits > bound:
                lines.append(
                    f"{stage.name}: logits {stage.logits:.2%}, {limits.growth:g} times {bound / 2:.2%} allowed"
                )
        if self.task is not None:
            if self.task.lost > limits.answers:
                lines.append(f"task: {self.task.lost:.2%} of the answers lost, limit {limits.answers:.1%}")
            if self.task.sure >= ENOUGH and self.task.sure_agreement < limits.agreement:
                lines.append(f"task: agreement {self.task.sure_agreement:.2%}, limit {limits.agreement:.1%}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON takes it, figures to three digits."""
        task = asdict(self.task) if self.task else None
        data = {
            "precision": self.precision,
            "limits": asdict(self.limits),
            "stages": [asdict(stage) for stage in self.stages],
            "task": task,
        }
        rounded: dict[str, Any] = _rounded(data)
        return rounded


def gate(
    exact: Bundle,
    bundle: Bundle,
    gallery: Gallery,
    *,
    drift: int | None = None,
    task: list[Item] | None = None,
    threads: int | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Quality:
    """Compare a quantised bundle with its float bundle and judge it.

    Args:
        exact: the float bundle.
        bundle: the quantised one.
        gallery: pictures for the conversations.
        drift: tokens of the long conversation (default: `default_drift`); 0 leaves it out.
        task: questions with right answers.
        threads: compute threads.
        progress: called with (stage, done, total).

    Raises:
        ParityError: something is past its limit (`quant.limits`); the message names all of it.
    """
    tokens = default_drift(exact) if drift is None else drift
    stages = compare(exact, bundle, gallery, tokens, threads=threads, progress=progress)
    result = answer_both(exact, bundle, task, threads=threads, progress=progress) if task else None
    quality = Quality(bundle.manifest.precision, tuple(stages), result)
    if failures := quality.failures():
        table = "\n    ".join(failures)
        raise ParityError(
            f"the {quality.precision} bundle loses too much against its float model:\n    {table}",
            wanted="every figure within quant/limits.py",
            hint="--calibrate with pictures of your own, python -m quant try, or a higher precision",
        )
    return quality


def keep(bundle: Bundle, quality: Quality) -> Bundle:
    """Write the figures into the bundle, as a file that its manifest lists."""
    text = json.dumps(quality.to_dict(), indent=1) + "\n"
    bundle.file(QUALITY_FILE).write_text(text, encoding="utf-8")
    return with_file(bundle, QUALITY_FILE)


def default_drift(exact: Bundle) -> int:
    """Return how long a conversation an export compares: fewer tokens of big models, the same on every machine."""
    return int(min(DRIFT, max(_LEAST, DRIFT * _SMALL / exact.manifest.budget.weights)))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.3g}") if isinstance(value, float) else value
