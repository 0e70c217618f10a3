"""The template: every official case, text and ids, and the end of an answer in every form."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.prompt import (
    ImageSlot,
    Turn,
    clean,
    closing_ids,
    conversation_pieces,
    tokenise,
    turn_pieces,
)
from runtime.spec import PromptSpec
from runtime.tokenizer import Tokenizer

V7 = PromptSpec(user="User: ", assistant="Assistant:", turn_end="\n\n", image_position="first", image_separator="\n")


def turns_of(case: dict[str, Any]) -> list[Turn]:
    """The case's turns; its pictures are counted by their placeholders."""
    texts = case["turns"]
    return [
        Turn(question, question.count("<image>"), answer or None)
        for question, answer in zip(texts[::2], texts[1::2], strict=True)
    ]


def test_every_official_case(tokenizer: Tokenizer, golden: Path) -> None:
    cases = json.loads((golden / "prompts.json").read_text(encoding="utf-8"))["cases"]
    assert len(cases) >= 36
    seen = set()
    for case in cases:
        position = case.get("image_position", "first")
        seen.add(position)
        prompt = replace(V7, image_position="first" if position == "none" else position)
        pieces = conversation_pieces(prompt, turns_of(case))
        text = "".join("<image>" if isinstance(p, ImageSlot) else p for p in pieces)
        assert text == case["text"]
        image = [case["image_token_id"]] * (case.get("num_token_per_image") or 1)
        ids = [i for p in tokenise(tokenizer, pieces) for i in (image if isinstance(p, ImageSlot) else p)]
        assert ids == case["ids"]
    assert seen == {"first", "middle", "last", "none"}


def test_slots_are_numbered_per_turn_and_through_a_conversation() -> None:
    assert turn_pieces(V7, "What?", 2) == [
        "User: ",
        ImageSlot(0),
        "\n",
        ImageSlot(1),
        "\nWhat?\n\n",
        "Assistant:",
    ]
    both = conversation_pieces(V7, [Turn("a", 2, "b"), Turn("c", 1)])
    assert [p.index for p in both if isinstance(p, ImageSlot)] == [0, 1, 2]
    assert turn_pieces(V7, "What?", 0) == ["User: What?\n\n", "Assistant:"]


@given(st.text(), st.integers(1, 4))
def test_pictures_first_do_not_depend_on_the_question(question: str, images: int) -> None:
    assert turn_pieces(V7, question, images)[: 2 * images] == turn_pieces(V7, "", images)[: 2 * images]


@given(
    st.sampled_from([V7, replace(V7, image_position="middle"), replace(V7, image_position="last")]), st.integers(0, 4)
)
def test_pieces_already_placed_are_left_out(prompt: PromptSpec, images: int) -> None:
    whole = turn_pieces(prompt, "What?", images)
    for placed in range(len(whole) + 1):
        assert turn_pieces(prompt, "What?", images, placed=placed) == whole[placed:]


def test_placeholder_is_text_without_a_picture() -> None:
    assert turn_pieces(V7, "an <image> tag", 0)[0] == "User: an <image> tag\n\n"
    assert turn_pieces(V7, "an <image> tag", 1)[2] == "\nan  tag\n\n"


@given(st.text(st.one_of(st.sampled_from("\n\r \t\u2028a。"), st.characters())))
def test_clean_text_cannot_end_a_turn(text: str) -> None:
    cleaned = clean(text)
    assert "\n\n" not in cleaned
    assert cleaned == cleaned.strip() == clean(cleaned)
    assert "".join(cleaned.split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("answer", "rest"),
    [
        ([], [261]),  # nothing was said
        ([300, 21417, 261], [261]),  # the usual end: a stop id, not fed yet
        ([300, 21417, 0], [261]),  # end of text belongs to no transcript
        ([300, 261, 0], []),  # nothing is missing (stops were ignored)
        ([300, 21417], [21417, 261]),  # cut by length
        ([300, 21417, 11], [261]),  # cut between two line ends
        ([300, 21417, 47], [47, 261]),
        ([10080], [28329, 11]),  # "。": as training tokenised it
        ([28329, 11], [11]),  # "。\n" and "\n": the end without id 261
        ([28329], [28329, 11]),
        ([300, 3328], [261]),  # one line end too many
        ([300, 3329], [261]),  # a space too many
        ([28329, 261], [11]),
        ([300, 229], [229, 261]),  # half a character
        ([300, 65000, 65534], [261]),  # an id without text
    ],
)
def test_closing(tokenizer: Tokenizer, answer: list[int], rest: list[int]) -> None:
    assert closing_ids(tokenizer, V7, answer) == rest


@given(st.text(min_size=1))
def test_a_cut_answer_closes_as_its_whole_message_would(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(clean(text))
    closed = [*ids[:-1], *closing_ids(tokenizer, V7, ids)]
    assert tokenizer.decode(closed) == clean(text) + "\n\n"
