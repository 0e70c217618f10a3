"""What a run prints and writes: a table for people, JSON for programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from apps.evaluate.intervals import Difference, Figure
from apps.evaluate.run import Pace
from apps.evaluate.scores import Score

LISTED = 10  # problems, of each task


class Progress:
    """One line that is written over, or one line in a while where the output is a file."""

    def __init__(self, label: str, out: TextIO | None = None) -> None:
        """Take what stands before the figures."""
        self._label, self._out = label, out or sys.stderr
        self._terminal = self._out.isatty()
        self._next = 0.0

    def __call__(self, pace: Pace) -> None:
        """Show a pace, not too often."""
        done = pace.before + pace.done
        last, now = done >= pace.total, time.monotonic()
        if now < self._next and not last:
            return
        self._next = now + (0.5 if self._terminal else 15)
        left = (pace.total - done) / pace.questions_per_s if pace.questions_per_s else 0.0
        text = f"{self._label}: {done} of {pace.total}, {pace.questions_per_s:.1f} questions/s"
        text += f", {len(pace.problems)} bad" if pace.problems else ""
        text += "" if last else f", {_clock(left)} left"
        print(
            f"\r{text:<78}" if self._terminal else text, end="" if self._terminal else "\n", file=self._out, flush=True
        )

    def close(self) -> None:
        """End the line."""
        if self._terminal:
            print(file=self._out)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def shown(value: float, full: float) -> str:
    """Return a figure as papers print it: in percent, or in points."""
    return f"{value:.1f}" if full > 1 else f"{100 * value:.2f}"


def table(
    scores: Sequence[Score], paces: Mapping[tuple[str, str], Pace], apart: Mapping[tuple[str, str], Difference]
) -> str:
    """Return one line for each task and bundle, the differences from a task's first bundle behind the others."""
    rows = [("task", "bundle", "figure", "score", "95 % interval", "paper", "questions", "tokens/s", "difference")]
    for found in scores:
        figure, pace = found.figures.get(found.headline), paces.get((found.task, found.bundle))
        gap = apart.get((found.task, found.bundle))
        rows.append(
            (
                found.task,
                found.bundle,
                found.headline,
                shown(figure.value, found.full) if figure else "none",
                f"{shown(figure.low, found.full)} - {shown(figure.high, found.full)}" if figure else "",
                "" if found.published is None else f"{found.published:g}",
                str(found.questions),
                f"{pace.tokens_per_s:.1f}" if pace and pace.done else "",
                difference_text(gap, found.full) if gap else "",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def difference_text(gap: Difference, full: float) -> str:
    """Return a difference with its interval, and McNemar's p where there is one."""
    scale, digits = (1.0, 1) if full > 1 else (100.0, 2)
    low, high = (f"{scale * value:+.{digits}f}" for value in (gap.low, gap.high))
    text = f"{scale * gap.value:+.{digits}f} [{low}, {high}]"
    return text if gap.p is None else f"{text}, McNemar p = {gap.p:.3g}"


def details(found: Score) -> str:
    """Return what stands below the table for one task and bundle: other figures, what was not scored, and why."""
    lines = []
    others = {name: figure for name, figure in found.figures.items() if name != found.headline}
    if others:
        parts = (f"{name} {shown(f.value, _full(name, found))}" for name, f in others.items())
        lines.append("  " + ", ".join(parts))
    if found.unscored:
        lines.append(f"  {found.unscored} answers are not scored: the data holds no answers (--submit writes a file)")
    if found.cut:
        lines.append(f"  {found.cut} answers ran into the limit of tokens")
    if found.bad:
        lines.append(f"  {found.bad} rows are not scored:")
        lines += [f"    {p.where}: {p.what.splitlines()[0]}" for p in found.problems[:LISTED]]
        lines += [f"    and {found.bad - LISTED} more (all are in the JSON)"] if found.bad > LISTED else []
    return "\n".join([f"{found.task}, {found.bundle}:", *lines]) if lines else ""


def _full(name: str, found: Score) -> float:
    return found.full if name in (found.headline, "cognition") else 1.0


def as_json(found: Score, pace: Pace | None, gap: Difference | None) -> dict[str, Any]:
    """Return a score as JSON holds it; figures as they are, not in percent."""
    data: dict[str, Any] = {
        "task": found.task,
        "bundle": found.bundle,
        "headline": found.headline,
        "questions": found.questions,
        "unscored": found.unscored,
        "cut": found.cut,
        "figures": {name: _figure(figure) for name, figure in found.figures.items()},
        "tags": {tag: {"mean": mean, "questions": count} for tag, (mean, count) in found.tags.items()},
        "published": found.published,
        "problems": [{"where": p.where, "what": p.what} for p in found.problems],
    }
    if pace is not None:
        data["run"] = {
            "questions": pace.done,
            "seconds": pace.seconds,
            "questions_per_s": pace.questions_per_s,
            "tokens_per_s": pace.tokens_per_s,
            "tokens": pace.tokens,
            "prompt_tokens": pace.prompt_tokens,
        }
    if gap is not None:
        data["difference"] = {
            "method": "paired cluster bootstrap; McNemar's exact test",
            **{name: getattr(gap, name) for name in ("value", "low", "high", "only_first", "only_second", "p")},
        }
    return data


def _figure(figure: Figure) -> dict[str, float]:
    return {"value": figure.value, "low": figure.low, "high": figure.high}
