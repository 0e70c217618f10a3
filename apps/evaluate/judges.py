"""What an answer is worth, by the public definition of each benchmark.

A judge sees the questions of one group (a picture, a pair, a rotated question) together. It returns a score for each,
and counts that are added up over groups; the benchmark's figures are functions of the sums. That makes intervals and
differences possible for every figure: groups are drawn again, sums and figures follow (`apps.evaluate.intervals`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from apps.evaluate.letters import mmbench_choice
from apps.evaluate.sample import Sample

Sums = Mapping[str, np.ndarray]
"""Counts summed over groups, by name; arrays of one shape, one entry for each time the groups were drawn."""

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


@dataclass(frozen=True)
class Verdict:
    """The worth of one group's answers."""

    scores: list[float]  # of each question, 0 to 1
    counts: dict[str, float]  # to be summed over groups


class Judge(ABC):
    """One benchmark's metric. `headline` is the figure that papers give; `full` is its largest value."""

    headline = "accuracy"
    full = 1.0

    @abstractmethod
    def judge(self, group: Sequence[Sample], answers: Sequence[str]) -> Verdict:
        """Return the worth of the answers to the questions of one group."""

    def figures(self, sums: Sums) -> dict[str, np.ndarray]:
        """Return the figures, by name."""
        return {"accuracy": _ratio(sums, "right", "asked")}


class EachAlone(Judge):
    """The mean of what every answer is worth by itself."""

    def __init__(self, *worth: Callable[[str, Any], float], names: Sequence[str] = ("accuracy",)) -> None:
        """Take functions from answer and reference to 0 .. 1, and the names of their figures, the headline's first."""
        self._worth, self._names = worth, tuple(names)
        self.headline = self._names[0]

    def judge(self, group: Sequence[Sample], answers: Sequence[str]) -> Verdict:
        """Score every answer of the group by every function; the first gives the scores."""
        table = [[worth(a, s.reference) for s, a in zip(group, answers, strict=True)] for worth in self._worth]
        counts = {name: sum(row) for name, row in zip(self._names, table, strict=True)}
        return Verdict(table[0], {**counts, "asked": len(group)})

    def figures(self, sums: Sums) -> dict[str, np.ndarray]:
        """Return the means."""
        return {name: _ratio(sums, name, "asked") for name in self._names}


class Pope(Judge):
    """POPE: is an object there? The reference is "yes" or "no", the first tag the category of the question.

    An answer counts as it is, as lmms-eval has it; `f1` is over all questions. `f1_official` is what papers give: the
    mean over the categories of the F1 score, with everything that is no "no" read as "yes".
    """

    headline = "f1_official"

    def judge(self, group: Sequence[Sample], answers: Sequence[str]) -> Verdict:
        """Count hits and misses of both readings."""
        counts: dict[str, float] = {}
        scores = []
        for sample, answer in zip(group, answers, strict=True):
            truth, said, read = sample.reference, answer.strip().lower(), pope_answer(answer)
            scores.append(float(said == truth))
            category = sample.tags[0] if sample.tags else "all"
            for name, value in (
                ("asked", 1), ("right", said == truth), ("said_yes", said == "yes"),
                ("tp", said == "yes" == truth), ("fp", said == "yes" != truth), ("fn", said == "no" != truth),
                (f"{category}/tp", read == "yes" == truth), (f"{category}/fp", read == "yes" != truth),
                (f"{category}/fn", read == "no" != truth),
            ):  # fmt: skip
                counts[name] = counts.get(name, 0) + value
        return Verdict(scores, counts)

    def figures(self, sums: Sums) -> dict[str, np.ndarray]:
        """Return accuracy, precision, recall, F1 and the share of "yes", and the official F1."""
        precision, recall, f1 = _f1(sums["tp"], sums["fp"], sums["fn"])
        categories = sorted({name.split("/")[0] for name in sums if "/" in name})
        official = [_f1(*(sums[f"{c}/{kind}"] for kind in ("tp", "fp", "fn")))[2] for c in categories]
        return {
            "f1_official": np.mean(official, axis=0),
            "accuracy": _ratio(sums, "right", "asked"),
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "yes_ratio": _ratio(sums, "said_yes", "asked"),
        }


def pope_answer(text: str) -> str:
    """Read an answer as POPE's and LLaVA's scripts do: "no" if its first sentence has No, no or not, else "yes"."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


class Mme(Judge):
    """MME: two questions about each picture, one to be answered with yes and one with no.

    A category's score is the accuracy over questions plus the accuracy over pictures with both right ("accuracy+"),
    in percent, 200 at most. The reference is "yes" or "no", the first tag the category.
    """

    headline = "perception"
    full = 2000.0

    def judge(self, group: Sequence[Sample], answers: Sequence[str]) -> Verdict:
        """Score one picture's pair."""
        scores = [float(mme_answer(a) == s.reference) for s, a in zip(group, answers, strict=True)]
        category = group[0].tags[0]
        right, both = sum(scores) / len(scores), float(all(scores))
        return Verdict(
            scores,
            {
                f"{category}/score": 100 * (right + both),
                f"{category}/pairs": 1,
                "right": right,
                "both": both,
                "pairs": 1,
            },
        )

    def figures(self, sums: Sums) -> dict[str, np.ndarray]:
        """Return the sums over the perception and the cognition categories, and both accuracies."""
        zero = np.zeros_like(sums["pairs"])
        scores = {
            c: _ratio(sums, f"{c}/score", f"{c}/pairs") for c in (*PERCEPTION, *COGNITION) if f"{c}/pairs" in sums
        }
        return {
            "perception": sum((scores[c] for c in PERCEPTION if c in scores), zero),
            "cognition": sum((scores[c] for c in COGNITION if c in scores), zero),
            "accuracy": _ratio(sums, "right", "pairs"),
            "accuracy_plus": _ratio(sums, "both", "pairs"),
        }


def mme_answer(text: str) -> str:
    """Read an answer as MME's script does: yes, no or other, from its first four letters."""
    said = text.lower().strip().replace(".", "")
    if len(said) == 1:
        return {"y": "yes", "n": "no"}.get(said, "other")
    return "yes" if "yes" in said[:4] else "no" if "no" in said[:4] else "other"


class MmBench(Judge):
    """MMBench's circular evaluation: a question is right if it is answered rightly with its options in every order.

    The reference is {"answer": letter, "options": {letter: text}}. `accuracy_single` is over all orders one by one.
    """

    def judge(self, group: Sequence[Sample], answers: Sequence[str]) -> Verdict:
        """Score the orders of one question."""
        scores = [
            float(mmbench_choice(answer, sample.reference["options"]) == sample.reference["answer"])
            for sample, answer in zip(group, answers, strict=True)
        ]
        return Verdict(scores, {"right": float(all(scores)), "asked": 1, "single": sum(scores), "orders": len(scores)})

    def figures(self, sums: Sums) -> dict[str, np.ndarray]:
        """Return both accuracies."""
        return {"accuracy": _ratio(sums, "right", "asked"), "accuracy_single": _ratio(sums, "single", "orders")}


def _ratio(sums: Sums, above: str, below: str) -> np.ndarray:
    return _divide(sums[above], sums[below])


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros_like(above, dtype=np.float64), where=below != 0)


def _f1(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    precision, recall = _divide(tp, tp + fp), _divide(tp, tp + fn)
    return precision, recall, _divide(2 * precision * recall, precision + recall)
