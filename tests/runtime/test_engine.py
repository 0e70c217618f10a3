"""Engine and state above the seam, on the fake backend: cuts, isolation, errors that leave the state alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runtime.backends.fake import FakeBackend
from runtime.bundle import Bundle
from runtime.engine import Engine
from runtime.errors import InputError, StateError
from runtime.state import Snapshot
from tests.runtime.fake_bundle import TOKENS, WIDTH, write_fake_bundle


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(Bundle.open(write_fake_bundle(tmp_path / "bundle")), FakeBackend(), prefill_segment=16)
    yield engine
    engine.close()
    engine.close()


@pytest.mark.parametrize("cuts", [(64,), (17, 47), (1,) * 64, (65 - 1,), (16, 48), (63, 1)])
def test_cut_invariance(engine: Engine, cuts: tuple[int, ...]) -> None:
    ids = list(np.random.default_rng(0).integers(1, 257, 64))
    whole, parts, start = engine.new_state(), engine.new_state(), 0
    wanted = engine.advance(ids, whole).copy()
    for length in cuts:
        found = engine.advance(ids[start : start + length], parts)
        start += length
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(parts.array("att_shift"), whole.array("att_shift"))


def test_states_do_not_share(engine: Engine) -> None:
    a, b = engine.new_state(), engine.new_state()
    engine.advance([1, 2, 3], a)
    assert not b.array("att_shift").any()
    c = a.copy()
    engine.advance([4], a)
    np.testing.assert_array_equal(c.array("att_shift"), _fed(engine, [1, 2, 3]))


def _fed(engine: Engine, ids: list[int]) -> np.ndarray:
    state = engine.new_state()
    engine.advance(ids, state)
    return state.array("att_shift")


def test_snapshots(engine: Engine) -> None:
    state = engine.new_state()
    engine.advance([1, 2], state)
    snapshot = state.snapshot()
    first = engine.advance([3], state).copy()
    state.restore(snapshot)
    np.testing.assert_array_equal(engine.advance([3], state), first)
    state.zero()
    assert not state.array("ffn_shift").any()
    with pytest.raises(StateError, match="snapshot"):
        state.restore(Snapshot({"att_shift": np.zeros(3, np.float32)}))
    with pytest.raises(StateError, match="no slot"):
        state.array("wkv")


def test_nothing_is_allocated_per_token(engine: Engine) -> None:
    state, allocated = engine.new_state(), []
    allocate = engine.backend.allocate
    engine.backend.allocate = lambda *a: allocated.append(a) or allocate(*a)  # type: ignore[method-assign,func-returns-value]
    for token in range(1, 50):
        engine.advance([token], state)
    assert not allocated
    assert state.nbytes == 2 * 2 * (2 * WIDTH) * 4  # two sets of two slots [2, 1, WIDTH] float32


def test_a_failed_step_leaves_the_state(engine: Engine) -> None:
    state = engine.new_state()
    engine.advance([1, 2, 3], state)
    before = state.array("att_shift")
    assert isinstance(engine.backend, FakeBackend)
    engine.backend.fail = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.advance([4], state)
    np.testing.assert_array_equal(state.array("att_shift"), before)


@pytest.mark.parametrize("ids", [[259], [-1], [1, 2, 65535]])
def test_unknown_ids(engine: Engine, ids: list[int]) -> None:
    with pytest.raises(InputError, match="no embedding"):
        engine.advance(ids, engine.new_state())


@pytest.mark.parametrize("shape", [(0, WIDTH), (3, WIDTH + 1), (WIDTH,), (1, 1, WIDTH)])
def test_wrong_embeddings(engine: Engine, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="embeddings of shape"):
        engine.advance(np.zeros(shape, np.float32), engine.new_state())


def test_encode_checks_and_copies(engine: Engine) -> None:
    pixels = np.arange(2 * 48, dtype=np.float32).reshape(2, 3, 4, 4)
    found = engine.encode({"siglip": pixels})
    assert found.shape == (2, TOKENS, WIDTH)
    kept = found.copy()
    engine.encode({"siglip": -pixels})
    np.testing.assert_array_equal(found, kept)  # a second picture never shows through the first
    assert not np.array_equal(found[0], found[1])
    for bad in ({}, {"siglip": pixels[:, :2]}, {"siglip": pixels.astype(np.float64)}, {"siglip": pixels[:0]}):
        with pytest.raises(InputError):
            engine.encode(bad)
