"""Which option an answer to a multiple-choice question means.

MMBench first looks for one letter on its own, then for the text of one option; only what is left is read more
liberally, by where letters stand. ScienceQA wants the letter, alone or with a full stop behind it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

LETTERS = "ABCDE"
# What may stand around a letter that is a word of its own, in the order in which MMBench tries it.
_AROUND = (
    ("", ""), ("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."), ("(", ")"), ("(", ")."),
    (":", ""), (":", ","), (":", "."), (":", ")"), (":", ")."),
)  # fmt: skip
_NAMED = ("answer", "correct answer", "best answer", "correct option", "best option", "choice", "correct choice")
_PHRASES = (
    *(f"{the}{what} is" for the in ("the ", "") for what in _NAMED),
    *("i choose", "i select", "i pick", "my answer is", "my choice is", "答案是", "答案为", "选"),
)
_EDGES = (",", ".", "!", "?", ";", ":", "'", '"')
_SAID_OUT = re.compile(r"The answer is ([A-Z]).")


def mmbench_choice(answer: str, options: Mapping[str, str]) -> str:
    """Return the letter of the option that an answer to MMBench means, or "" if none can be told.

    Args:
        answer: what the model said.
        options: text by letter, only those that the question has.
    """
    return _lone_letter(answer) or _named_option(answer, options) or _placed_letter(answer, sorted(options))


def _lone_letter(answer: str) -> str:
    words = answer.split()
    for before, after in _AROUND:
        found = [letter for letter in LETTERS if before + letter + after in words]
        if len(found) != 1:
            continue
        if not before + after and "A" in words and len(words) > 3:
            continue  # "A" is probably an article
        return found[0]
    return ""


def _named_option(answer: str, options: Mapping[str, str]) -> str:
    said = answer.lower()
    named = [letter for letter in options if str(options[letter]).lower() in said]
    return named[0] if len(named) == 1 else ""


def _placed_letter(answer: str, letters: list[str]) -> str:
    """The letter in the most telling place; of equal places, the last."""
    text = answer.strip()
    for mark in _EDGES:
        text = text.strip(mark)
    text = f" {text} "
    inside, places = text.strip(), list[tuple[int, int, str]]()
    if not inside:
        return ""
    lower = text.lower()
    for letter in letters:
        if inside[0] == letter and not inside[1:2].isalpha():
            places.append((10, 0, letter))
        if inside[-1] == letter and not inside[-2:-1].isalpha():
            places.append((9, len(text) - 1, letter))
        for phrase in _PHRASES:
            if phrase in lower and (at := text.find(letter, lower.find(phrase) + len(phrase))) >= 0:
                places.append((7, at, letter))
        for worth, form in (
            (6, f"({letter})"),
            (5, f"{letter}."),
            (4, f"{letter}:"),
            (3, f"{letter})"),
            (2, f"{letter} "),
        ):
            if form in text:
                places.append((worth, text.rfind(form), letter))
    if not places:
        places = [(0, text.rfind(letter), letter) for letter in letters if letter in text]
    return max(places, key=lambda place: place[:2])[2] if places else ""


def scienceqa_choice(answer: str) -> str:
    """Return the letter that an answer to ScienceQA gives, or "": the letter alone, or a capital and a full stop."""
    said = answer.strip()
    if len(said) == 1:
        return said.upper()
    return said[0] if len(said) >= 2 and said[0].isupper() and said[1] == "." else ""


def scienceqa_choice_official(answer: str) -> str:
    """Return the letter by the rule of the LLaVA and VisualRWKV scripts: "B", "B. ...", or "The answer is B."."""
    if len(answer) == 1 and answer in LETTERS:
        return answer
    if len(answer) >= 3 and answer[0] in LETTERS and answer[1:3] == ". ":
        return answer[0]
    said_out = _SAID_OUT.findall(answer)
    return said_out[0] if len(said_out) == 1 else ""
