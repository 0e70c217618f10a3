"""The TensorRT backend on a device that is pretended (`fake_tensorrt`): whole conversations, recordings, the cache."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from runtime import VisualRWKV, tensorrt
from runtime.__main__ import main
from runtime.backends.ort import OrtBackend
from runtime.backends.trt import TrtBackend
from runtime.bundle import Bundle
from runtime.engine import Engine
from runtime.errors import BundleError, ConfigError, StateError, TargetUnavailable
from runtime.tokenizer import Tokenizer
from tests.conftest import ROOT
from tests.runtime.fake_model import say
from tests.runtime.fake_tensorrt import FakeCuda, fake_tensorrt, install


@pytest.fixture(scope="session")
def jetson_bundle(export: Callable[..., Path]) -> Path:
    """The embedded demo model as `python -m export --int8 --target jetson` makes it."""
    from export.config import ExportConfig

    demo = ROOT / "apps" / "demo"
    config = ExportConfig.load(demo / "demo.json", "demo.safetensors")
    return export(demo / "demo.safetensors", precision="int8", config=config, target="jetson")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCuda:
    """A machine with a GPU and an empty cache."""
    monkeypatch.setenv("VRWKV_CACHE", str(tmp_path / "cache"))
    library = tmp_path / "libvrwkv_plugins.so"
    library.write_bytes(b"plugins")
    monkeypatch.setattr("runtime.backends.trt._library", lambda architecture: library)
    monkeypatch.setattr(tensorrt, "_loaded", {})
    return FakeCuda()


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda) -> ModuleType:
    return install(monkeypatch, cuda)


@pytest.fixture
def model(jetson_bundle: Path, trt: ModuleType) -> Iterator[VisualRWKV]:
    bundle = Bundle.open(jetson_bundle)
    tokenizer = Tokenizer(bundle.file(bundle.manifest.tokenizer.file))
    with VisualRWKV(Engine(bundle, TrtBackend()), tokenizer) as model:
        yield model


def test_a_conversation_is_what_onnxruntime_says(model: VisualRWKV, jetson_bundle: Path) -> None:
    bundle = Bundle.open(jetson_bundle)
    tokenizer = Tokenizer(bundle.file(bundle.manifest.tokenizer.file))
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with VisualRWKV(Engine(bundle, OrtBackend(1)), tokenizer) as plain:
        found, wanted = model.session(), plain.session()
        for session in (found, wanted):
            session.see(picture)
        for question in ("How many circles are there?", "图里有什么？"):
            assert say(found, question) == say(wanted, question) != ""
        fork = found.fork()
        assert say(fork, "What is left?") == say(wanted, "What is left?")
        ours, theirs = found.snapshot().state.arrays, plain.session().snapshot().state.arrays
        assert {name: array.shape for name, array in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert model.engine.backend.name == "tensorrt-sm87"


def test_one_token_steps_are_recorded_once_and_replayed(model: VisualRWKV, cuda: FakeCuda) -> None:
    engine, state = model.engine, model.engine.new_state()
    for token in range(1, 21):
        engine.advance([token], state)
    # One recording for each of the two directions between the buffer sets; the first steps were launched as such.
    assert (cuda.captures, cuda.launches) == (2, 18)
    plain = Engine(engine.bundle, OrtBackend(1))
    other = plain.new_state()
    for token in range(1, 21):
        plain.advance([token], other)
    np.testing.assert_allclose(engine.advance([21], state), plain.advance([21], other), atol=1e-4)


def test_memory_goes_with_its_owner(model: VisualRWKV, cuda: FakeCuda) -> None:
    before = len(cuda.memory)
    for _ in range(3):
        state = model.engine.new_state()
        for token in (1, 2, 3):
            model.engine.advance([token], state)
        assert len(cuda.memory) > before
        del state
        gc.collect()
        assert len(cuda.memory) == before
    assert not model.engine._step._recordings  # type: ignore[attr-defined]


def test_sessions_share_steps(model: VisualRWKV) -> None:
    states = [model.engine.new_state() for _ in range(3)]
    for token, state in enumerate(states, 1):
        model.engine.advance([token], state)
    alone = [model.engine.advance([7], state.copy()).copy() for state in states]
    together = model.engine.new_state(3)
    for lane, state in enumerate(states):
        together.take_in(lane, state)
    rows = model.engine.step(model.engine.embed([7, 7, 7]), together)
    np.testing.assert_allclose(rows, np.concatenate(alone).reshape(rows.shape), atol=1e-4)


def test_engines_are_built_once_and_again_when_something_changes(
    jetson_bundle: Path, trt: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = Bundle.open(jetson_bundle).manifest
    graph, path = manifest.graph("step"), jetson_bundle / "step.onnx"
    backend = TrtBackend()
    first = backend.engine(graph, path)
    assert backend.engine(graph, path) == first and trt.made.built == 1
    assert b"wkv7_" not in trt.made.graphs["step"]  # the body of the operator is gone, so that the plugin is taken
    assert b"wkv7_" in path.read_bytes()
    newer = fake_tensorrt(FakeCuda(), version="10.13.3")
    again = TrtBackend()
    object.__setattr__(again._tensorrt, "module", newer)
    assert again.engine(graph, path) != first and newer.made.built == 1
    assert tensorrt.changed(again.engine(graph, path).name, [first.name]) == (
        "TensorRT tensorrt-10.13.3 instead of tensorrt-10.3.0"
    )
    assert tensorrt.changed(first.name, []) == ""
    assert sorted(p.suffix for p in first.parent.iterdir()) == [".engine", ".engine"]


def test_the_command_builds_every_graph(
    jetson_bundle: Path, demo_bundle: Path, trt: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(jetson_bundle)]) == 0
    told = capsys.readouterr().out
    assert "tensorrt-sm87" in told and "step: " in told and "vision: " in told
    assert trt.made.built == 2
    assert main(["build", str(jetson_bundle)]) == 0 and trt.made.built == 2
    assert main(["build", str(jetson_bundle), "--again"]) == 0 and trt.made.built == 4
    assert main(["build", str(demo_bundle)]) == 1
    assert "target 'cpu', which has nothing to build" in capsys.readouterr().err


def test_what_is_missing_is_named(
    jetson_bundle: Path, monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda, trt: ModuleType
) -> None:
    install(monkeypatch, FakeCuda(devices=0), trt)
    with pytest.raises(TargetUnavailable, match="no NVIDIA GPU"):
        TrtBackend()
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    monkeypatch.setitem(__import__("sys").modules, "tensorrt_rtx", None)
    with pytest.raises(TargetUnavailable, match="no TensorRT"):
        TrtBackend()


def test_errors_of_the_device_break_the_session_and_nothing_else(model: VisualRWKV, cuda: FakeCuda) -> None:
    session = model.session()
    say(session, "One?")
    cuda.fail = "cudaGraphLaunch"
    with pytest.raises(StateError, match="an illegal memory access"):
        say(session, "Two?")
    cuda.fail = None
    with pytest.raises(StateError, match="broke"):
        say(session, "Two?")
    session.undo()
    assert say(session, "Two?")


def test_an_engine_that_is_none(jetson_bundle: Path, trt: ModuleType) -> None:
    manifest = Bundle.open(jetson_bundle).manifest
    backend = TrtBackend()
    file = backend.engine(manifest.graph("step"), jetson_bundle / "step.onnx")
    file.write_bytes(b"half an engine")
    with pytest.raises(BundleError, match="--again"):
        backend.load(manifest.graph("step"), jetson_bundle / "step.onnx")


def test_sizes_outside_of_every_profile(model: VisualRWKV) -> None:
    runner: Any = model.engine._step
    long = {spec.name: np.zeros(spec.resolve(B=2, T=5)) for spec in model.manifest.graph("step").inputs}
    with pytest.raises(ConfigError, match="'B': 2, 'T': 5"):
        runner._choose(long)
