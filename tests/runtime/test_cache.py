"""What was computed once is not computed again, and nobody can tell by the numbers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import Session, VisualRWKV
from runtime.backends.fake import FakeBackend
from runtime.cache import Cache, CacheStats, extend
from runtime.state import Snapshot
from tests.runtime.fake_bundle import TOKENS
from tests.runtime.fake_model import Counter, bits, fake_context_model, fake_model, frame, say

QUESTIONS = ("How many circles are there?", "Is it day or night?", "What is red?", "图里有红色图形吗？", "Why?")


@pytest.mark.parametrize("again", ["new", "reset"])
@pytest.mark.parametrize("how", ["see", "ask"])
def test_five_questions_on_one_frame_cost_one_vision_pass_and_one_prefill(tmp_path: Path, again: str, how: str) -> None:
    model = fake_model(tmp_path / "bundle")
    counter, session = Counter(model), model.session()
    cached = []
    for question in QUESTIONS:
        session = model.session() if again == "new" else session
        session.reset()
        if how == "see":
            session.see(frame(1))
        before = counter.positions
        *_, last = session.ask(question, (frame(1),) if how == "ask" else ())
        assert last.stats is not None
        cached.append(last.stats.cached_tokens)
        assert last.stats.image_tokens == TOKENS
        fed = counter.positions - before - (last.stats.generated_tokens - 1)
        computed = last.stats.prompt_tokens + TOKENS - last.stats.cached_tokens
        assert fed == computed - (6 + TOKENS if how == "see" and len(cached) == 1 else 0)
    assert counter.pictures == 1
    assert cached == [0, *[len("User: ") + TOKENS] * 4]
    assert model.cache.stats().hits == 8


def conversation(model: VisualRWKV, steps: list[tuple[str, int]]) -> list[str]:
    session, said = model.session(), []
    for what, n in steps:
        if what == "see":
            session.see(frame(n))
        elif what == "ask":
            said.append(say(session, f"{n}?", max_tokens=3))
        elif what == "show":
            said.append(say(session, "What?", frame(n), frame(n + 1), max_tokens=3))
        elif what == "reset":
            session.reset()
        elif what == "new":
            session = model.session(padding="left16" if n else "none")
        else:
            session = session.fork()
    return said


STEPS = st.lists(st.tuples(st.sampled_from(["see", "see", "ask", "show", "reset", "new", "fork"]), st.integers(0, 2)))


@settings(max_examples=60)
@given(steps=STEPS, position=st.sampled_from(["first", "last"]), size=st.sampled_from([300, 1 << 20]))
def test_a_hit_changes_no_bit(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any], position: Literal["first", "last"], size: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "cache-bundle"
    said, logits, stats = [], [], []
    for cache_bytes in (0, size):
        model = fake_model(folder, position, cache_bytes=cache_bytes)
        counter = Counter(model)
        said.append([conversation(model, steps) for _ in range(2)])
        logits.append(counter.logits)
        stats.append(model.cache.stats())
    assert said[0] == said[1]
    assert said[0][0] == said[0][1]
    assert stats[0] == CacheStats(0, 0, 0, 0, 0)
    assert stats[1].bytes <= size
    # Without a cache every call is made; with one, those that are made give the same, in the same order.
    every = iter(array.tobytes() for array in logits[0])
    assert all(array.tobytes() in every for array in logits[1])


def test_hits_on_the_demo_model_are_bit_identical(demo_bundle: Path) -> None:
    picture = np.random.default_rng(3).integers(0, 256, (96, 96, 3), np.uint8)
    states, pictures = [], []
    for cache_bytes in (0, 1 << 20):
        with VisualRWKV.load(demo_bundle, threads=1, cache_bytes=cache_bytes) as model:
            counter = Counter(model)
            for question in QUESTIONS:
                session = model.session()
                session.see(picture)
                say(session, question)
                states.append(bits(session))
            pictures.append(counter.pictures)
    assert states[: len(QUESTIONS)] == states[len(QUESTIONS) :]
    assert pictures == [5, 1]


def test_the_context_that_pictures_make_is_kept_with_their_state(tmp_path: Path) -> None:
    folder, said = tmp_path / "bundle", []
    for cache_bytes in (0, 1 << 20):
        model = fake_context_model(folder, cache_bytes=cache_bytes)
        counter = Counter(model)
        for shown in ((1,), (2,), (1, 2), (1,), (2, 1), (1, 2)):
            session = model.session()
            text = say(session, "What?", *map(frame, shown))
            said.append((text, bits(session)))
            assert session.snapshot().state.arrays["image_state"].any()
        assert counter.pictures == (2 if cache_bytes else 9)
        assert model.cache.stats().hits == (9 if cache_bytes else 0)
    assert said[:6] == said[6:]
    assert said[0] == said[3] != said[1]


def test_the_whole_history_is_in_the_key(tmp_path: Path) -> None:
    model = fake_model(tmp_path / "bundle")
    plain = fake_model(tmp_path / "bundle", cache_bytes=0)

    def differ(run: Callable[[VisualRWKV], Session]) -> None:
        assert bits(run(model)) == bits(run(plain))

    def seeing(*seeds: int, then: str = "", padding: Literal["none", "left16"] = "none") -> Callable[..., Session]:
        def run(model: VisualRWKV) -> Session:
            session = model.session(padding=padding)
            for seed in seeds:
                session.see(frame(seed))
            if then:
                say(session, then)
            return session

        return run

    for run in (seeing(1), seeing(2), seeing(1, 2), seeing(2, 1), seeing(2, 2), seeing(1, then="A?", padding="left16")):
        for _ in range(3):
            differ(run)
    joined, apart = model.session(), model.session()
    joined.see(frame(1), frame(2))
    apart.see(frame(1))
    apart.see(frame(2))
    for session, run in ((joined, joined), (apart, apart)):
        assert session.tokens == run.tokens == 6 + 2 * TOKENS + 1


def test_frames_of_a_camera_leave_no_states_behind(tmp_path: Path) -> None:
    model = fake_model(tmp_path / "bundle")
    session = model.session()
    for n in range(100):
        session.see(frame(n))
    stats = model.cache.stats()
    assert stats.entries <= 64
    state = session.snapshot().state.nbytes
    assert stats.bytes == stats.entries * TOKENS * 8 * 4 + (state if stats.bytes % (TOKENS * 32) else 0)
    assert stats.hits == 0


def test_a_second_picture_is_kept_when_it_comes_again(tmp_path: Path) -> None:
    model = fake_model(tmp_path / "bundle")
    counter, calls = Counter(model), []
    for _ in range(4):
        session = model.session()
        session.see(frame(1))
        session.see(frame(2))
        calls.append(counter.calls)
    assert calls == [2, 3, 3, 3]


def test_pictures_are_told_apart_by_every_pixel(tmp_path: Path) -> None:
    model = fake_model(tmp_path / "bundle")
    counter = Counter(model)
    one = frame(1)
    other = one.copy()
    other[-1, -1, -1] ^= 1
    for picture in (one, other, one[:, ::-1], one, other, one.copy()):
        model.session().see(picture)
    assert counter.pictures == 3


def test_a_saved_conversation_hits_its_own_pictures_only(tmp_path: Path) -> None:
    model = fake_model(tmp_path / "bundle")
    first = model.session()
    first.see(frame(1))
    first.save(tmp_path / "a")
    counter, states = Counter(model), []
    for _ in range(3):
        session = model.session(tmp_path / "a")
        session.see(frame(2))
        states.append(bits(session))
    assert states[0] == states[1] == states[2]
    assert counter.calls == 2  # a second picture, kept when it came again
    assert counter.pictures == 1


def test_a_state_made_by_hand_does_not_pass_for_another(tmp_path: Path) -> None:
    model = fake_model(tmp_path / "bundle")
    wanted = fake_model(tmp_path / "bundle").session()
    wanted.see(frame(1))
    snapshot = model.session().snapshot()
    with pytest.raises(ValueError, match="read-only"):
        snapshot.state.arrays["att_shift"][:] = 0.5
    edited = Snapshot({name: np.full_like(array, 0.5) for name, array in snapshot.state.arrays.items()})
    by_hand, fresh = model.session(), model.session()
    by_hand.restore(replace(snapshot, state=edited))
    by_hand.see(frame(1))
    fresh.see(frame(1))
    assert bits(fresh) == bits(wanted) != bits(by_hand)


def test_bad_pictures_are_not_kept(tmp_path: Path) -> None:
    model = fake_model(tmp_path / "bundle")
    encode = model.engine.encode_with_features
    model.engine.encode_with_features = lambda views: encode(views)._replace(  # type: ignore[method-assign]
        embeddings=np.full((1, TOKENS, 8), np.nan, np.float32)
    )
    with pytest.raises(Exception, match="went bad"):
        model.session().see(frame(1))
    model.engine.encode_with_features = encode  # type: ignore[method-assign]
    model.session().see(frame(1))
    assert model.cache.stats().entries == 2


def test_a_failed_encoding_is_tried_again(tmp_path: Path) -> None:
    model = fake_model(tmp_path / "bundle")
    assert isinstance(model.engine.backend, FakeBackend)
    model.engine.backend.fail = RuntimeError("out of memory")
    session = model.session()
    with pytest.raises(RuntimeError):
        session.see(frame(1))
    model.engine.backend.fail = None
    session.see(frame(1))
    assert session.frames == 1


def test_many_threads_make_one_value(tmp_path: Path) -> None:
    model = fake_model(tmp_path / "bundle")
    counter, encode = Counter(model), model.engine.encode_with_features
    model.engine.encode_with_features = lambda views: (time.sleep(0.01), encode(views))[1]  # type: ignore[method-assign]
    said: dict[int, str] = {}

    def ask(n: int) -> None:
        said[n] = say(model.session(), "What?", frame(1))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 8 and len(set(said.values())) == 1
    assert counter.pictures == 1
    assert model.cache.stats().misses == 2


def test_what_was_not_used_for_longest_goes_first() -> None:
    cache = Cache(max_bytes=10, max_entries=3)
    for key in (b"a", b"b", b"c"):
        cache.put(key, key, 3)
    assert cache.get(b"a") == b"a"
    cache.put(b"d", b"d", 3)  # too many entries
    assert (cache.get(b"b"), cache.get(b"a")) == (None, b"a")
    cache.put(b"e", b"e", 7)  # too many bytes
    assert [cache.get(key) for key in (b"c", b"d", b"a", b"e")] == [None, None, b"a", b"e"]
    cache.put(b"e", b"E", 1)
    cache.put(b"f", b"f", 11)
    assert cache.get(b"f") is None
    assert cache.stats() == CacheStats(hits=4, misses=4, evictions=3, entries=2, bytes=4)


def test_an_absent_cache_keeps_nothing() -> None:
    cache = Cache(0)
    cache.put(b"a", 1, 0)
    cache.put(b"b", 1, 1)
    assert not cache.enabled
    assert cache.stats().bytes == 0


def test_remembered_keys_are_bounded() -> None:
    cache = Cache()
    assert [cache.asked_before(key) for key in (b"a", b"b", b"a")] == [False, False, True]
    for n in range(2000):
        cache.asked_before(b"%d" % n)
    assert not cache.asked_before(b"b")
    assert len(cache._asked) <= 1024


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=3), max_size=4), st.lists(st.binary(max_size=3), max_size=4))
def test_digests_tell_lists_apart(a: list[bytes], b: list[bytes]) -> None:
    assert (extend(b"", a) == extend(b"", b)) == (a == b)
    assert extend(b"x", a) != extend(b"y", a)
