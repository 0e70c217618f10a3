"""The onnxruntime backend's bindings: reused while their buffers live, gone with them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from runtime.backends.ort import OrtBackend, OrtRunner, default_threads
from runtime.errors import BundleError
from runtime.spec import GraphSpec, TensorSpec

SPEC = GraphSpec(
    "step", "add.onnx", (TensorSpec("x", "float32", ("T", 2)),), (TensorSpec("y", "float32", ("T", 2)),), ()
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["T", 2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path = tmp_path / "add.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture
def backend() -> Iterator[OrtBackend]:
    backend = OrtBackend(threads=1)
    yield backend
    backend.close()
    backend.close()


def test_runs_into_the_given_buffers(backend: OrtBackend, file: Path) -> None:
    runner = backend.load(SPEC, file)
    x, y = backend.allocate((3, 2), "float32"), backend.allocate((3, 2), "float32")
    for value in (1.0, 2.5):
        x.write(np.full((3, 2), value, np.float32))
        runner.run({"x": x}, {"y": y})
        assert (y.read() == 2 * value).all()
    assert len(runner._bindings) == 1


def test_a_binding_does_not_keep_buffers_alive(backend: OrtBackend, file: Path) -> None:
    runner: OrtRunner = backend.load(SPEC, file)
    for size in range(1, 200):
        x, y = backend.allocate((size, 2), "float32"), backend.allocate((size, 2), "float32")
        x.write(np.full((size, 2), size, np.float32))
        runner.run({"x": x}, {"y": y})
        assert (y.read() == 2 * size).all()
    del x, y
    gc.collect()
    assert not runner._bindings


def test_another_graph_than_declared(backend: OrtBackend, file: Path) -> None:
    with pytest.raises(BundleError, match="inputs and outputs"):
        backend.load(GraphSpec("step", "add.onnx", (), SPEC.outputs, ()), file)
    file.write_bytes(b"not onnx")
    with pytest.raises(BundleError, match="cannot load"):
        backend.load(SPEC, file)


def test_one_core_stays_free() -> None:
    assert 1 <= default_threads() <= 8
