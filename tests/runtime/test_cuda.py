"""onnxruntime's CUDA provider on a device that is pretended (`fake_provider`): conversations, recordings, memory."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from export.config import ExportConfig
from runtime import VisualRWKV, targets
from runtime.backends import cuda as module
from runtime.backends import cuda_memory
from runtime.backends.cuda import CudaBackend
from runtime.backends.ort import OrtBackend
from runtime.bundle import Bundle
from runtime.engine import Engine
from runtime.errors import BundleError, StateError, TargetUnavailable
from runtime.tokenizer import Tokenizer
from tests.runtime.fake_model import say
from tests.runtime.fake_provider import FakeGpu, install


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    gpu = FakeGpu()
    install(monkeypatch, gpu)
    return gpu


@pytest.fixture
def engine(demo_bundle: Path, gpu: FakeGpu) -> Iterator[Engine]:
    engine = Engine(Bundle.open(demo_bundle), CudaBackend())
    yield engine
    engine.close()
    engine.close()


@pytest.fixture
def plain(demo_bundle: Path) -> Engine:
    return Engine(Bundle.open(demo_bundle), OrtBackend(1))


def test_a_conversation_is_what_the_processor_says(demo_bundle: Path, gpu: FakeGpu, plain: Engine) -> None:
    tokenizer = Tokenizer(plain.bundle.file(plain.manifest.tokenizer.file))
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with VisualRWKV.load(demo_bundle, device="cuda") as model, VisualRWKV(plain, tokenizer) as other:
        assert model.engine.backend.name == "onnxruntime-cuda"
        found, wanted = model.session(), other.session()
        for session in (found, wanted):
            session.see(picture)
        for question in ("How many circles are there?", "图里有什么？"):
            assert say(found, question) == say(wanted, question) != ""
        assert say(found.fork(), "What is left?") == say(wanted.fork(), "What is left?")
    assert not gpu.live, "sessions are gone"


def test_one_token_steps_are_recorded_and_segments_are_not(engine: Engine, plain: Engine, gpu: FakeGpu) -> None:
    state, other = engine.new_state(), plain.new_state()
    for tokens in ([5, 6, 7], *([token] for token in range(1, 21))):
        np.testing.assert_allclose(engine.advance(tokens, state), plain.advance(tokens, other), atol=1e-4)
    assert (gpu.plain, gpu.recorded, gpu.replayed) == (1, 2, 18)  # one for each direction between the buffer sets
    for name, array in state.snapshot().arrays.items():
        np.testing.assert_allclose(array, other.array(name), atol=1e-4)
    main, *_, step = gpu.live
    assert main.fixed == {} and not main.records
    assert step.fixed == {"B": 1, "T": 1} and step.records
    assert {one.settings["use_tf32"] for one in gpu.live} == {"0"}


def test_weights_are_on_the_device_once(engine: Engine, gpu: FakeGpu) -> None:
    state = engine.new_state()
    before = gpu.nbytes
    engine.advance([1], state)
    main, *_, step = gpu.live
    assert main.shared and step.shared == main.shared
    assert gpu.nbytes == before


def test_state_stays_on_the_device(engine: Engine, gpu: FakeGpu) -> None:
    state = engine.new_state()
    for token in (1, 2, 3):
        engine.advance([token], state)
    gpu.up.clear(), gpu.down.clear()
    for token in range(10):
        engine.advance([token], state)
    assert dict(gpu.up) == {4 * engine.manifest.width: 10}, "the embedding goes in"
    assert dict(gpu.down) == {4 * engine.manifest.vocab_size: 10}, "the logits come out"


def test_a_fork_uses_memory_and_recordings_of_the_last_one(engine: Engine, gpu: FakeGpu) -> None:
    state = engine.new_state()
    engine.advance([1], state)
    seen = set()
    for _ in range(4):
        fork = state.copy()
        for token in (2, 3, 4):
            logits = engine.advance([token], fork).copy()
        seen.add((gpu.recorded, gpu.nbytes, logits.tobytes()))
        del fork
        gc.collect()
    assert len(seen) == 1


def test_memory_that_is_kept_is_bounded(engine: Engine, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_memory, "_SPARE", 0)
    before = gpu.nbytes
    for token in range(5):
        states = [engine.new_state() for _ in range(3)]
        for state in states:
            engine.advance([token + 1], state)
            engine.advance([token + 2], state)
        del states, state
        gc.collect()
        engine.new_state()
    gc.collect()
    engine.backend.allocate((1,), "float32")
    assert gpu.nbytes <= before + 4
    step = next(iter(engine._step._steps.values()))  # type: ignore[attr-defined]
    assert step.count == 30 and not step._bound


def test_a_session_with_too_many_recordings_is_opened_again(
    engine: Engine, plain: Engine, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RECORDINGS", 4)
    state, other = engine.new_state(), plain.new_state()
    held = []
    for token in range(1, 12):
        np.testing.assert_allclose(engine.advance([token], state), plain.advance([token], other), atol=1e-4)
        held.append(state)
        state = state.copy()
    assert gpu.recorded == 11 and len([one for one in gpu.live if one.records]) == 1


def test_sessions_share_steps(engine: Engine, gpu: FakeGpu) -> None:
    states = [engine.new_state() for _ in range(3)]
    for token, state in enumerate(states, 1):
        engine.advance([token], state)
    alone = [engine.advance([7], state.copy()).copy() for state in states]
    together = engine.new_state(3)
    for lane, state in enumerate(states):
        together.take_in(lane, state)
    rows = engine.step(engine.embed([7, 7, 7]), together)
    np.testing.assert_allclose(rows, np.stack(alone), atol=1e-4)
    assert sorted(one.fixed["B"] for one in gpu.live if one.records) == [1, 3]


@pytest.mark.parametrize("how", ["refused", "no aliases", "no sharing", "asked"])
def test_steps_without_recordings(
    how: str, demo_bundle: Path, plain: Engine, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(module, "event", lambda log, level, name, message, **_: told.append(message))
    gpu.refuse, gpu.share = how == "refused", how != "no sharing"
    install(monkeypatch, gpu, version="1.23.2", aliases=how != "no aliases")
    engine = Engine(Bundle.open(demo_bundle), CudaBackend(record=how != "asked"))
    state, other = engine.new_state(), plain.new_state()
    for token in (1, 2, 3):
        np.testing.assert_allclose(engine.advance([token], state), plain.advance([token], other), atol=1e-4)
    assert (gpu.plain, gpu.recorded) == (3, 0)
    assert len(told) == (how != "asked"), "told once"
    assert not told or told[0].startswith("steps are launched one by one: ")
    assert how != "no aliases" or "1.23.2 cannot share weights" in told[0]


def test_what_is_missing_is_named(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.present = False
    with pytest.raises(TargetUnavailable, match=r"cannot use a GPU: Failed to load libcublas\.so\.13") as caught:
        CudaBackend()
    assert "nvidia-smi" in caught.value.hint
    install(monkeypatch, gpu, cuda=False)
    with pytest.raises(TargetUnavailable, match="has no CUDA") as caught:
        CudaBackend()
    assert "onnxruntime-gpu[cuda,cudnn]" in caught.value.hint and "uninstall -y onnxruntime" in caught.value.hint
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(TargetUnavailable, match="not installed"):
        CudaBackend()


def test_which_backend_is_picked_and_why(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(targets, "event", lambda log, level, name, message, **_: told.append(message))
    for device, target in (("auto", "cuda"), ("cuda", "cpu")):
        assert targets.open_backend(device, target, 1).name == "onnxruntime-cuda"
        assert told.pop() == "onnxruntime-cuda runs the bundle" and not told
    gpu.present = False
    with pytest.raises(TargetUnavailable):
        targets.open_backend("cuda", "cuda", 1)
    backend = targets.open_backend("auto", "cuda", 1)
    assert backend.name in ("native-cpu", "onnxruntime-cpu")
    assert told[0].startswith("the processor runs the bundle: onnxruntime 1.31.1 cannot use a GPU: Failed to load")
    assert told[-1] == f"{backend.name} runs the bundle"


def test_errors_of_the_device_break_the_session_and_nothing_else(demo_bundle: Path, gpu: FakeGpu) -> None:
    with VisualRWKV.load(demo_bundle, device="cuda") as model:
        session = model.session()
        say(session, "One?")
        gpu.fail = True
        with pytest.raises(StateError, match="an illegal memory access"):
            say(session, "Two?")
        gpu.fail = False
        with pytest.raises(StateError, match="broke"):
            say(session, "Two?")
        session.undo()
        assert say(session, "Two?")


@pytest.fixture(scope="session")
def halves_bundle(golden: Path, export: Callable[..., Path]) -> Path:
    """An RWKV-6 as `--fp16 --target cuda` makes it, with the real onnxruntime."""
    options = json.loads((golden / "configs.json").read_text(encoding="utf-8"))["rwkv6_text.pth"]
    config = ExportConfig.from_dict(options)
    return export(golden / "rwkv6_text.pth", precision="fp16", config=config, target="cuda")


def test_a_bundle_exported_for_it(halves_bundle: Path, gpu: FakeGpu) -> None:
    """Its products are of halves, and the one-token step of an RWKV-6 has no control flow either."""
    bundle = Bundle.open(halves_bundle)
    assert bundle.manifest.target == "cuda"
    products = [
        n for n in onnx.load(bundle.path / "step.onnx", load_external_data=False).graph.node if n.op_type == "Cast"
    ]
    assert {TensorProto.FLOAT16, TensorProto.FLOAT} == {node.attribute[0].i for node in products}
    found, wanted = Engine(bundle, CudaBackend()), Engine(bundle, OrtBackend(1))
    state, other = found.new_state(), wanted.new_state()
    for tokens in ([5, 6, 7], [8], [9], [10]):
        np.testing.assert_allclose(found.advance(tokens, state), wanted.advance(tokens, other), atol=1e-4)
    assert (gpu.plain, gpu.recorded, gpu.replayed) == (1, 2, 1)


def test_graphs_that_are_none(demo_bundle: Path, gpu: FakeGpu, tmp_path: Path) -> None:
    manifest = Bundle.open(demo_bundle).manifest
    backend = CudaBackend(record=False)
    (tmp_path / "step.onnx").write_bytes(b"not onnx")
    with pytest.raises(BundleError, match="cannot load"):
        backend.load(manifest.graph("step"), tmp_path / "step.onnx")
    with pytest.raises(BundleError, match="inputs and outputs"):
        backend.load(manifest.graph("vision"), demo_bundle / "step.onnx")
