"""From messages to turns, and from turns to what the model has read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyrwkv_tokenizer
import pytest
from PIL import Image

from apps.serve.failures import Refused
from apps.serve.messages import Said, root, turns
from apps.serve.pictures import Sent
from apps.serve.replay import Replay
from apps.serve.schema import Message
from runtime import GenerateOptions
from runtime.cache import Cache
from runtime.prompt import Turn, conversation_pieces, tokenise
from runtime.tokenizer import Tokenizer
from tests.runtime.recording import PROMPT, RecordingEngine, fed, open_session, picture, picture_rows, say


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(Path(pyrwkv_tokenizer.__file__).with_name("rwkv_vocab_v20230424.txt"))


def sent(number: int = 1) -> Sent:
    return Sent(Image.fromarray(picture(number)), b"%d" % number)


def open_(url: str) -> Sent:
    return sent(int(url))


def message(role: str, *content: Any) -> Message:
    """A message of strings and pictures' numbers."""
    parts = [
        {"type": "text", "text": c} if isinstance(c, str) else {"type": "image_url", "image_url": {"url": str(c)}}
        for c in content
    ]
    whole = content[0] if len(content) == 1 and isinstance(content[0], str) else parts
    return Message.model_validate({"role": role, "content": whole})


def test_messages_become_turns() -> None:
    found = turns(
        [
            message("system", "Be brief."),
            message("developer", "Be kind."),
            message("user", "Look:", 1),
            message("user", 2, "What is it?"),
            message("assistant", "A star."),
            message("assistant", "Or two."),
            message("system", "Be quick."),
            message("user", "Sure?"),
        ],
        open_,
    )
    assert [(s.system, s.question, [i.digest for i in s.images], s.answer) for s in found] == [
        ("Be brief.\nBe kind.", "Look:\nWhat is it?", [b"1", b"2"], "A star.\nOr two."),
        ("Be quick.", "Sure?", [], None),
    ]


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([("assistant", "Hi")], "without a question"),
        ([("system", "Be brief.")], "the last message"),
        ([("user", "Hi"), ("assistant", "Hello")], "the last message"),
        ([("user", "")], "the last message"),
        ([("user", "Hi"), ("system", "Be brief."), ("user", "x")], "between a question"),
        ([("user", "Hi"), ("assistant", 1), ("user", "x")], "picture in a message of the assistant"),
        ([("system", 1), ("user", "x")], "picture in a message of the system"),
    ],
)
def test_what_is_no_conversation(messages: list[tuple[str, Any]], says: str) -> None:
    with pytest.raises(Refused, match=says) as found:
        turns([message(*one) for one in messages], open_)
    assert found.value.status == 400


def test_digests_tell_conversations_apart() -> None:
    base = Said("", "What?", [sent(1)], "This.")
    variants = [
        Said("s", "What?", [sent(1)], "This."),
        Said("", "What", [sent(1)], "This."),
        Said("", "What?", [sent(2)], "This."),
        Said("", "What?", [sent(1), sent(1)], "This."),
        Said("", "What?", [sent(1)], "That."),
        Said("", "What?This.", [sent(1)], ""),
        base,
    ]
    start = root("model")
    digests = [one.digest(start) for one in variants] + [base.digest(base.digest(start)), base.digest(root("other"))]
    assert len(set(digests)) == len(digests)
    assert Said("", " What?\n", [sent(1)], "This. ").digest(start) == base.digest(start)


def replay_of(engine: RecordingEngine, tokenizer: Tokenizer) -> Replay:
    model = SimpleNamespace(
        scheduler=engine.scheduler, tokenizer=tokenizer, cache=Cache(1 << 20), manifest=engine.manifest
    )
    return Replay(model)  # type: ignore[arg-type]


HISTORY = [
    Said("", "What is it?", [sent(3)], "A star。"),
    Said("", "And these?", [sent(4), sent(5)], "Two\n\ncircles."),
    Said("", "Sure?", [], ""),
]


