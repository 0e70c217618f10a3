"""Every question has exactly the answer that its words ask for."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.demo.questions import KINDS, WEIGHTS, ask
from apps.demo.scenes import scene_of
from tests.apps.demo.oracle import answer, matching


@settings(max_examples=400)
@given(st.integers(0, 2_000_000), st.sampled_from(sorted(KINDS)), st.sampled_from(("en", "zh")), st.integers())
def test_the_answer_is_true_and_the_mentions_end_where_they_should(
    seed: int, kind: str, language: str, draws: int
) -> None:
    scene = scene_of(seed)
    item = ask(scene, kind, random.Random(draws), language)
    assert item == ask(scene, kind, random.Random(draws), language)
    if item is None:
        return
    assert item.language == language
    assert item.kind == kind or (kind == "text" and item.kind in ("digit", "word"))
    assert item.answer == answer(scene, item.question)
    ends = [mention.end for mention in item.mentions]
    assert ends == sorted(set(ends)) and all(0 < end < len(item.question) for end in ends)
    for mention in item.mentions:
        said = item.question[: mention.end]
        if item.kind in ("digit", "word"):
            assert said.endswith(("digit", "number", "word", "数字", "单词"))
        elif item.kind == "what":
            assert said.endswith(("left", "right", "左上", "左下", "右上", "右下"))
        elif item.kind == "shape":
            assert mention.things == (next(t for t in scene.shapes if meant(said, t.colour)),)
        else:
            longest = max((said[start:] for start in range(len(said)) if readable(scene, said[start:])), key=len)
            assert list(mention.things) == matching(scene, longest)


def meant(said: str, colour: str) -> bool:
    from tests.apps.demo.oracle import CHINESE

    return said.endswith((colour, CHINESE[colour] + "物体"))


def readable(scene: object, words: str) -> bool:
    try:
        matching(scene, words)  # type: ignore[arg-type]
    except AssertionError:
        return False
    return words != "" and not words.startswith(" ")


def test_answers_cannot_be_guessed_from_the_question_alone() -> None:
    """Yes and no, and big and small, are about as frequent; no count is most of the counts."""
    told: dict[str, Counter[str]] = defaultdict(Counter)
    rng = random.Random(1)
    for seed in range(1500):
        scene = scene_of(seed)
        for kind in ("exist", "relation", "size", "count", "light"):
            item = ask(scene, kind, rng, "en")
            if item:
                told[kind][item.answer] += 1
    for kind in ("exist", "relation"):
        assert 0.4 < told[kind]["yes"] / told[kind].total() < 0.6
    assert 0.35 < told["size"]["big"] / (told["size"]["big"] + told["size"]["small"]) < 0.65
    assert max(told["count"].values()) < 0.45 * told["count"].total()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_kind_has_several_phrasings(language: str) -> None:
    rng = random.Random(2)
    for kind in KINDS:
        found = {item.question for seed in range(150) if (item := ask(scene_of(seed), kind, rng, language)) is not None}
        assert len(found) >= 2, kind
    assert set(WEIGHTS) == set(KINDS)
