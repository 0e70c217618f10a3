"""Models that read pictures in another order than text, or through a context: what is fed, and in which calls."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from runtime.engine import Encoded
from runtime.errors import StateError
from runtime.spec import ContextSpec, Manifest, PromptSpec, ScanSpec
from runtime.tokenizer import Tokenizer
from tests.runtime.recording import MANIFEST, TOKENS, RecordingEngine, fed, open_session, picture, picture_rows, say

ORDERS = ("natural", "reversed", "natural", "reversed")
Calls = list[tuple[list[int], tuple[int, int] | None]]


class ScanningEngine(RecordingEngine):
    """Notes the ids and the image of every call, and the pictures that a context is made of."""

    def __init__(self, manifest: Manifest, answers: Any = ()) -> None:
        super().__init__(manifest, answers)
        self.seen: Calls = []
        self.contexts: list[list[int]] = []

    def advance(self, x: Any, state: Any, image: tuple[int, int] | None = None) -> np.ndarray:
        rows = x if isinstance(x, np.ndarray) else self.embed(x)
        self.seen.append((rows[:, 0].astype(int).tolist(), image))
        return super().advance(x, state, image)

    def zero_embeddings(self, count: int) -> np.ndarray:
        return np.zeros((count, 2), np.float32)

    def encode_with_features(self, views: Any) -> Encoded:
        embeddings = self.encode(views)
        return Encoded(embeddings, embeddings + 0.25)

    def context(self, features: np.ndarray) -> dict[str, np.ndarray]:
        self.contexts.append(features[:, 0, 0].round().astype(int).tolist())
        return {}


def scanning(position: Any = "middle", fixed: int = 1, text_only: Any = "zero_block") -> Manifest:
    assert MANIFEST.vision is not None
    vision = replace(MANIFEST.vision, scan=ScanSpec(ORDERS, fixed))  # type: ignore[arg-type]
    return replace(
        MANIFEST, vision=vision, prompt=PromptSpec("User: ", "Assistant:", "\n\n", position, "\n", text_only)
    )


def hybrid(text_only: Any = "black_picture") -> Manifest:
    assert MANIFEST.vision is not None
    vision = replace(MANIFEST.vision, context=ContextSpec("image_state", TOKENS, 64, None, 1))
    return replace(MANIFEST, vision=vision, prompt=replace(MANIFEST.prompt, text_only=text_only))


def ids_of(value: int) -> list[int]:
    return picture_rows(value)[:, 0].astype(int).tolist()


def test_a_sandwich_ends_a_call_with_the_scanned_part_of_its_picture(tokenizer: Tokenizer) -> None:
    engine = ScanningEngine(scanning(), [[300]])
    session = open_session(engine, tokenizer)
    session.see(picture(4))
    assert engine.seen == []  # the question comes first
    say(session, "Is it red?")
    (first, image), (second, no_image), *_ = engine.seen
    before = tokenizer.encode("User: Is it red?\n")
    assert first == [*before, *ids_of(4)[:-1]]
    assert image == (len(before), len(before) + TOKENS - 1)
    rest = [ids_of(4)[-1]]  # the class token keeps its place, behind the scanned ones
    assert (second[:1], no_image) == (rest, None)
    after = [*tokenizer.encode("\nIs it red?\n\n"), *tokenizer.encode("Assistant:")]
    whole = [token for ids, _ in engine.seen for token in ids]
    assert whole[: len(first) + 1 + len(after)] == [*first, *rest, *after]


@pytest.mark.parametrize("fixed", [0, 1])
def test_every_scanned_picture_has_a_call_of_its_own(tokenizer: Tokenizer, fixed: int) -> None:
    engine = ScanningEngine(scanning("first", fixed), [[300]])
    session = open_session(engine, tokenizer)
    session.see(picture(4), picture(5))
    images = [(ids, image) for ids, image in engine.seen if image is not None]
    assert [ids[start:stop] for ids, (start, stop) in images] == [
        ids_of(4)[: TOKENS - fixed],
        ids_of(5)[: TOKENS - fixed],
    ]
    assert all(stop == len(ids) for ids, (_, stop) in images)


def test_long_text_before_a_scanned_picture_is_cut(tokenizer: Tokenizer) -> None:
    engine = ScanningEngine(scanning(), [[300]])
    session = open_session(engine, tokenizer)
    question = " ".join(["red"] * 700)
    list(session.ask(question, picture(4)))
    assert max(len(ids) for ids, image in engine.seen if image is not None) < 256 + TOKENS
    said = tokenizer.encode(f"User: {question}\n")
    assert [token for ids, _ in engine.seen for token in ids][: len(said) + TOKENS] == [*said, *ids_of(4)]


def test_a_conversation_without_picture_begins_with_the_zero_block(tokenizer: Tokenizer) -> None:
    engine = ScanningEngine(scanning(), [[300], [301]])
    session = open_session(engine, tokenizer)
    say(session, "Hello")
    assert engine.seen[0] == ([0] * (TOKENS - 1), (0, TOKENS - 1))
    say(session, "Hello again")
    assert fed(session).count(0) == TOKENS  # once, not for every turn


def test_text_only_can_be_plain(tokenizer: Tokenizer) -> None:
    engine = ScanningEngine(scanning(text_only="plain"), [[300]])
    say(open_session(engine, tokenizer), "Hello")
    assert all(image is None for _, image in engine.seen)


def test_a_context_is_made_of_all_pictures_of_a_turn_before_anything_is_fed(tokenizer: Tokenizer) -> None:
    engine = ScanningEngine(hybrid(), [[300], [301], [302]])
    session = open_session(engine, tokenizer)
    session.see(picture(4))
    session.see(picture(5))
    assert engine.seen == []
    assert engine.contexts == []
    say(session, "Two?")
    assert engine.contexts == [[-40, -50]]
    say(session, "And now?")
    assert engine.contexts == [[-40, -50]]  # kept as long as nothing new is seen
    say(session, "This one?", picture(6))
    assert engine.contexts == [[-40, -50], [-60]]


def test_a_black_picture_stands_in(tokenizer: Tokenizer) -> None:
    engine = ScanningEngine(hybrid(), [[300], [301]])
    session = open_session(engine, tokenizer)
    say(session, "Hello")
    assert engine.contexts == [[0]]
    opening = tokenizer.encode("User: ")
    assert fed(session)[: len(opening) + TOKENS] == [*opening, *ids_of(0)]
    assert session.history[0].images == 1
    say(session, "Hello again")
    assert engine.contexts == [[0]]


def test_a_failing_context_breaks_the_session_until_reset(tokenizer: Tokenizer) -> None:
    engine = ScanningEngine(hybrid(), [[300]])
    session = open_session(engine, tokenizer)

    def fail(features: np.ndarray) -> dict[str, np.ndarray]:
        raise MemoryError

    engine.context = fail  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        say(session, "What?", picture(1))
    with pytest.raises(StateError, match="broke"):
        say(session, "What?")
    session.reset()
    del engine.context
    assert say(session, "What?", picture(1)) is not None
