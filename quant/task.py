"""Answers on a task: what a user would notice. The task is a file of questions, pictures and right answers.

One JSON object a line: {"question": "What colour is the ball?", "image": "ball.png", "answer": "Red"}. Paths are
relative to the file; a question without a picture leaves "image" out. `python -m apps.demo.task` writes one of drawn
scenes; one of your own photos takes an evening and tells more than any perplexity.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quant.compare import is_sure
from quant.conversation import Conversation
from quant.edited import open_engine
from runtime.bundle import Bundle
from runtime.cache import Cache
from runtime.errors import InputError
from runtime.image import load_image

LONGEST = 32  # tokens of an answer
_CACHE = 64 << 20
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Item:
    """One question and its right answer."""

    question: str
    answer: str
    image: Path | None


@dataclass(frozen=True)
class Result:
    """How two models answer the same questions."""

    asked: int
    exact: int  # right answers of the float model
    right: int  # of the other
    alike: int  # answers that are the same, right or wrong
    positions: int  # tokens of the float model's answers
    agreement: float  # share of them that the other would have said, too, after the same words
    sure: int  # positions at which the float model is sure (`quant.limits.SURE`)
    sure_agreement: float

    @property
    def lost(self) -> float:
        """Share of the questions that the float model answers rightly and the other does not, less the opposite."""
        return (self.exact - self.right) / max(self.asked, 1)


def read_task(path: Path) -> list[Item]:
    """Read a task.

    Raises:
        InputError: the file or a picture is missing, or a line is no such object.
    """
    file = path / "task.jsonl" if path.is_dir() else path
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the task {file}: {error}", hint="python -m apps.demo.task FOLDER") from None
    items = [_item(file, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not items:
        raise InputError(f"the task {file} is empty", wanted='lines {"question": .., "image": .., "answer": ..}')
    return items


def _item(file: Path, number: int, line: str) -> Item:
    wanted = '{"question": "..", "image": "..", "answer": ".."}'
    try:
        data = json.loads(line)
    except ValueError:
        raise InputError(f"{file}, line {number} is not JSON", wanted=wanted) from None
    good = isinstance(data, dict) and {"question", "answer"} <= set(data) <= {"question", "answer", "image"}
    if not good or not all(isinstance(value, str) for value in data.values() if value is not None):
        raise InputError(f"{file}, line {number} is {line[:80]}", wanted=wanted)
    image = file.parent / data["image"] if data.get("image") else None
    if image is not None and not image.is_file():
        raise InputError(f"{file}, line {number}: there is no picture {image}", wanted="a path relative to the task")
    return Item(data["question"], data["answer"], image)


def answer_both(
    exact: Bundle,
    bundle: Bundle,
    items: list[Item],
    *,
    threads: int | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Result:
    """Let the float model and a quantised one answer every question, each in a conversation of its own.

    Agreement is counted along the float model's answers: at every token the other has heard the very same words.
    """
    one, other = (_Answerer(b, threads) for b in (exact, bundle))
    exact_right = right = alike = 0
    same: list[bool] = []
    sure: list[bool] = []
    try:
        for done, item in enumerate(items):
            said, logits = one.answer(item)
            heard = other.along(item, said)
            same += [a.argmax() == b.argmax() for a, b in zip(logits, heard, strict=True)]
            sure += [is_sure(a) for a in logits]
            text = one.text(said)
            agrees = all(same[-len(said) :])
            found = text if agrees else other.text(other.answer(item)[0])
            exact_right += text == item.answer.strip()
            right += found == item.answer.strip()
            alike += text == found
            progress("answer the task", done + 1, len(items))
    finally:
        one.close()
        other.close()
    certain = [a for a, known in zip(same, sure, strict=True) if known]
    return Result(
        len(items),
        exact_right,
        right,
        alike,
        len(same),
        float(np.mean(same)),
        len(certain),
        float(np.mean(certain)) if certain else 1.0,
    )


class _Answerer:
    """A model that answers greedily."""

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        self._engine, self._tokenizer = open_engine(bundle, threads)
        self._manifest, self._cache = bundle.manifest, Cache(_CACHE)

    def answer(self, item: Item) -> tuple[list[int], list[np.ndarray]]:
        """Return the ids of the answer, the stop id included, and the logits [V] before each."""
        conversation, logits = self._ask(item)
        said, seen = [self._pick(logits)], [logits]
        while len(said) < LONGEST and not self._ends(said):
            seen.append(conversation.say(said[-1]).copy())
            said.append(self._pick(seen[-1]))
        return said, seen

    def along(self, item: Item, said: list[int]) -> list[np.ndarray]:
        """Return the logits [V] before each token of an answer that is given."""
        conversation, logits = self._ask(item)
        return [logits, *(conversation.say(token).copy() for token in said[:-1])]

    def text(self, ids: list[int]) -> str:
        """Return an answer as a user reads it."""
        shown = [i for i in ids if i not in self._manifest.tokenizer.stop_ids]
        return self._tokenizer.decode(shown).split(self._manifest.prompt.turn_end)[0].strip()

    def close(self) -> None:
        """Release the model."""
        self._engine.close()

    def _ask(self, item: Item) -> tuple[Conversation, np.ndarray]:
        conversation = Conversation(self._engine, self._tokenizer, self._cache)
        pictures = [np.ascontiguousarray(load_image(item.image)[..., ::-1])] if item.image else []
        return conversation, conversation.ask(item.question, pictures).copy()

    def _pick(self, logits: np.ndarray) -> int:
        if (image := self._manifest.tokenizer.image_id) is not None and image < len(logits):
            logits[image] = -np.inf  # never said
        return int(logits.argmax())

    def _ends(self, said: list[int]) -> bool:
        if said[-1] in self._manifest.tokenizer.stop_ids:
            return True
        return self._manifest.prompt.turn_end in self._tokenizer.decode(said[-4:])
