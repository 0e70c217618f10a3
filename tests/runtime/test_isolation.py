"""Sessions that share an engine, a batch and a process give exactly what each of them gives alone.

Exactly: the same ids fed and the same tokens (recording engine), the same bits in every slot and logit (fake backend
here, onnxruntime with the demo model in `tests/test_shared_steps.py`).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.backends.fake import FakeBackend
from runtime.bundle import Bundle
from runtime.engine import Engine
from runtime.lanes import Lanes
from runtime.sampling import GenerateOptions
from runtime.session import Session, SessionSnapshot
from runtime.state import State
from runtime.tokenizer import Tokenizer
from tests.runtime.fake_bundle import write_fake_bundle
from tests.runtime.recording import MANIFEST, RecordingEngine, RecordingState, fed, open_session, picture

SEQUENCES = 5
Deed = tuple[str, dict[int, int]]  # what is done, to which sequences, with which token


def schedule_of(seed: int) -> list[Deed]:
    """Draw up to 25 deeds; half of them steps of two sequences or more."""
    rng, schedule = random.Random(seed), []
    for _ in range(rng.randint(1, 25)):
        kind = rng.choice(["step"] * 5 + ["feed", "read", "zero", "copy", "drop"])
        members = rng.sample(range(SEQUENCES), rng.randint(2, SEQUENCES) if kind == "step" else 2)
        schedule.append((kind, {i: rng.randint(1, 250) for i in members}))
    return schedule


firsts = st.integers(0, 2**32).map(lambda seed: range(seed, seed + 25))
"""Seeds of 25 schedules: drawing the schedules themselves would take longer than running them."""


class SmallEngine(RecordingEngine):
    """With few logits, so that thousands of schedules take seconds."""

    def __init__(self) -> None:
        super().__init__(replace(MANIFEST, vocab_size=300))

    def _next(self, fed: list[int]) -> int:
        return hash(tuple(fed)) % 300


@settings(max_examples=120)
@given(firsts)
def test_what_is_fed_to_one_reaches_only_that_one(several: range) -> None:
    """On the recording engine: every sequence holds exactly what was fed to it. 3,000 schedules."""
    for seed in several:
        fed_is_what_was_fed(schedule_of(seed))


def fed_is_what_was_fed(schedule: list[Deed]) -> None:
    engine = SmallEngine()
    lanes = Lanes(engine)  # type: ignore[arg-type]
    states = [engine.new_state() for _ in range(SEQUENCES)]
    wanted: list[list[int]] = [[] for _ in states]
    for kind, what in schedule:
        if kind == "step":
            rows = [engine.embed([i]) for i in what.values()]
            found = lanes.step(rows, [states[i] for i in what])  # type: ignore[arg-type]
            for i, logits in zip(what, found, strict=True):
                wanted[i].append(what[i])
                assert logits.argmax() == engine._next(wanted[i])
            continue
        (i, value), (j, _) = what.items()
        if kind == "feed":
            engine.advance([value, value + 1], states[i])
            wanted[i] += [value, value + 1]
        elif kind == "read":
            assert states[i].fed == wanted[i]
        elif kind == "zero":
            states[i].zero()
            wanted[i] = []
        elif kind == "copy":
            states[j].restore(states[i].snapshot())
            wanted[j] = wanted[i][:]
        elif kind == "drop":
            states[i], wanted[i] = RecordingState(), []
    assert [state.fed for state in states] == wanted


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, Engine]:
    """Two engines of the same bundle: one that is shared, one to compare with."""
    bundle = Bundle.open(write_fake_bundle(tmp_path_factory.mktemp("isolation") / "bundle"))
    return Engine(bundle, FakeBackend()), Engine(bundle, FakeBackend())


@settings(max_examples=40)
@given(firsts)
def test_states_in_lanes_have_the_bits_they_have_alone(engines: tuple[Engine, Engine], several: range) -> None:
    """1,000 schedules."""
    for seed in several:
        bits_are_those_alone(*engines, schedule_of(seed))


def bits_are_those_alone(shared: Engine, single: Engine, schedule: list[Deed]) -> None:
    lanes = Lanes(shared)
    states, alone = ([engine.new_state() for _ in range(SEQUENCES)] for engine in (shared, single))

    def advance(engine: Engine, i: int, ids: list[int], of: list[State]) -> np.ndarray:
        return engine.advance(ids, of[i]).copy()

    for kind, what in schedule:
        if kind == "step":
            found = lanes.step([shared.embed([i]) for i in what.values()], [states[i] for i in what])
            for i, logits in zip(what, found, strict=True):
                assert (logits == advance(single, i, [what[i]], alone)).all()
            continue
        (i, value), (j, _) = what.items()
        if kind == "feed":
            ids = [value, value + 1]
            assert (advance(shared, i, ids, states) == advance(single, i, ids, alone)).all()
        elif kind == "read":
            assert (states[i].array("att_shift") == alone[i].array("att_shift")).all()
        for of, engine in ((states, shared), (alone, single)):
            if kind == "zero":
                of[i].zero()
            elif kind == "copy":
                of[j].restore(of[i].snapshot())
            elif kind == "drop":
                of[i] = engine.new_state()
    for state, other in zip(states, alone, strict=True):
        for slot in ("att_shift", "ffn_shift"):
            assert (state.array(slot) == other.array(slot)).all()


# What one session does: look at a picture, ask (so many tokens, cancelled after so many chunks, or closed), fork,
# keep a snapshot and go back to it.
deed = st.one_of(
    st.tuples(st.just("see"), st.integers(1, 200)),
    st.tuples(st.just("ask"), st.integers(1, 6)),
    st.tuples(st.just("cancel"), st.integers(1, 3)),
    st.tuples(st.just("close"), st.integers(1, 3)),
    st.tuples(st.sampled_from(["fork", "keep", "back", "reset"]), st.just(0)),
)
lives = st.lists(st.lists(deed, min_size=1, max_size=5), min_size=2, max_size=4)


def live(session: Session, deeds: list[tuple[str, int]]) -> list[object]:
    """Do what is to be done; return everything that could be seen of it."""
    seen: list[object] = []
    kept: SessionSnapshot = session.snapshot()
    for number, (kind, value) in enumerate(deeds):
        if kind == "see":
            session.see(picture(value))
        elif kind in ("ask", "cancel", "close"):
            stream = session.ask(f"Question {number}", options=GenerateOptions(max_tokens=value + 3))
            for count, chunk in enumerate(stream, 1):
                seen.append((chunk.text, chunk.token_ids, chunk.finish_reason))
                if kind == "cancel" and count == value:
                    session.cancel()
                if kind == "close" and count == value:
                    stream.close()  # type: ignore[attr-defined]
                    break
        elif kind == "fork":
            session, old = session.fork(), session
            old.reset()
        elif kind == "keep":
            kept = session.snapshot()
        elif kind == "back":
            session.restore(kept)
        else:
            session.reset()
        seen.append(fed(session))
    return seen


@settings(max_examples=100)
@given(lives)
def test_sessions_in_threads_are_what_each_is_alone(
    tokenizer: Tokenizer, everyone: list[list[tuple[str, int]]]
) -> None:
    wanted = [live(open_session(RecordingEngine(), tokenizer), deeds) for deeds in everyone]
    engine = RecordingEngine()
    engine.segment = 5
    sessions = [open_session(engine, tokenizer) for _ in everyone]
    assert in_threads([lambda s=s, d=d: live(s, d) for s, d in zip(sessions, everyone, strict=True)]) == wanted  # type: ignore[misc]


def in_threads(calls: list[Callable[[], list[object]]]) -> list[list[object]]:
    """Run all at the same moment; return their results."""
    found: list[list[object]] = [[] for _ in calls]
    barrier = threading.Barrier(len(calls))

    def run(index: int) -> None:
        barrier.wait()
        found[index] = calls[index]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_the_threads_above_do_share_steps(tokenizer: Tokenizer) -> None:
    """Otherwise the test above would show nothing."""
    engine = RecordingEngine()
    in_threads([lambda: live(open_session(engine, tokenizer), [("ask", 40)]) for _ in range(4)])
    shared = sum(count for kind, count in engine.log if kind == "step")
    assert shared > 40


def test_two_pictures_in_a_row_never_mix(tokenizer: Tokenizer, tmp_path: Path) -> None:
    engine = Engine(Bundle.open(write_fake_bundle(tmp_path / "bundle")), FakeBackend())
    pixels = [np.full((1, 3, 4, 4), value, np.float32) for value in (0.25, -3.0)]
    first = engine.encode({"siglip": pixels[0]})
    kept = first.copy()
    second = engine.encode({"siglip": pixels[1]})
    np.testing.assert_array_equal(first, kept)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(engine.encode({"siglip": pixels[0]}), kept)
