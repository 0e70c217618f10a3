"""Conversations interrupted, shared and broken: the state stays what the transcript says, or is refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from runtime.errors import InputError, StateError
from runtime.reply import Chunk
from runtime.sampling import GenerateOptions
from runtime.session import Session
from runtime.tokenizer import Tokenizer
from tests.runtime.recording import MANIFEST, VOCAB, RecordingEngine, fed, open_session, picture, say


@pytest.mark.parametrize("ending", ["cancel", "close"])
def test_interrupted_at_every_token_the_next_turn_is_well_formed(tokenizer: Tokenizer, ending: str) -> None:
    answer = [*tokenizer.encode(" The ball。\nis 红"), 229, *tokenizer.encode("red.\n")]
    said = tokenizer.encode(" Next.\n\n")
    for stop_at in range(len(answer) + 1):
        engine = RecordingEngine(answers=[answer, said])
        session = open_session(engine, tokenizer)
        shown, seen = "", 0
        for chunk in stream_and_stop(session, engine, ending, stop_at):
            shown, seen = shown + chunk.text, seen + len(chunk.token_ids)
        fed_answer = tokenizer.decode(fed(session)).partition("Assistant:")[2]
        assert fed_answer.endswith("\n\n")
        assert fed_answer.count("\n\n") == 1
        assert fed_answer.strip().startswith(shown)
        assert say(session, "Two") == "Next."
        wanted = f"User: One\n\nAssistant:{fed_answer}User: Two\n\nAssistant: Next.\n\n"
        assert tokenizer.decode(fed(session)) == wanted
        assert session.history[0].finish_reason in ("cancelled", "stop")
        assert session.history[0].answer == fed_answer.strip()


def stream_and_stop(session: Session, engine: RecordingEngine, ending: str, stop_at: int) -> Iterator[Chunk]:
    """Stream an answer that is interrupted in its step `stop_at`, or closed at its chunk `stop_at`."""
    first = engine.calls

    def cancel() -> None:
        if engine.calls - first == stop_at + 1:
            session.cancel()

    if ending == "cancel":
        engine.before_step = cancel
    stream = session.ask("One")
    for index, chunk in enumerate(stream):
        yield chunk
        if ending == "close" and index == stop_at:
            stream.close()  # type: ignore[attr-defined]
            break
    engine.before_step = lambda: None


def test_cancel_ends_at_the_next_token_and_is_told(tokenizer: Tokenizer) -> None:
    engine = RecordingEngine(answers=[[300] * 50] * 3)
    session = open_session(engine, tokenizer)
    session.cancel()  # nothing runs: no effect on what comes
    chunks = []
    for chunk in session.ask("One"):
        chunks.append(chunk)
        if len(chunks) == 3:
            session.cancel()
    assert chunks[-1].finish_reason == "cancelled"
    assert len(chunks) <= 5
    engine.before_step = session.cancel
    (only,) = session.ask("Two")
    assert (only.text, only.token_ids, only.finish_reason) == ("", (), "cancelled")


def test_cancel_from_another_thread(tokenizer: Tokenizer) -> None:
    engine = RecordingEngine(answers=[[300] * 10_000])
    session = open_session(engine, tokenizer)
    timer = threading.Timer(0.05, session.cancel)
    timer.start()
    *_, last = session.ask("One", options=GenerateOptions(max_tokens=1_000_000))
    timer.join()
    assert last.finish_reason == "cancelled"


def test_interleaved_sessions_do_not_leak(tokenizer: Tokenizer) -> None:
    alone = [
        list(open_session(RecordingEngine(), tokenizer).ask(q, options=GenerateOptions(max_tokens=9))) for q in "AB"
    ]
    engine = RecordingEngine()
    streams = [open_session(engine, tokenizer).ask(q, options=GenerateOptions(max_tokens=9)) for q in "AB"]
    mixed: list[list[int]] = [[], []]
    for pair in zip(*streams, strict=False):
        for ids, chunk in zip(mixed, pair, strict=True):
            ids += chunk.token_ids
    for ids, chunks in zip(mixed, alone, strict=True):
        wanted = [i for chunk in chunks for i in chunk.token_ids]
        assert ids == wanted[: len(ids)]
        assert len(ids) >= 5


def test_threads_share_an_engine(tokenizer: Tokenizer) -> None:
    engine = RecordingEngine()
    inside = threading.Lock()

    def alone() -> None:
        assert inside.acquire(blocking=False)
        time.sleep(1e-4)
        inside.release()

    engine.before_step = alone
    wanted = {q: say(open_session(RecordingEngine(), tokenizer), q, max_tokens=20) for q in "ABCD"}
    found: dict[str, str] = {}

    def run(question: str) -> None:
        found[question] = say(open_session(engine, tokenizer), question, max_tokens=20)

    threads = [threading.Thread(target=run, args=(q,)) for q in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == wanted


def test_a_busy_session_refuses_everything_but_cancel(tokenizer: Tokenizer) -> None:
    session = open_session(RecordingEngine(answers=[[300] * 50] * 2), tokenizer)
    stream = session.ask("One")
    next(stream)
    errors: list[BaseException] = []

    def intrude() -> None:
        for call in (lambda: next(session.ask("Two")), session.snapshot, session.reset, session.fork):
            try:
                call()
            except StateError as error:
                errors.append(error)

    thread = threading.Thread(target=intrude)
    thread.start()
    thread.join()
    assert len(errors) == 4
    assert all("busy" in str(error) for error in errors)
    with pytest.raises(StateError, match="busy"):
        session.see(picture(1))
    session.cancel()
    *_, last = stream
    assert last.finish_reason == "cancelled"
    assert say(session, "Two", max_tokens=2)


def test_the_session_is_free_at_the_last_chunk(tokenizer: Tokenizer) -> None:
    session = open_session(RecordingEngine(answers=[[300], [300]]), tokenizer)
    stream = session.ask("One")
    while next(stream).finish_reason is None:
        pass
    session.see(picture(1))
    assert next(stream, None) is None


@pytest.mark.parametrize("step", [1, 2, 4])
def test_an_engine_that_fails_breaks_the_session_until_it_is_mended(tokenizer: Tokenizer, step: int) -> None:
    engine = RecordingEngine(answers=[[300] * 9] * 3)
    session = open_session(engine, tokenizer)
    session.see(picture(1))
    good = session.snapshot()
    first = engine.calls

    def fail() -> None:
        if engine.calls - first >= step:
            raise RuntimeError("device lost")

    engine.before_step = fail
    with pytest.raises(RuntimeError, match="device lost"):
        say(session, "One")
    engine.before_step = lambda: None
    for call in (
        session.snapshot,
        session.fork,
        lambda: session.see(picture(2)),
        lambda: say(session, "Two"),
    ):
        with pytest.raises(StateError, match="device lost"):
            call()
    session.restore(good)
    mended = say(session, "One")
    session.reset()
    assert session.tokens == 0
    session.see(picture(1))
    assert say(session, "One") == mended


def test_a_state_gone_bad_is_not_continued(tokenizer: Tokenizer) -> None:
    engine = RecordingEngine(answers=[[300] * 9])
    session = open_session(engine, tokenizer)
    engine.advance = lambda x, state, image=None: np.full(VOCAB, np.nan, np.float32)  # type: ignore[method-assign]
    with pytest.raises(StateError, match="not finite"):
        say(session, "One")
    with pytest.raises(StateError, match="broke"):
        session.see(picture(1))


def test_what_cannot_be_asked_leaves_the_session_as_it_was(tokenizer: Tokenizer) -> None:
    engine = RecordingEngine(answers=[[300], [300]])
    session = open_session(engine, tokenizer)
    say(session, "One")
    before = fed(session)
    with pytest.raises(InputError, match="question of type"):
        session.ask(None)  # type: ignore[arg-type]
    for bad in (np.zeros((2, 2, 3)), "no such file.png"):
        with pytest.raises(InputError):
            session.see(picture(1), bad)
        with pytest.raises(InputError):
            list(session.ask("Two", [picture(1), bad]))
    engine.fail_encode = RuntimeError("out of memory")
    with pytest.raises(RuntimeError):
        session.see(picture(1))
    assert fed(session) == before
    assert say(session, "Two")
    assert fed(session)[: len(before) + 3] == [*before, *tokenizer.encode("User: Two")]
    assert session.history[1].images == 0
    text_only = open_session(RecordingEngine(replace(MANIFEST, vision=None), [[300]]), tokenizer)
    with pytest.raises(InputError, match="takes no pictures"):
        text_only.see(picture(1))
    assert say(text_only, "One") == tokenizer.decode([300]).strip()


def test_an_answer_never_started_changes_nothing(tokenizer: Tokenizer) -> None:
    session = open_session(RecordingEngine(answers=[[300]]), tokenizer)
    stream = session.ask("One")
    assert session.tokens == 0
    assert say(session, "Other")
    stream.close()  # type: ignore[attr-defined]
    assert len(session.history) == 1
