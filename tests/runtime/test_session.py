"""Conversations: what is fed is the official transcript, and what is shown the official answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import ConfigError
from runtime.prompt import ImageSlot, Piece, Turn, answer_piece, conversation_pieces, tokenise, turn_pieces
from runtime.reply import Chunk
from runtime.sampling import GenerateOptions
from runtime.spec import Manifest, RegionSpec, VisionSpec
from runtime.tokenizer import Tokenizer
from tests.runtime.recording import (
    MANIFEST,
    OPENING,
    PROMPT,
    TOKENS,
    VIEW,
    RecordingEngine,
    fed,
    open_session,
    picture,
    picture_rows,
    say,
)


def with_template(position: Literal["first", "last", "middle"], **more: Any) -> Manifest:
    return replace(MANIFEST, prompt=replace(PROMPT, image_position=position), **more)


def ids_of(tokenizer: Tokenizer, pieces: Sequence[Piece], first_picture: int = 1) -> list[int]:
    """The ids of a transcript whose pictures have the values `first_picture` and up."""
    ids: list[int] = []
    for piece in tokenise(tokenizer, pieces):
        if isinstance(piece, ImageSlot):
            ids += picture_rows(first_picture + piece.index)[:, 0].astype(int).tolist()
        else:
            ids += piece
    return ids


@pytest.mark.parametrize("padding", ["none", "left16"])
@pytest.mark.parametrize("position", ["first", "last", "middle"])
def test_three_turns_feed_the_official_transcript(
    tokenizer: Tokenizer, position: Literal["first", "last", "middle"], padding: Literal["none", "left16"]
) -> None:
    said = ["A red ball.", "是红色的。", "It moved\nto the left."]
    answers = [tokenizer.encode(f" {text}\n\n") for text in said]
    manifest = with_template(position)
    session = open_session(RecordingEngine(manifest, answers), tokenizer, padding=padding)
    session.see(picture(1))
    session.see(picture(2), picture(3))
    assert say(session, " What is\n\nthis? ", picture(4)) == said[0]
    assert say(session, "What colour?") == said[1]
    session.see(picture(5))
    assert say(session, "And now?", picture(6)) == said[2]
    turns = [
        Turn(" What is\n\nthis? ", 4, said[0], "stop"),
        Turn("What colour?", 0, said[1], "stop"),
        Turn("And now?", 2, said[2], "stop"),
    ]
    assert session.history == turns
    whole: list[int] = []
    for n, turn in enumerate(turns):  # a live sandwich repeats what was said up to now, not what will be
        pieces = turn_pieces(manifest.prompt, turn.question, turn.images, turns=turns[: n + 1])
        before = sum(earlier.images for earlier in turns[:n])
        whole += ids_of(tokenizer, [*pieces[:-1], answer_piece(manifest.prompt, said[n])], 1 + before)
    if position != "middle":
        assert whole == ids_of(tokenizer, conversation_pieces(manifest.prompt, turns))
    found = fed(session)
    assert session.tokens == len(found) - len(session.snapshot().progress.queue[0])
    pads = len(found) - len(whole)
    assert found[pads:] == whole
    assert found[:pads] == [261] * pads
    first = found.index(OPENING[0]) + 3
    assert pads == (-(first - pads) % 16 if padding == "left16" else 0)


def test_seeing_feeds_at_once_and_the_question_pays_only_for_itself(tokenizer: Tokenizer) -> None:
    engine = RecordingEngine(answers=[tokenizer.encode(" Yes.\n\n")] * 2)
    session = open_session(engine, tokenizer)
    session.see(picture(7), picture(8))
    assert session.tokens == 3 + TOKENS + 1 + TOKENS
    assert engine.calls == 1
    *_, last = session.ask("Red?")
    assert last.stats is not None
    assert last.stats.image_tokens == 2 * TOKENS
    assert last.stats.prompt_tokens == 4 + len(tokenizer.encode("\nRed?\n\n")) + 3
    assert engine.calls == 2 + 2  # see, the question, two tokens; the last is not fed
    before = session.tokens
    session.see(picture(9))
    assert session.tokens == before + 1 + 3 + TOKENS  # the end of the turn goes along


def test_padding_defers_pictures_to_the_first_question(tokenizer: Tokenizer) -> None:
    engine = RecordingEngine(answers=[tokenizer.encode(" Yes.\n\n")] * 3)
    session = open_session(engine, tokenizer, padding="left16")
    session.see(picture(7))
    assert (engine.calls, session.tokens) == (0, 0)
    say(session, "Red?")
    session.see(picture(8))
    assert fed(session)[-TOKENS:] == [-80, -81, -82]
    session.reset()
    say(session, "Red?")
    assert fed(session).index(24281) % 16 != 0
    assert (fed(session).index(5585) + 3) % 16 == 0
    with pytest.raises(ConfigError, match="padding"):
        open_session(engine, tokenizer, padding="right")  # type: ignore[arg-type]
    padded = replace(MANIFEST, tokenizer=replace(MANIFEST.tokenizer, padding="left16"))
    by_manifest = open_session(RecordingEngine(padded), tokenizer)
    say(by_manifest, "Red?", max_tokens=1)
    assert by_manifest.tokens == 16


def test_regions_of_a_picture_stand_in_a_row(tokenizer: Tokenizer) -> None:
    vision = VisionSpec((VIEW,), TOKENS, RegionSpec(4, "lanczos"))
    session = open_session(RecordingEngine(replace(MANIFEST, vision=vision)), tokenizer)
    session.see(np.full((8, 12, 3), 3, np.uint8))
    assert fed(session) == [*tokenizer.encode("User: "), *[-30, -31, -32] * 6]


def chunks_of(tokenizer: Tokenizer, ids: list[int], **options: Any) -> list[Chunk]:
    session = open_session(RecordingEngine(answers=[ids]), tokenizer)
    return list(session.ask("Well?", options=GenerateOptions(**options)))


@settings(max_examples=60)
@given(st.text(st.one_of(st.sampled_from(" \n.#你好🎈é"), st.characters(codec="utf-8")), max_size=25))
def test_any_text_streams_as_official_post_processing_shows_it(tokenizer: Tokenizer, text: str) -> None:
    chunks = chunks_of(tokenizer, tokenizer.encode(text))
    assert "".join(c.text for c in chunks) == text.split("\n\n")[0].strip()
    assert all(c.finish_reason is None and c.stats is None and c.text for c in chunks[:-1])
    assert chunks[-1].finish_reason == "stop"
    assert not any(c.text.startswith("\ufffd") for c in chunks if "\ufffd" not in text)


@settings(max_examples=60)
@given(st.binary(max_size=12))
def test_any_bytes_stream(tokenizer: Tokenizer, data: bytes) -> None:
    ids = [byte + 1 for byte in data]
    chunks = chunks_of(tokenizer, ids)
    wanted = data.split(b"\n\n")[0].decode("utf-8", "replace").strip()
    assert "".join(c.text for c in chunks) == wanted
    sampled = [i for c in chunks for i in c.token_ids]
    assert sampled == ([*ids, 261] if b"\n\n" not in data else ids[: data.find(b"\n\n") + 2])


@pytest.mark.parametrize("stop", ["###", ". B", "cat. B", "A", "n id"])
def test_stop_strings_across_token_borders(tokenizer: Tokenizer, stop: str) -> None:
    text = " A cat. Both### in idle\nlines"
    for ids in (tokenizer.encode(text), [byte + 1 for byte in text.encode()]):
        chunks = chunks_of(tokenizer, ids, stop=("zzz", stop))
        assert "".join(c.text for c in chunks) == text.split(stop)[0].strip()
        assert chunks[-1].finish_reason == "stop"


def test_length_and_ignored_stops(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(" one two\n\nthree\n\nfour five six")
    chunks = chunks_of(tokenizer, ids, max_tokens=2)
    assert [c.text for c in chunks] == ["one", " two"]
    assert chunks[-1].finish_reason == "length"
    chunks = chunks_of(tokenizer, ids, max_tokens=6, ignore_stop=True, stop=("two",))
    assert "".join(c.text for c in chunks) == "one two\n\nthree\n\nfour"
    assert chunks[-1].stats is not None
    assert chunks[-1].stats.generated_tokens == 6
    assert chunks[-1].finish_reason == "length"


def test_the_image_placeholder_is_never_sampled(tokenizer: Tokenizer) -> None:
    assert 65535 not in [i for c in chunks_of(tokenizer, [65535, 300], max_tokens=1) for i in c.token_ids]


def test_snapshot_restore_and_fork_continue_identically(tokenizer: Tokenizer) -> None:
    engine = RecordingEngine()
    trunk = open_session(engine, tokenizer)
    trunk.see(picture(1))
    say(trunk, "One", max_tokens=5)
    trunk.see(picture(2))
    snapshot = trunk.snapshot()
    fork = trunk.fork()
    wanted = say(trunk, "Two", max_tokens=8)
    after = fed(trunk)
    assert say(fork, "Another", max_tokens=3) != wanted
    assert fed(trunk) == after
    for session in (trunk, fork, open_session(engine, tokenizer)):
        session.restore(snapshot)
        assert session.tokens == snapshot.progress.tokens
        assert session.history == snapshot.progress.history
        assert say(session, "Two", max_tokens=8) == wanted
        assert fed(session) == after


def test_one_picture_may_be_given_bare(tokenizer: Tokenizer) -> None:
    session = open_session(RecordingEngine(answers=[[300]]), tokenizer)
    list(session.ask("One", picture(4)))
    assert session.history[0].images == 1


def test_stats(tokenizer: Tokenizer) -> None:
    engine = RecordingEngine(answers=[tokenizer.encode(" A red ball.\n\n"), [261]])
    session = open_session(engine, tokenizer)
    *_, last = session.ask("What?", picture(1))
    stats = last.stats
    assert stats is not None
    assert stats.generated_tokens == len(engine.answers[0])
    assert stats.image_tokens == TOKENS
    assert stats.prompt_tokens == session.tokens - TOKENS - (stats.generated_tokens - 1)
    assert stats.ttft_s >= stats.vision_s + stats.prefill_s > 0
    assert stats.tokens_per_s == pytest.approx((stats.generated_tokens - 1) / stats.decode_s)
    assert stats.state_bytes == 64
    assert stats.rss_bytes > 0
    *_, last = session.ask("Then?")
    assert last.stats is not None
    assert (last.text, last.stats.tokens_per_s, last.stats.vision_s) == ("", 0.0, 0.0)
    assert last.stats.prompt_tokens == 1 + len(tokenizer.encode("User: Then?\n\n")) + 3


def test_history_is_bounded(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.session.HISTORY", 3)
    session = open_session(RecordingEngine(answers=[[300]] * 6), tokenizer)
    for n in range(6):
        say(session, f"Question {n}")
    assert [turn.question for turn in session.history] == ["Question 3", "Question 4", "Question 5"]
