"""Taking back pictures and questions, in memory that is allocated once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import VisualRWKV
from runtime.backends.fake import FakeBackend
from runtime.errors import InputError, StateError
from runtime.undo import UNDO_STEPS, undo_steps
from tests.runtime.fake_model import bits, fake_model, frame, say


@pytest.fixture
def model(tmp_path: Path) -> Iterator[VisualRWKV]:
    with fake_model(tmp_path / "bundle") as model:
        yield model


def test_every_step_can_be_taken_back(model: VisualRWKV) -> None:
    session = model.session()
    passed = [(bits(session), session.tokens, session.frames, session.history)]
    for step in range(4):
        session.see(frame(step)) if step % 2 == 0 else say(session, f"Question {step}?", frame(10))
        passed.append((bits(session), session.tokens, session.frames, session.history))
    last = passed.pop()
    assert last != passed[-1]
    while passed:
        session.undo()
        assert (bits(session), session.tokens, session.frames, session.history) == passed.pop()
    with pytest.raises(StateError, match="nothing to undo"):
        session.undo()
    session.see(frame(0))  # and it goes on
    assert session.frames == 1


def test_what_follows_an_undo_is_as_if_nothing_had_been_undone(model: VisualRWKV) -> None:
    session, other = model.session(), model.session()
    for one in (session, other):
        one.see(frame(1))
        say(one, "First?")
    say(session, "A mistake?", frame(3))
    session.undo()
    assert say(session, "Second?") == say(other, "Second?")
    assert bits(session) == bits(other)


@pytest.mark.parametrize("ending", ["cancel", "close"])
def test_a_cancelled_answer_is_one_step(model: VisualRWKV, ending: str) -> None:
    session = model.session()
    session.see(frame(1))
    before = bits(session)
    stream = session.ask("A long story?")
    next(stream)
    with pytest.raises(StateError, match="busy"):
        session.undo()
    if ending == "cancel":
        session.cancel()
        list(stream)
    else:
        stream.close()  # type: ignore[attr-defined]
    assert len(session.history) == 1
    session.undo()
    assert bits(session) == before
    assert session.history == []


def test_calls_that_change_nothing_are_no_step(model: VisualRWKV) -> None:
    session = model.session()
    session.see(frame(1))
    session.see()
    with pytest.raises(InputError):
        session.see("no such file.png")
    session.ask("Never started?")
    session.undo()
    assert session.tokens == 0
    with pytest.raises(StateError, match="nothing to undo"):
        session.undo()


def test_undo_mends_a_broken_session(model: VisualRWKV) -> None:
    session = model.session()
    session.see(frame(1))
    before = bits(session)
    assert isinstance(model.engine.backend, FakeBackend)
    model.engine.backend.fail = RuntimeError("device lost")
    with pytest.raises(RuntimeError, match="device lost"):
        say(session, "One?")
    model.engine.backend.fail = None
    with pytest.raises(StateError, match="undo"):
        session.see(frame(2))
    session.undo()
    assert bits(session) == before
    assert say(session, "One?")


def test_reset_and_restore_leave_no_way_back_to_another_conversation(model: VisualRWKV) -> None:
    session = model.session()
    session.see(frame(1))
    snapshot = session.snapshot()
    fork = session.fork()
    for forget in (session.reset, lambda: session.restore(snapshot)):
        session.see(frame(2))
        forget()
        with pytest.raises(StateError, match="nothing to undo"):
            session.undo()
    with pytest.raises(StateError, match="nothing to undo"):
        fork.undo()


def test_the_ring_is_bounded_and_allocated_once(model: VisualRWKV, tmp_path: Path) -> None:
    session = model.session()
    size, ring = session.nbytes, session._undo
    arrays = {id(a) for snapshot in ring._free for a in snapshot.arrays.values()}
    for step in range(3 * UNDO_STEPS):
        session.see(frame(step))
        assert session.nbytes == size
    assert {id(a) for snapshot, _ in ring._entries for a in snapshot.arrays.values()} == arrays
    for _ in range(UNDO_STEPS):
        session.undo()
    assert session.frames == 2 * UNDO_STEPS
    with pytest.raises(StateError, match="last 16"):
        session.undo()
    one = model.session().snapshot().state.nbytes
    small = fake_model(tmp_path / "bundle", undo_bytes=3 * one + 1).session()
    assert (small._undo.steps, small._undo.nbytes) == (3, 3 * one)
    off = fake_model(tmp_path / "bundle", undo_bytes=0).session()
    off.see(frame(1))
    with pytest.raises(StateError, match="nothing to undo"):
        off.undo()


def test_pictures_that_wait_count(tmp_path: Path) -> None:
    model = fake_model(tmp_path / "bundle", undo_bytes=1000)  # states of 128 bytes, pictures of 96
    session = model.session(padding="left16")
    one = session.snapshot().state.nbytes
    for step in range(20):
        session.see(frame(step))
        held = len(session._undo)
        assert held >= 1 and (held == 1 or session._undo._pictures() + session._undo.nbytes <= 1000)
    session.undo()
    assert session.frames == 19
    assert undo_steps(1000, one) == 7


def test_counts() -> None:
    assert [undo_steps(64 << 20, size) for size in (13 << 20, 1 << 20, 1, 0)] == [4, 16, 16, 16]
    assert undo_steps(10, 11) == 0
