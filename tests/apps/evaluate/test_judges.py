"""Figures of whole benchmarks, worked by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from apps.evaluate.gqa import exact_worth, gqa_official_worth
from apps.evaluate.intervals import figures
from apps.evaluate.judges import Judge, MmBench, Mme, Pope, mme_answer, pope_answer
from apps.evaluate.sample import Sample


def sample(reference: object, tag: str = "", group: str = "g") -> Sample:
    return Sample("k", "?", (), reference, "", group, (tag,) if tag else ())


def measured(judge: Judge, groups: Sequence[tuple[Sequence[Sample], Sequence[str]]]) -> dict[str, float]:
    return {name: f.value for name, f in figures(judge, [judge.judge(s, a) for s, a in groups]).items()}


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Yes", "yes"),
        ("No", "no"),
        ("no, there is not", "no"),
        ("There is not. Yes it is", "no"),
        ("Yes. No.", "yes"),  # only the first sentence counts
        ("NO", "yes"),  # written so, it is none of the words
        ("nothing", "yes"),
        ("", "yes"),
    ],
)
def test_pope_reads_answers(text: str, read: str) -> None:
    assert pope_answer(text) == read


def test_pope() -> None:
    said = {
        "random": [("yes", "Yes"), ("no", "yes"), ("no", "no"), ("yes", "maybe")],
        "popular": [("yes", "no"), ("no", "no")],
    }
    groups = [([sample(truth, tag)], [answer]) for tag, pairs in said.items() for truth, answer in pairs]
    found = measured(Pope(), groups)
    assert found["accuracy"] == pytest.approx(3 / 6)
    assert found["precision"] == pytest.approx(1 / 2) and found["recall"] == pytest.approx(1 / 2)
    assert found["f1"] == pytest.approx(1 / 2) and found["yes_ratio"] == pytest.approx(2 / 6)
    # Officially "maybe" is a yes: random has 2 hits, 1 false alarm, no miss; popular has no hit at all.
    assert found["f1_official"] == pytest.approx((2 * (2 / 3) * 1 / (2 / 3 + 1) + 0) / 2)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Yes", "yes"),
        ("yes.", "yes"),
        ("Y", "yes"),
        ("n", "no"),
        ("no way", "no"),
        ("not", "no"),
        ("I say yes", "other"),
        ("know", "no"),
        ("", "other"),
        ("x", "other"),
        ("eyes", "yes"),
    ],
)
def test_mme_reads_answers(text: str, read: str) -> None:
    assert mme_answer(text) == read


def test_mme() -> None:
    def pair(category: str, first: str, second: str) -> tuple[list[Sample], list[str]]:
        return [sample("yes", category), sample("no", category)], [first, second]

    groups = [
        pair("existence", "yes", "no"),  # accuracy 100, accuracy+ 100
        pair("existence", "yes", "yes"),  # 50 and 0
        pair("OCR", "no", "yes"),  # 0 and 0
        pair("code_reasoning", "yes", "no"),
    ]
    found = measured(Mme(), groups)
    assert found["perception"] == pytest.approx((200 + 50) / 2 + 0)
    assert found["cognition"] == pytest.approx(200)
    assert found["accuracy"] == pytest.approx(5 / 8) and found["accuracy_plus"] == pytest.approx(2 / 4)


def test_mmbench_wants_every_order() -> None:
    def orders(*truths: str) -> list[Sample]:
        return [sample({"answer": truth, "options": {"A": "cat", "B": "dog"}}) for truth in truths]

    found = measured(
        MmBench(), [(orders("A", "B"), ["A", "B"]), (orders("A", "B"), ["A", "A"]), (orders("A"), ["the cat"])]
    )
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["accuracy_single"] == pytest.approx(4 / 5)


def test_gqa() -> None:
    assert exact_worth(" T-Shirt!", "tshirt") == 1 and exact_worth("the dog", "dog") == 0
    assert gqa_official_worth("Dog.", "dog") == 1 and gqa_official_worth("T-shirt", "tshirt") == 0
