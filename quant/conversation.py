"""Real prompts of a bundle, fed by hand: pictures, questions and answers, and the logits after each.

A float model talks (its answers are drawn from its own logits), and a quantised one can be made to hear the very same
conversation, so that the two can be compared position by position.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from runtime.cache import Cache
from runtime.engine import Engine
from runtime.errors import InputError
from runtime.feeding import Feeder
from runtime.progress import Progress
from runtime.prompt import Turn, closing_ids, turn_pieces
from runtime.sampling import GenerateOptions, Sampler
from runtime.scheduler import Scheduler
from runtime.shared import Shared
from runtime.state import State
from runtime.tokenizer import Tokenizer

QUESTIONS = (
    "What is in the picture?",
    "Describe the image in one sentence.",
    "How many people are there?",
    "What colour is the largest object?",
    "Is there anything moving?",
    "Where is the door?",
    "Read the text in the picture.",
    "What has changed since the last picture?",
    "Is it day or night?",
    "图中有什么?",
    "请描述这张图片。",
    "最大的物体是什么颜色?",
)
ANSWER = 12  # tokens at most
_RAW = 16  # ids of a question where the vocabulary cannot spell one
_HEAT = GenerateOptions(temperature=1.0, top_p=0.9, max_tokens=ANSWER, seed=1)


class Gallery(Protocol):
    """Pictures by number: arrays as OpenCV gives them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> np.ndarray: ...


@dataclass
class Said:
    """One turn as it was fed."""

    pictures: tuple[int, ...]  # numbers in the gallery
    question: str | tuple[int, ...]  # text, or ids of a model whose vocabulary spells none
    answer: list[int] = field(default_factory=list)  # ids; the last has not been fed as a step of its own


class Conversation:
    """One running conversation with an engine."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, cache: Cache | None = None) -> None:
        """Begin before the first token; nobody else may use the engine meanwhile. `cache` keeps encoded pictures."""
        self._tokenizer, self._manifest = tokenizer, engine.manifest
        self._scheduler = Scheduler(engine, max_batch=1)
        self._feeder = Feeder(self._scheduler, tokenizer, Shared(cache=cache or Cache(0)))
        self.state: State = self._scheduler.new_state()
        self._progress = Progress()
        self._last: str | tuple[int, ...] = ""  # question

    @property
    def tokens(self) -> int:
        """Positions fed."""
        return self._progress.tokens

    def ask(self, question: str | tuple[int, ...], pictures: Sequence[np.ndarray] = ()) -> np.ndarray:
        """Feed pictures and a question; return the logits [V] after them."""
        progress, prompt = self._progress, self._manifest.prompt
        self._feeder.look(progress, pictures)
        self._feeder.stand_in(progress)
        if isinstance(question, str):
            pieces = turn_pieces(prompt, question, progress.pictures, placed=progress.placed)
            self._feeder.place(progress, pieces)
        else:
            progress.queue = [item for item in progress.queue if not isinstance(item, list) or _fits(item, self)]
            progress.queue += [picture for _, picture in sorted(progress.waiting.items())]
            progress.queue.append(list(question))
        logits = self._feeder.feed(progress, self.state, self._manifest.tokenizer.padding)
        assert logits is not None
        self._last = question
        return logits

    def say(self, token: int) -> np.ndarray:
        """Feed one token of the answer; return the logits [V] after it."""
        self._progress.tokens += 1
        return self._scheduler.advance([token], self.state)

    def end(self, answer: list[int]) -> None:
        """End the turn: what is missing of the answer, whose last token was not fed, comes with the next."""
        rest = answer[-1:]
        if isinstance(self._last, str):
            rest = closing_ids(self._tokenizer, self._manifest.prompt, answer)
        # Only that there was a turn matters (nothing stands in for a picture any more), not all of them.
        self._progress = Progress([Turn("", 0, "")], self._progress.tokens, queue=[rest])


def _fits(ids: list[int], conversation: Conversation) -> bool:
    return all(i < conversation._manifest.vocab_size for i in ids)


def askable(engine: Engine, tokenizer: Tokenizer, questions: Sequence[str]) -> list[str]:
    """Return the questions whose whole turn the model's vocabulary can spell."""
    rows, kept = engine.manifest.vocab_size, []
    for question in questions:
        try:
            pieces = [p for p in turn_pieces(engine.manifest.prompt, question, 0) if isinstance(p, str)]
            ids = [i for piece in pieces for i in tokenizer.encode(piece)]
        except InputError:
            continue
        if all(i < rows for i in ids):
            kept.append(question)
    return kept


def talk(
    engine: Engine,
    tokenizer: Tokenizer,
    gallery: Gallery,
    *,
    questions: Sequence[str] = QUESTIONS,
    seed: int = 0,
    fresh: int = 0,
    cache: Cache | None = None,
) -> Iterator[tuple[Conversation, Said, list[np.ndarray]]]:
    """Let a model talk without end: yield conversation, turn and logits [V] before each token of the answer.

    Args:
        engine: the float model.
        tokenizer: of its bundle.
        gallery: pictures, shown in turn; every turn shows one if the model takes any.
        questions: asked in turn; ids drawn at random where the vocabulary spells none of them.
        seed: of what is drawn.
        fresh: begin a new conversation after so many turns; 0: never.
        cache: of pictures that are encoded already.
    """
    rng, manifest = np.random.default_rng(seed), engine.manifest
    known = askable(engine, tokenizer, questions)
    forbidden = () if manifest.tokenizer.image_id is None else (manifest.tokenizer.image_id,)
    sampler = Sampler(_HEAT, manifest.vocab_size, forbidden=forbidden)
    conversation, number = Conversation(engine, tokenizer, cache), 0
    while True:
        picture = (number % len(gallery),) if manifest.vision and _takes_pixels(engine) and len(gallery) else ()
        raw = tuple(int(i) for i in rng.integers(1, min(manifest.vocab_size - 1, 60_000), _RAW))
        turn = Said(picture, known[number % len(known)] if known else raw)
        logits = [conversation.ask(turn.question, [gallery[i] for i in turn.pictures]).copy()]
        turn.answer.append(sampler.pick(logits[0]))
        while len(turn.answer) < ANSWER and turn.answer[-1] not in manifest.tokenizer.stop_ids:
            logits.append(conversation.say(turn.answer[-1]).copy())
            turn.answer.append(sampler.pick(logits[-1]))
        conversation.end(turn.answer)
        yield conversation, turn, logits
        number += 1
        if fresh and number % fresh == 0:
            conversation = Conversation(engine, tokenizer, cache)


def hear(
    engine: Engine,
    tokenizer: Tokenizer,
    gallery: Gallery,
    turns: Iterable[Said],
    *,
    fresh: int = 0,
    cache: Cache | None = None,
) -> Iterator[tuple[Conversation, list[np.ndarray]]]:
    """Feed turns that another model talked; yield conversation and logits [V] before each token of the answers."""
    conversation = Conversation(engine, tokenizer, cache)
    for number, turn in enumerate(turns):
        if number and fresh and number % fresh == 0:
            conversation = Conversation(engine, tokenizer, cache)
        logits = [conversation.ask(turn.question, [gallery[i] for i in turn.pictures]).copy()]
        logits += [conversation.say(token).copy() for token in turn.answer[:-1]]
        conversation.end(turn.answer)
        yield conversation, logits


def _takes_pixels(engine: Engine) -> bool:
    vision = engine.manifest.vision
    return vision is not None and all(view.kind == "pixels" for view in vision.views)
