"""How VQA-v2 and TextVQA make answers comparable: punctuation, articles, number words, contractions.

Source: the normalisation that the VQA evaluation publishes, in the form that the EvalAI server and the scripts of
LLaVA and VisualRWKV use; its oddities are part of the metric and are kept (they are noted where they stand).
"""

from __future__ import annotations

import re
from statistics import mean

ARTICLES = frozenset({"a", "an", "the"})
_COUNT = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(_COUNT)}}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
_PERIOD = re.compile(r"\.(?!\d)")
PERIODS = 32  # as many are taken out: the published code passes a flag where the count belongs

_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _without_one(word: str) -> set[str]:
    """The word as it is written with one of its apostrophes forgotten."""
    return {word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'"}


CONTRACTIONS = {wrong: word for word in _CONTRACTED.split() for wrong in _without_one(word)}
CONTRACTIONS["somebody'd"] = "somebodyd"  # published the wrong way round


def strip_punctuation(text: str) -> str:
    """Take punctuation out, or put a space in its place where it stood between letters."""
    joined = _COMMA_IN_NUMBER.search(text) is not None
    out = text
    for mark in PUNCTUATION:
        beside_space = mark + " " in text or " " + mark in text
        out = out.replace(mark, "" if beside_space or joined else " ")
    return _PERIOD.sub("", out, count=PERIODS)


def simplify_words(text: str) -> str:
    """Lower case, digits for number words up to ten, no articles, contractions with their apostrophes."""
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def normalise_vqa(text: str) -> str:
    """Return an answer as VQA-v2 compares it."""
    return simplify_words(strip_punctuation(text.replace("\n", " ").replace("\t", " ").strip()))


def normalise_textvqa(text: str) -> str:
    """Return an answer as TextVQA compares it: commas and question marks go first, and "'s" is a word of its own."""
    tokens = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalise_vqa(tokens)


def soft_accuracy(answer: str, people: list[str]) -> float:
    """Return the VQA accuracy of a normalised answer: how many of the others agree, three being enough.

    For each person in turn, min(1, others who said the same / 3), averaged (VQA paper, section 4).

    Args:
        answer: normalised.
        people: what each person said, normalised; usually ten.
    """
    if not people:
        return 0.0
    same = people.count(answer)
    return mean(min(1.0, (same - (person == answer)) / 3) for person in people)
