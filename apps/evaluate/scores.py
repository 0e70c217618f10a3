"""From answers to figures, and from two bundles' answers to what sets them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from apps.evaluate.answers import Answer
from apps.evaluate.intervals import Difference, Figure, difference, figures
from apps.evaluate.judges import Verdict
from apps.evaluate.sample import Problem
from apps.evaluate.tasks import Plan, groups_of


@dataclass
class Score:
    """What one bundle scored on one task."""

    task: str
    bundle: str
    headline: str
    full: float  # the headline's largest value
    questions: int = 0  # scored
    unscored: int = 0  # answered, but the data holds no answer to compare with
    figures: dict[str, Figure] = field(default_factory=dict)
    tags: dict[str, tuple[float, int]] = field(default_factory=dict)  # mean score and questions
    published: float | None = None
    cut: int = 0  # answers that ran into the token limit
    bad: int = 0  # rows that are not scored
    problems: list[Problem] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)  # by question
    verdicts: dict[str, Verdict] = field(default_factory=dict)  # by group


def score(plan: Plan, bundle: str, answers: Mapping[str, Answer], problems: Sequence[Problem] = ()) -> Score:
    """Judge what a bundle said.

    Args:
        plan: what was asked.
        bundle: its name.
        answers: by question.
        problems: met while asking.
    """
    judge = plan.task.judge
    found = Score(plan.task.name, bundle, judge.headline, judge.full)
    found.problems = [*plan.problems, *problems]
    found.bad = len(found.problems)
    broken = {problem.group for problem in problems} if plan.task.whole_groups else set()
    total: dict[str, list[float]] = {}
    for name, group in groups_of(plan.samples).items():
        ready = [sample for sample in group if sample.key in answers]
        judged = [sample for sample in ready if sample.reference is not None]
        found.unscored += len(ready) - len(judged)
        if not judged or (plan.task.whole_groups and (name in broken or len(judged) < len(group))):
            continue
        verdict = judge.judge(judged, [answers[sample.key].text for sample in judged])
        found.verdicts[name] = verdict
        found.cut += sum(answers[sample.key].finish == "length" for sample in judged)
        for sample, worth in zip(judged, verdict.scores, strict=True):
            found.scores[sample.key] = worth
            for tag in sample.tags:
                total.setdefault(tag, []).append(worth)
    found.questions = len(found.scores)
    found.tags = {tag: (sum(worths) / len(worths), len(worths)) for tag, worths in sorted(total.items())}
    if found.verdicts:
        found.figures = figures(judge, list(found.verdicts.values()))
    return found


def apart(plan: Plan, first: Score, second: Score) -> Difference | None:
    """Compare two scores over the groups that both were judged on in full; None where there is none."""
    common = [
        name
        for name, verdict in first.verdicts.items()
        if name in second.verdicts and len(second.verdicts[name].scores) == len(verdict.scores)
    ]
    if not common:
        return None
    return difference(
        plan.task.judge, [first.verdicts[name] for name in common], [second.verdicts[name] for name in common]
    )
