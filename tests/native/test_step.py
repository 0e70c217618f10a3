"""The native step against onnxruntime and float64, and against itself: cuts, lanes, threads, instruction sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

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
from tests.native.conftest import MODELS
from tests.native.feeding import apart, new_state, same, tokens
from tests.native.truth import truth_of

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=f"{unavailable()}: pip install -e . with a C++ compiler")
ISAS = () if unavailable() else instruction_sets()
LOGITS = STATE = 1e-4  # absolute, float32 weights: the tolerance of tests/test_golden.py
PRECISIONS = [
    *(("rwkv7_text", precision) for precision in ("fp32", "fp16", "int8", "int4")),
    *(("hm621", precision) for precision in ("fp32", "fp16", "int8", "int4")),
    ("rwkv6_text", "int4"),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("model", MODELS)
def test_float32_is_onnxruntimes(
    model: str, isa: str, bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VRWKV_ISA", isa)
    backends: tuple[Backend, ...] = (NativeBackend(1, required=True), OrtBackend(1))
    mine, theirs = (Engine(bundle("fp32", model), backend) for backend in backends)
    states = new_state(mine), new_state(theirs)
    for token in tokens(mine, 200):
        found, wanted = (engine.advance([token], state) for engine, state in zip((mine, theirs), states, strict=True))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=LOGITS)
    assert apart(*states) < STATE
    mine.close()
    theirs.close()


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("model", ["rwkv7_text", "rwkv6_text", "hm621", "hm621_old"])
def test_codes_are_closer_to_the_truth_than_onnxruntimes(
    model: str, precision: str, native: Callable[..., Engine], bundle: Callable[..., Bundle]
) -> None:
    """Truth: the same codes, every sum in float64 (tests/native/truth.py)."""
    mine, theirs = native(precision, model), Engine(bundle(precision, model), OrtBackend(1))
    truth, errors = truth_of(bundle(precision, model)), np.zeros(2)
    states = new_state(mine), new_state(theirs)
    image = states[0].array("image_state")[:, 0] if "image_state" in states[0].inputs else None
    for token in tokens(mine, 40):
        wanted = truth.step(mine.embed([token])[0], image)
        for i, engine in enumerate((mine, theirs)):
            errors[i] += np.square(engine.advance([token], states[i]) - wanted).sum() / np.square(wanted).sum()
    ours, usual = np.sqrt(errors / 40)
    assert ours < 1e-3
    assert ours < usual / 5
    theirs.close()


@pytest.mark.parametrize(("model", "precision"), PRECISIONS)
def test_cuts_lanes_and_threads_change_no_bit(model: str, precision: str, native: Callable[..., Engine]) -> None:
    engine, threaded = native(precision, model), native(precision, model, threads=3)
    fed = tokens(engine, 300)  # more than are computed at once
    whole = new_state(engine)
    wanted = engine.advance(fed, whole).copy()
    for cuts in ((17, 283), (129, 171), (8, 9, 283)):
        state, start = new_state(engine), 0
        for length in cuts:
            found = engine.advance(fed[start : start + length], state)
            start += length
        np.testing.assert_array_equal(found, wanted)
        assert same(state, whole)
    one, many = new_state(engine), new_state(threaded)
    for token in fed[:64]:
        found = engine.advance([token], one)
        np.testing.assert_array_equal(threaded.advance([token], many), found)
    np.testing.assert_array_equal(engine.advance(fed[:64], new_state(engine)), found)
    assert same(one, many)
    state = new_state(threaded)
    np.testing.assert_array_equal(threaded.advance(fed, state), wanted)
    assert same(state, whole)


@pytest.mark.parametrize("batch", [2, 3, 8, 11])
@pytest.mark.parametrize("model", ["rwkv7_text", "rwkv6_text", "hm621"])
def test_lanes_have_the_bits_of_one_alone(model: str, batch: int, native: Callable[..., Engine]) -> None:
    engine = native("int8", model, threads=2)
    lanes, shared = Lanes(engine), [new_state(engine, seed=i) for i in range(batch)]
    for i, state in enumerate(shared):
        engine.advance(tokens(engine, 3 + i, seed=i), state)
    alone = [state.copy() for state in shared]
    for turn in range(4):
        rows = [engine.embed(tokens(engine, 1, seed=100 * turn + i)) for i in range(batch)]
        for row, logits, state in zip(rows, lanes.step(rows, shared), alone, strict=True):
            np.testing.assert_array_equal(logits, engine.advance(row, state))
    assert all(same(one, other) for one, other in zip(shared, alone, strict=True))


@pytest.mark.parametrize("model", ["rwkv7_text", "hm621"])
def test_not_finite_shows(model: str, native: Callable[..., Engine]) -> None:
    engine = native("int8", model)
    for bad in (np.nan, np.inf):
        state = new_state(engine)
        row = engine.embed([5]).copy()
        row[0, 3] = bad
        assert not np.isfinite(engine.advance(row, state)).all()
        assert not np.isfinite(state.array("wkv")).all()


@pytest.mark.parametrize("model", ["rwkv7_text", "rwkv6_text"])
def test_zero_rows_are_not_read(model: str, native: Callable[..., Engine]) -> None:
    engine = native("int8", model)
    step = engine.backend.step  # type: ignore[attr-defined]
    engine.advance([5], engine.new_state())
    assert 0 < step.bytes_read < step.weight_bytes


@pytest.mark.parametrize("model", ["rwkv7_text", "hm621", "v60"])
def test_wrong_buffers_are_refused(model: str, native: Callable[..., Engine]) -> None:
    engine = native("fp32", model)
    step, state = engine.backend.step, engine.new_state()  # type: ignore[attr-defined]
    logits, width = engine.backend.allocate((1, engine.manifest.vocab_size), "float32"), engine.manifest.width
    allocate = engine.backend.allocate
    right = {"embeddings": allocate((1, 2, width), "float32"), **state.inputs}
    if model == "v60":
        right["scan"] = allocate((4, 2), "int64")
        right["scan"].write(np.array([[0, 1], [1, 0]] * 2))
    step.run(right, {"logits": logits, **state.outputs})
    wrong = [("embeddings", (1, width), "float32"), ("embeddings", (1, 0, width), "float32"),
             ("embeddings", (2, 2, width), "float32"), ("embeddings", (1, 2, width), "float64")]  # fmt: skip
    wrong += [("image_state", (2, 1, 2, 64, 64), "float32")] if model == "hm621" else []
    wrong += [("scan", (4, 2), "int32"), ("scan", (4, 3), "int64"), ("scan", (4, 2), "int64")] if model == "v60" else []
    for name, shape, dtype in wrong:  # the last scan is of zeros: a position twice, another never
        with pytest.raises(InputError, match="wanted"):
            step.run({**right, name: allocate(shape, dtype)}, {"logits": logits, **state.outputs})
    engine.close()
    engine.close()
    with pytest.raises(StateError, match="closed"):
        engine.advance([5], state)


def test_an_instruction_set_that_is_not_here(bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VRWKV_ISA", "abacus")
    with pytest.raises(ConfigError, match="VRWKV_ISA"):
        Engine(bundle("fp32"), NativeBackend(1, required=True))


def test_devices(bundle: Callable[..., Bundle]) -> None:
    path = bundle("int8").path
    for device, name in (("auto", "native-cpu"), ("cpu", "native-cpu"), ("native", "native-cpu")):
        with VisualRWKV.load(path, device, threads=1) as model:
            assert model.engine.backend.name == name
    with VisualRWKV.load(path, "onnxruntime", threads=1) as model:
        assert model.engine.backend.name == "onnxruntime-cpu"


def test_other_models_run_on_onnxruntime_with_a_reason(bundle: Callable[..., Bundle]) -> None:
    known = bundle("fp32", "rwkv6_text")
    graphs = tuple(replace(graph, custom_ops=("vrwkv::WKV8",)) for graph in known.manifest.graphs)
    other = replace(known, manifest=replace(known.manifest, graphs=graphs))
    backend = NativeBackend(1)
    engine = Engine(other, backend)
    assert backend.name == "onnxruntime-cpu"
    assert "WKV8" in backend.reason
    assert np.isfinite(engine.advance([5, 6], engine.new_state())).all()
    engine.close()
    with pytest.raises(TargetUnavailable, match="WKV8"):
        Engine(other, NativeBackend(1, required=True))
