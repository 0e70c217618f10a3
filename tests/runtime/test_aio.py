"""Answers inside an event loop: streamed, cancelled, several at a time."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import aclosing
from typing import Any

import pytest

from runtime.errors import InputError, StateError
from runtime.sampling import GenerateOptions
from runtime.session import Session
from runtime.tokenizer import Tokenizer
from tests.runtime.recording import RecordingEngine, open_session, picture, say

LONG = GenerateOptions(max_tokens=100_000)


async def answer(session: Session, question: str, max_tokens: int) -> str:
    options = GenerateOptions(max_tokens=max_tokens)
    return "".join([chunk.text async for chunk in session.ask_async(question, picture(3), options)])


def test_the_answer_is_that_of_ask(tokenizer: Tokenizer) -> None:
    wanted = open_session(RecordingEngine(), tokenizer)
    *_, last = wanted.ask("One", picture(3), GenerateOptions(max_tokens=9))
    session = open_session(RecordingEngine(), tokenizer)
    assert asyncio.run(answer(session, "One", 9)) == wanted.history[0].answer
    assert (session.history, session.tokens) == (wanted.history, wanted.tokens)
    assert last.finish_reason == session.history[0].finish_reason == "length"


def test_many_sessions_answer_together(tokenizer: Tokenizer) -> None:
    questions = [f"Question {n}" for n in range(6)]
    wanted = [say(open_session(RecordingEngine(), tokenizer), q, picture(3), max_tokens=30) for q in questions]
    engine = RecordingEngine()
    engine.before_step = lambda: time.sleep(1e-3)

    async def main() -> list[str]:
        return await asyncio.gather(*[answer(open_session(engine, tokenizer), q, 30) for q in questions])

    assert asyncio.run(main()) == wanted
    assert sum(count for kind, count in engine.log if kind == "step") > 90  # of 174


def test_the_event_loop_never_waits_for_the_model(tokenizer: Tokenizer) -> None:
    engine = RecordingEngine()
    release = threading.Event()
    engine.before_step = lambda: release.wait(20)

    async def main() -> str:
        running = asyncio.create_task(answer(open_session(engine, tokenizer), "One", 3))
        while not engine.calls:
            await asyncio.sleep(1e-3)
        release.set()  # by the loop, while the model computes
        return await running

    assert asyncio.run(main())


def test_nothing_is_computed_ahead_of_the_reader(tokenizer: Tokenizer) -> None:
    engine = RecordingEngine(answers=[[300] * 50])

    async def main() -> None:
        async with aclosing(open_session(engine, tokenizer).ask_async("One")) as chunks:
            async for _ in chunks:
                before = engine.calls
                await asyncio.sleep(0.01)
                assert engine.calls == before
                if before >= 5:
                    break

    asyncio.run(main())


@pytest.mark.parametrize("moment", ["in a step", "between steps", "in the prompt"])
def test_a_cancelled_task_leaves_the_session_usable(tokenizer: Tokenizer, moment: str) -> None:
    engine = RecordingEngine(answers=[[300] * 100_000, tokenizer.encode(" Next.\n\n")])
    session = open_session(engine, tokenizer)
    inside, go = threading.Event(), threading.Event()

    def hold() -> None:
        if engine.calls == {"in a step": 5, "in the prompt": 1}.get(moment):
            inside.set()
            assert go.wait(20)

    engine.before_step = hold
    got: list[str] = []

    async def read() -> None:
        async for chunk in session.ask_async("One", options=LONG):
            got.append(chunk.text)
            if moment == "between steps" and len(got) == 5:
                inside.set()
                await asyncio.sleep(60)

    async def main() -> int:
        task = asyncio.create_task(read())
        while not inside.is_set():
            await asyncio.sleep(1e-3)
        task.cancel()
        await asyncio.sleep(0.01)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        session.snapshot()  # free
        return engine.calls

    calls = asyncio.run(main())
    assert calls <= 6  # the next token's border
    assert session.history[0].finish_reason == "cancelled"
    assert say(session, "Two") == "Next."


def test_cancelling_twice_still_waits_for_the_session(tokenizer: Tokenizer) -> None:
    engine = RecordingEngine(answers=[[300] * 100_000] * 2)
    session, inside, go = open_session(engine, tokenizer), threading.Event(), threading.Event()

    def hold() -> None:
        if engine.calls == 3:
            inside.set()
            assert go.wait(20)

    engine.before_step = hold

    async def main() -> None:
        task = asyncio.create_task(answer(session, "One", 1000))
        while not inside.is_set():
            await asyncio.sleep(1e-3)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(1e-3)
        assert not task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        session.snapshot()

    asyncio.run(main())


def test_leaving_the_loop_early_ends_the_turn(tokenizer: Tokenizer) -> None:
    session = open_session(RecordingEngine(answers=[[300] * 50] * 2), tokenizer)

    async def main() -> None:
        async with aclosing(session.ask_async("One", options=LONG)) as chunks:
            async for _ in chunks:
                break
        session.see(picture(1))

    asyncio.run(main())
    assert session.history[0].finish_reason == "cancelled"


def test_errors_come_through(tokenizer: Tokenizer) -> None:
    engine = RecordingEngine(answers=[[300] * 50] * 3)
    session = open_session(engine, tokenizer)

    async def main() -> None:
        with pytest.raises(InputError, match="question of type"):
            session.ask_async(None)  # type: ignore[arg-type]
        async with aclosing(session.ask_async("One", options=LONG)) as chunks:
            await anext(chunks)
            with pytest.raises(StateError, match="busy"):
                await answer(session, "Two", 3)
            assert (await anext(chunks)).finish_reason is None  # the intruder changed nothing
        engine.before_step = fail
        with pytest.raises(RuntimeError, match="device lost"):
            await answer(session, "Three", 3)
        with pytest.raises(StateError, match="device lost"):
            await answer(session, "Four", 3)

    def fail() -> Any:
        raise RuntimeError("device lost")

    asyncio.run(main())


def test_no_thread_is_left_behind(tokenizer: Tokenizer) -> None:
    before = threading.active_count()
    session = open_session(RecordingEngine(answers=[[300] * 5] * 4), tokenizer)
    unread = session.ask_async("Never read")

    async def main() -> None:
        for _ in range(3):
            await answer(session, "One", 3)
        await unread.aclose()

    asyncio.run(main())
    end = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(1e-3)
    assert threading.active_count() == before
