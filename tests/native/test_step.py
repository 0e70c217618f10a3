"""The native step against onnxruntime and float64, and against itself: cuts, lanes, threads, instruction sets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from export.config import ExportConfig
from runtime import VisualRWKV
from runtime.backends.base import Backend
from runtime.backends.native import NativeBackend
from runtime.backends.ort import OrtBackend
from runtime.bundle import Bundle
from runtime.engine import Engine
from runtime.errors import ConfigError, InputError, StateError, TargetUnavailable
from runtime.lanes import Lanes
from runtime.native.library import instruction_sets
from runtime.native.step import unavailable
from runtime.state import State
from tests.native.truth import Truth

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=f"{unavailable()}: pip install -e . with a C++ compiler")
ISAS = () if unavailable() else instruction_sets()
SLOTS = ("att_shift", "ffn_shift", "wkv")
PRECISIONS = ("fp32", "fp16", "int8", "int4")
LOGITS = STATE = 1e-4  # absolute, float32 weights: the tolerance of tests/test_golden.py


@pytest.fixture
def native(bundle: Callable[[str], Bundle]) -> Iterator[Callable[..., Engine]]:
    """Open it natively."""
    engines = []

    def run(precision: str, threads: int = 1) -> Engine:
        engines.append(Engine(bundle(precision), NativeBackend(threads, required=True)))
        return engines[-1]

    yield run
    for engine in engines:
        engine.close()


def tokens(engine: Engine, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, engine.manifest.vocab_size - 1, count)


def apart(one: State, other: State) -> float:
    return max(float(np.abs(one.array(slot) - other.array(slot)).max()) for slot in SLOTS)


def same(one: State, other: State) -> bool:
    return all(np.array_equal(one.array(slot), other.array(slot)) for slot in SLOTS)


@pytest.mark.parametrize("isa", ISAS)
def test_float32_is_onnxruntimes(isa: str, bundle: Callable[[str], Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VRWKV_ISA", isa)
    backends: tuple[Backend, ...] = (NativeBackend(1, required=True), OrtBackend(1))
    mine, theirs = (Engine(bundle("fp32"), backend) for backend in backends)
    states = mine.new_state(), theirs.new_state()
    for token in tokens(mine, 200):
        found, wanted = (engine.advance([token], state) for engine, state in zip((mine, theirs), states, strict=True))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=LOGITS)
    assert apart(*states) < STATE
    mine.close()
    theirs.close()


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_codes_are_closer_to_the_truth_than_onnxruntimes(
    precision: str, native: Callable[..., Engine], bundle: Callable[[str], Bundle]
) -> None:
    """Truth: the same codes, every sum in float64 (tests/native/truth.py)."""
    mine, theirs = native(precision), Engine(bundle(precision), OrtBackend(1))
    truth, errors = Truth(bundle(precision)), np.zeros(2)
    states = mine.new_state(), theirs.new_state()
    for token in tokens(mine, 40):
        wanted = truth.step(mine.embed([token])[0])
        for i, engine in enumerate((mine, theirs)):
            errors[i] += np.square(engine.advance([token], states[i]) - wanted).sum() / np.square(wanted).sum()
    ours, usual = np.sqrt(errors / 40)
    assert ours < 1e-3
    assert ours < usual / 5
    theirs.close()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_cuts_lanes_and_threads_change_no_bit(precision: str, native: Callable[..., Engine]) -> None:
    engine, threaded = native(precision), native(precision, threads=3)
    fed = tokens(engine, 300)  # more than are computed at once
    whole = engine.new_state()
    wanted = engine.advance(fed, whole).copy()
    for cuts in ((17, 283), (129, 171), (8, 9, 283)):
        state, start = engine.new_state(), 0
        for length in cuts:
            found = engine.advance(fed[start : start + length], state)
            start += length
        np.testing.assert_array_equal(found, wanted)
        assert same(state, whole)
    one, many = engine.new_state(), threaded.new_state()
    for token in fed[:64]:
        found = engine.advance([token], one)
        np.testing.assert_array_equal(threaded.advance([token], many), found)
    np.testing.assert_array_equal(engine.advance(fed[:64], engine.new_state()), found)
    assert same(one, many)
    state = threaded.new_state()
    np.testing.assert_array_equal(threaded.advance(fed, state), wanted)
    assert same(state, whole)


@pytest.mark.parametrize("batch", [2, 3, 8, 11])
def test_lanes_have_the_bits_of_one_alone(batch: int, native: Callable[..., Engine]) -> None:
    engine = native("int8", threads=2)
    lanes, shared = Lanes(engine), [engine.new_state() for _ in range(batch)]
    for i, state in enumerate(shared):
        engine.advance(tokens(engine, 3 + i, seed=i), state)
    alone = [state.copy() for state in shared]
    for turn in range(4):
        rows = [engine.embed(tokens(engine, 1, seed=100 * turn + i)) for i in range(batch)]
        for row, logits, state in zip(rows, lanes.step(rows, shared), alone, strict=True):
            np.testing.assert_array_equal(logits, engine.advance(row, state))
    assert all(same(one, other) for one, other in zip(shared, alone, strict=True))


def test_not_finite_shows(native: Callable[..., Engine]) -> None:
    engine = native("int8")
    for bad in (np.nan, np.inf):
        state = engine.new_state()
        row = engine.embed([5]).copy()
        row[0, 3] = bad
        assert not np.isfinite(engine.advance(row, state)).all()
        assert not np.isfinite(state.array("wkv")).all()


def test_zero_rows_are_not_read(native: Callable[..., Engine]) -> None:
    engine = native("int8")
    step = engine.backend.step  # type: ignore[attr-defined]
    engine.advance([5], engine.new_state())
    assert 0 < step.bytes_read < step.weight_bytes


def test_wrong_buffers_are_refused(native: Callable[..., Engine]) -> None:
    engine = native("fp32")
    step, state = engine.backend.step, engine.new_state()  # type: ignore[attr-defined]
    logits, width = engine.backend.allocate((1, engine.manifest.vocab_size), "float32"), engine.manifest.width
    for shape, dtype in (((1, width), "float32"), ((1, 0, width), "float32"), ((2, 1, width), "float32"),
                         ((1, 1, width), "float64")):  # fmt: skip
        x = engine.backend.allocate(shape, dtype)
        with pytest.raises(InputError, match="wanted"):
            step.run({"embeddings": x, **state.inputs}, {"logits": logits, **state.outputs})
    engine.close()
    engine.close()
    with pytest.raises(StateError, match="closed"):
        engine.advance([5], state)


def test_an_instruction_set_that_is_not_here(bundle: Callable[[str], Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VRWKV_ISA", "abacus")
    with pytest.raises(ConfigError, match="VRWKV_ISA"):
        Engine(bundle("fp32"), NativeBackend(1, required=True))


def test_devices(bundle: Callable[[str], Bundle]) -> None:
    path = bundle("int8").path
    for device, name in (("auto", "native-cpu"), ("cpu", "native-cpu"), ("native", "native-cpu")):
        with VisualRWKV.load(path, device, threads=1) as model:
            assert model.engine.backend.name == name
    with VisualRWKV.load(path, "onnxruntime", threads=1) as model:
        assert model.engine.backend.name == "onnxruntime-cpu"


def test_other_models_run_on_onnxruntime_with_a_reason(golden: Path, export: Callable[..., Path]) -> None:
    options = json.loads((golden / "configs.json").read_text(encoding="utf-8"))["rwkv6_text.pth"]
    other = Bundle.open(export(golden / "rwkv6_text.pth", config=ExportConfig.from_dict(options)))
    backend = NativeBackend(1)
    engine = Engine(other, backend)
    assert backend.name == "onnxruntime-cpu"
    assert "WKV6" in backend.reason
    assert np.isfinite(engine.advance([5, 6], engine.new_state())).all()
    engine.close()
    with pytest.raises(TargetUnavailable, match="WKV6"):
        Engine(other, NativeBackend(1, required=True))