def test_history_is_read_as_the_official_transcript(tokenizer: Tokenizer) -> None:
    engine = RecordingEngine()
    session = open_session(engine, tokenizer)
    replay_of(engine, tokenizer).prepare(session, None, [*HISTORY, Said("", "Next?")], lambda: False)
    spoken = [Turn(one.question, len(one.images), one.answer) for one in HISTORY]
    rows = {n: picture_rows(v)[:, 0].astype(int).tolist() for n, v in enumerate((3, 4, 5))}
    pieces = tokenise(tokenizer, conversation_pieces(PROMPT, spoken))
    wanted = [i for piece in pieces for i in (piece if isinstance(piece, list) else rows[piece.index])]
    assert fed(session) == wanted
    assert [(turn.question, turn.images, turn.answer) for turn in session.history] == [
        (turn.question, turn.images, turn.answer) for turn in spoken
    ]
    assert (session.tokens, session.frames) == (len(wanted), 3)


def test_what_was_lived_and_what_was_read_are_the_same(tokenizer: Tokenizer) -> None:
    answers = [tokenizer.encode(" A star"), tokenizer.encode(" Two circles"), tokenizer.encode(" Yes")]
    lived_in = RecordingEngine(answers=answers)
    lived = open_session(lived_in, tokenizer)
    given = [say(lived, "What is it?", picture(3)), say(lived, "And these?", picture(4), picture(5))]
    read_in = RecordingEngine(answers=answers)
    read = open_session(read_in, tokenizer)
    history = [
        Said("", "What is it?", [sent(3)], given[0]),
        Said("", "And these?", [sent(4), sent(5)], given[1]),
    ]
    replay_of(read_in, tokenizer).prepare(read, None, [*history, Said("", "Sure?")], lambda: False)
    assert fed(read) == fed(lived)
    assert say(read, "Sure?") == say(lived, "Sure?") == "Yes"


def test_a_kept_state_is_gone_on_from(tokenizer: Tokenizer) -> None:
    engine = RecordingEngine()
    replay, session = replay_of(engine, tokenizer), open_session(engine, tokenizer)
    replay.prepare(session, None, [*HISTORY, Said("", "Next?")], lambda: False)
    whole = fed(session)
    replay.prepare(session, None, [*HISTORY[:2], Said("", "Next?")], lambda: False)
    kept, calls = session.snapshot(), engine.calls
    say(session, "Something else", max_tokens=3)
    calls = engine.calls
    replay.prepare(session, kept, [HISTORY[2], Said("", "Next?")], lambda: False)
    assert fed(session) == whole
    assert engine.calls == calls + 1


def test_the_system_speaks_in_its_own_message(tokenizer: Tokenizer) -> None:
    engine = RecordingEngine()
    replay, session = replay_of(engine, tokenizer), open_session(engine, tokenizer)
    replay.prepare(session, None, [Said("Be\n\nbrief. ", "Hi")], lambda: False)
    system = tokenizer.encode("System: Be\nbrief.\n\n")
    assert fed(session) == system and session.tokens == 0  # it waits, to be fed with the question
    *_, last = session.ask("Hi", options=GenerateOptions(max_tokens=2))
    assert fed(session)[: len(system)] == system
    assert last.stats is not None and last.stats.prompt_tokens > len(system)
    history = [Said("One", "Hi", [], "Hello"), Said("Two", "Next?")]
    replay.prepare(session, None, history, lambda: False)
    texts = ["System: One\n\n", "User: Hi\n\n", "Assistant: Hello\n\n", "System: Two\n\n"]
    assert fed(session) == [i for text in texts for i in tokenizer.encode(text)]


def test_reading_ends_when_nobody_waits(tokenizer: Tokenizer) -> None:
    engine = RecordingEngine()
    replay, session = replay_of(engine, tokenizer), open_session(engine, tokenizer)
    replay.prepare(session, None, [*HISTORY, Said("", "Next?")], lambda: engine.calls > 0)
    assert [turn.question for turn in session.history] == ["What is it?"]


def test_pictures_of_the_cache_are_not_looked_at_again(tokenizer: Tokenizer) -> None:
    engine = RecordingEngine()
    replay, session = replay_of(engine, tokenizer), open_session(engine, tokenizer)
    for _ in range(2):
        replay.prepare(session, None, [*HISTORY, Said("", "Next?")], lambda: False)
    engine.fail_encode = RuntimeError("looked again")
    replay.prepare(session, None, [*HISTORY, Said("", "Next?")], lambda: False)
    assert session.frames == 3
    assert np.asarray(picture(3)).any()
