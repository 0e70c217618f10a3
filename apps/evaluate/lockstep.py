"""Several questions at a time in one thread: prompts of one length are fed as one batch, and answered in lockstep.

Sessions share the steps of their answers, but each feeds its own prompt, and benchmarks have long prompts and short
answers. Here every call of the engine serves a whole batch. What is fed, and where it is cut, is what a session does
with the same question (`runtime.feeding`), so answers are the same (`tests/apps/evaluate/test_lockstep.py`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from apps.evaluate.answers import Answer
from apps.evaluate.sample import Picture, Problem, Sample, open_picture, picture_key
from runtime import GenerateOptions, State, VisualRWKV
from runtime.engine import PREFILL_SEGMENT
from runtime.errors import InputError, StateError
from runtime.image import load_image, prepare_views
from runtime.prompt import ImageSlot, turn_pieces
from runtime.reply import Reply
from runtime.sampling import Sampler
from runtime.spec import Manifest

WINDOW = 64  # batches among whose questions those of one length are looked for, if so many states can be kept
KEPT_BYTES = 64 << 20  # for states after pictures; at least a batch of them is kept


@dataclass
class _Asked:
    """A question under way."""

    sample: Sample
    start: State  # after its pictures; shared, never advanced
    rest: list[int]  # tokens still to be fed
    prompt_tokens: int


class Lockstep:
    """Answers questions in batches. For models whose pictures come first and are read as text is (`suits`)."""

    def __init__(self, model: VisualRWKV, options: GenerateOptions, batch: int) -> None:
        """Use a model that nobody else uses meanwhile."""
        self._engine, self._tokenizer, self._manifest = model.engine, model.tokenizer, model.manifest
        self._options, self._batch = options, batch
        # After pictures, with how many positions these are; the one that was not used for longest goes first.
        self._states: OrderedDict[tuple[Hashable, ...], tuple[State, int]] = OrderedDict()
        image_id = self._manifest.tokenizer.image_id
        self._forbidden = () if image_id is None or image_id >= self._manifest.vocab_size else (image_id,)
        plain = (options.temperature, options.presence_penalty, options.frequency_penalty) == (0, 0, 0)
        self._greedy = plain and options.repetition_penalty == 1
        self._blank, self._full = self._engine.new_state(), self._engine.new_state(batch)
        self._room = max(batch, KEPT_BYTES // max(1, self._blank.nbytes))

    def answer(self, samples: Iterable[Sample]) -> Iterator[Answer | Problem]:
        """Answer samples; they come back in another order, some of them as problems."""
        source = iter(samples)
        while window := self._window(source):
            lengths: dict[int, list[_Asked]] = {}
            for sample in window:
                try:
                    asked = self._begin(sample)
                    lengths.setdefault(len(asked.rest), []).append(asked)
                except (InputError, StateError) as error:
                    yield Problem(f"question {sample.key}", str(error), sample.group)
            for group in lengths.values():
                for first in range(0, len(group), self._batch):
                    yield from self._answer(group[first : first + self._batch])

    def _window(self, source: Iterator[Sample]) -> list[Sample]:
        """Take as many questions as there is room for states after their pictures."""
        found, pictures = list[Sample](), set[tuple[Hashable, ...]]()
        for sample in islice(source, self._batch * WINDOW):
            found.append(sample)
            pictures.add(_key(sample))
            if len(pictures) >= self._room:
                break
        return found

    def _begin(self, sample: Sample) -> _Asked:
        """Look at the pictures of a question, unless that was done, and cut what follows them into tokens."""
        prompt, encode = self._manifest.prompt, self._tokenizer.encode
        pieces = turn_pieces(prompt, sample.question, len(sample.pictures))
        last = max((i for i, piece in enumerate(pieces) if isinstance(piece, ImageSlot)), default=-1)
        rest = [token for piece in pieces[last + 1 :] if isinstance(piece, str) for token in encode(piece)]
        if not sample.pictures:
            return _Asked(sample, self._blank, rest, len(rest))
        key = _key(sample)
        if key not in self._states:
            rows = [
                self._look(sample.pictures[piece.index]) if isinstance(piece, ImageSlot) else self._embed(encode(piece))
                for piece in pieces[: last + 1]
            ]
            before, state = np.concatenate(rows), self._engine.new_state()
            self._engine.advance(before, state)
            self._states[key] = state, len(before)
            while len(self._states) > self._room:
                self._states.popitem(last=False)
        self._states.move_to_end(key)
        state, before_tokens = self._states[key]
        return _Asked(sample, state, rest, before_tokens + len(rest))

    def _look(self, picture: Picture) -> np.ndarray:
        vision = self._manifest.vision
        if vision is None:
            raise InputError("this model takes no pictures")
        pixels = load_image(np.ascontiguousarray(open_picture(picture)))
        embeddings = self._engine.encode(prepare_views([pixels], vision))
        return embeddings.reshape(-1, embeddings.shape[-1])

    def _embed(self, tokens: list[int]) -> np.ndarray:
        return self._engine.embed(tokens)

    def _answer(self, group: list[_Asked]) -> Iterator[Answer | Problem]:
        """Answer questions whose rests are of one length."""
        state = self._full if len(group) == self._batch else self._engine.new_state(len(group))
        for lane, asked in enumerate(group):
            state.take_in(lane, asked.start)
        rows = np.stack([self._embed(asked.rest) for asked in group])
        for first in range(0, rows.shape[1], PREFILL_SEGMENT):
            logits = self._engine.step(rows[:, first : first + PREFILL_SEGMENT], state)
        samplers = [Sampler(self._options, self._manifest.vocab_size, forbidden=self._forbidden) for _ in group]
        replies = [Reply(self._manifest, self._tokenizer, self._options) for _ in group]
        ends: list[str | None] = [None] * len(group)
        lanes = list(range(len(group)))  # whose sequences the state holds
        while True:
            tokens = [0] * len(lanes)  # what those that are done are fed, and nobody reads
            best = self._best(logits)
            for lane, index in enumerate(lanes):
                if ends[index] is None:
                    try:
                        tokens[lane] = samplers[index].pick(logits[lane]) if best is None else best[lane]
                        ends[index] = replies[index].add(tokens[lane])
                    except StateError as error:
                        ends[index] = str(error)
            going = [lane for lane, index in enumerate(lanes) if ends[index] is None]
            if not going:
                break
            if 2 * len(going) <= len(lanes):
                state = self._only(state, going)
                lanes, tokens = [lanes[lane] for lane in going], [tokens[lane] for lane in going]
            logits = self._engine.step(self._embed(tokens)[:, None], state)
        for asked, reply, end in zip(group, replies, ends, strict=True):
            yield _outcome(asked, reply, end or "")

    def _best(self, logits: np.ndarray) -> list[int] | None:
        """Return what greedy samplers pick from [B, V]; None where the samplers must look at each row themselves."""
        if not self._greedy or not np.isfinite(logits).all():
            return None
        if self._forbidden:
            logits = logits.copy()
            logits[:, self._forbidden] = -np.inf
        found: list[int] = logits.argmax(1).tolist()
        return found

    def _only(self, state: State, lanes: list[int]) -> State:
        """Return a state of some of a state's sequences."""
        smaller, one = self._engine.new_state(len(lanes)), self._engine.new_state()
        for place, lane in enumerate(lanes):
            state.give_back(lane, one)
            smaller.take_in(place, one)
        return smaller


def _key(sample: Sample) -> tuple[Hashable, ...]:
    return tuple(map(picture_key, sample.pictures))


def _outcome(asked: _Asked, reply: Reply, end: str) -> Answer | Problem:
    sample = asked.sample
    if end not in ("stop", "length"):
        return Problem(f"question {sample.key}", end, sample.group)
    reply.finish()
    return Answer(sample.key, reply.text, sample.digest, len(reply.ids), asked.prompt_tokens, end)


def suits(manifest: Manifest) -> bool:
    """Whether a model is fed as `Lockstep` feeds it; others are asked through sessions."""
    vision, prompt = manifest.vision, manifest.prompt
    plain = vision is None or not (vision.scan or vision.context or vision.compressor or vision.regions)
    return (
        plain
        and prompt.image_position == "first"
        and prompt.text_only == "plain"
        and manifest.tokenizer.padding == "none"
        and manifest.warm is None
    )
