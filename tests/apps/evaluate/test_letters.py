"""Which option an answer means."""

from __future__ import annotations

import pytest

from apps.evaluate.letters import mmbench_choice, scienceqa_choice, scienceqa_choice_official

OPTIONS = {"A": "a red ball", "B": "a cat", "C": "the sky", "D": "7"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("(B).", "B"),
        ("Answer: B", "B"),
        (":B", "B"),
        ("the answer is C", "C"),
        ("A cat", "A"),  # three words or fewer: the letter wins over the text
        ("There is A cat here", "B"),  # an article: the option's text decides
        ("it is a cat", "B"),
        ("It is 7 o'clock", "D"),
        ("a cat under the sky", ""),  # two options are named, and no letter
        ("A or B", "A"),  # two letters: where an answer begins tells most
        ("A, not B, so A.", "A"),
        ("C because the others are wrong", "C"),
        ("My answer is B because it is not A: no", "B"),
        ("选B", "B"),
        ("b", ""),  # small letters are words
        ("", ""),
        ("nothing", ""),
        ("CAT", "B"),  # as text, though capitals are in it
    ],
)
def test_mmbench(answer: str, letter: str) -> None:
    options = {**OPTIONS, "B": "cat"} if answer == "CAT" else OPTIONS
    assert mmbench_choice(answer, options) == letter


def test_only_options_that_the_question_has() -> None:
    assert mmbench_choice("it may be D: who knows", {"A": "x1", "B": "y2"}) == "D"  # a letter alone is taken as said
    assert mmbench_choice("(D)D", {"A": "x1", "B": "y2"}) == ""  # but not looked for where it is no word


@pytest.mark.parametrize(
    ("answer", "lmms", "official"),
    [
        ("B", "B", "B"),
        ("b", "B", ""),
        ("B.", "B", ""),
        ("B. because", "B", "B"),
        ("The answer is B.", "", "B"),
        ("The answer is B. The answer is C.", "", ""),
        (" B ", "B", ""),
        ("B)", "", ""),
        ("", "", ""),
        ("F", "F", ""),
    ],
)
def test_scienceqa(answer: str, lmms: str, official: str) -> None:
    assert (scienceqa_choice(answer), scienceqa_choice_official(answer)) == (lmms, official)
