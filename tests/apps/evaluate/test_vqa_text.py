"""VQA's soft accuracy and its normalisation, worked by hand from the published rules."""

from __future__ import annotations

import pytest

from apps.evaluate.vqa_text import normalise_textvqa, normalise_vqa, soft_accuracy


@pytest.mark.parametrize(
    ("people", "accuracy"),
    [
        (["yes"] * 10, 1.0),
        (["no"] * 10, 0.0),
        # One of ten: for the nine others it is 1/3, for the one itself nobody else agrees.
        (["yes"] + ["no"] * 9, 9 * (1 / 3) / 10),
        # Two: 8 people see two others, 2 people see one.
        (["yes"] * 2 + ["no"] * 8, (8 * 2 / 3 + 2 * 1 / 3) / 10),
        # Three: 7 see three, 3 see two. Four or more: full.
        (["yes"] * 3 + ["no"] * 7, (7 * 1 + 3 * 2 / 3) / 10),
        (["yes"] * 4 + ["no"] * 6, 1.0),
        ([], 0.0),
        (["yes"], 0.0),  # nobody else
    ],
)
def test_soft_accuracy(people: list[str], accuracy: float) -> None:
    assert soft_accuracy("yes", people) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Dog", "dog"),
        ("two", "2"),
        ("none", "0"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),  # only one apostrophe may be forgotten
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("t-shirt", "t shirt"),
        ("t -shirt", "t shirt"),
        ("well, yes", "well yes"),
        ("1,000", "1000"),
        ("1,000 t-shirts", "1000 tshirts"),  # a comma in a number takes every mark out without a space
        ("3.5", "3.5"),
        ("U.S.A.", "usa"),
        ("end.", "end"),
        ("new\nline\ttab", "new line tab"),
        ("?", ""),
        ("", ""),
    ],
)
def test_vqa_normalisation(text: str, normal: str) -> None:
    assert normalise_vqa(text) == normal


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("McDonald's", "mcdonald 's"),
        ("dog's", "dog 's"),
        ("1,000", "1000"),
        ("10,5 t-shirts", "105 t shirts"),  # the comma is gone before the marks are looked at
        ("What?", "what"),
        ("it's", "it 's"),
    ],
)
def test_textvqa_normalisation(text: str, normal: str) -> None:
    assert normalise_textvqa(text) == normal
