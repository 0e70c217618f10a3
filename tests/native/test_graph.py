"""What the native step reads of a bundle: what ONNX files say, and nothing that is not so."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from runtime.bundle import Bundle
from runtime.errors import BundleError, TargetUnavailable
from runtime.native.families import find_parts
from runtime.native.graph import Graph, read_graph
from runtime.native.step import NativeStep, unavailable
from runtime.spec import GraphSpec, TensorSpec

Step = tuple[GraphSpec, Path]


@pytest.fixture(scope="module")
def steps(bundle: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Step]:
    """The step graphs of small models, each in a folder of its own."""
    found = {}
    for name in ("rwkv7_text", "hm621"):
        model, folder = bundle("fp32", name), tmp_path_factory.mktemp("step")
        for file in ("step.onnx", "step.onnx.data"):
            shutil.copyfile(model.file(file), folder / file)
        found[name] = model.manifest.graph("step"), folder / "step.onnx"
    return found


@pytest.fixture(scope="module")
def step(steps: dict[str, Step]) -> Step:
    """That of RWKV-7."""
    return steps["rwkv7_text"]


def test_every_initializer_is_what_onnx_reads(step: Step) -> None:
    graph = read_graph(step[1])
    model = onnx.load(step[1])
    assert set(graph.tensors) == {one.name for one in model.graph.initializer}
    for one in model.graph.initializer:
        if graph.tensors[one.name].nbytes:
            np.testing.assert_array_equal(graph.read(one.name), numpy_helper.to_array(one))
    assert sum(graph.operators.values()) == len(model.graph.node)


def test_products_are_read(tmp_path: Path) -> None:
    node = helper.make_node(
        "MatMulNBits", ["x", "c", "s"], ["y"], domain="com.microsoft", K=64, N=3, bits=8, block_size=32
    )
    tensors = [numpy_helper.from_array(np.zeros((3, 2, 32), np.uint8), "c")]
    path = tmp_path / "a.onnx"
    path.write_bytes(helper.make_model(helper.make_graph([node], "g", [], [], tensors)).SerializeToString())
    product = read_graph(path).products["c"]
    assert (product.k, product.n, product.bits, product.block, product.inputs) == (64, 3, 8, 32, ("c", "s"))


@pytest.mark.parametrize(
    ("offset", "length", "location"),
    [
        (0, 1 << 20, "w.bin"),
        (60, 16, "w.bin"),
        (1 << 62, 16, "w.bin"),
        (0, 12, "w.bin"),
        (0, 16, "../w.bin"),
        (0, 16, ""),
    ],
)
def test_weights_outside_of_their_file_are_refused(tmp_path: Path, offset: int, length: int, location: str) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(64))
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("offset", str(offset)), ("length", str(length)), ("location", location)):
        tensor.external_data.add(key=key, value=value)
    path = tmp_path / "a.onnx"
    path.write_bytes(helper.make_model(helper.make_graph([], "g", [], [], [tensor])).SerializeToString())
    with pytest.raises(BundleError, match="try"):
        read_graph(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_refused_or_understood(steps: dict[str, Step], data: st.DataObject) -> None:
    """Cut short or with some bytes changed: an error of ours, or parts that lie within their files."""
    spec, path = steps[data.draw(st.sampled_from(sorted(steps)))]
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = path.with_name("damaged.onnx")
    damaged.write_bytes(content)
    try:
        graph = read_graph(damaged)
        parts = find_parts(graph, spec)
    except (BundleError, TargetUnavailable):
        return
    for vector in parts.vectors:
        assert vector is None or graph.read(vector.data).size >= vector.start + parts.width
    for weight in parts.matrices:
        assert weight is None or graph.read(weight.data).size >= weight.start + weight.k * weight.n


def _changed(spec: GraphSpec, **shapes: tuple[int | str, ...]) -> GraphSpec:
    return replace(spec, inputs=tuple(replace(t, shape=shapes.get(t.name, t.shape)) for t in spec.inputs))


def test_what_is_another_model_is_said(step: Step) -> None:
    spec, path = step
    parts = find_parts(read_graph(path), spec)
    assert (parts.layers, parts.width, parts.hidden, parts.vocabulary) == (3, 64, 256, 512)
    assert parts.ranks == (64, 48, 32, 96)
    with pytest.raises(TargetUnavailable, match="WKV8"):
        find_parts(read_graph(path), replace(spec, custom_ops=("vrwkv::WKV8",)))
    with pytest.raises(TargetUnavailable, match="WKV6"):
        find_parts(read_graph(path), replace(spec, custom_ops=("vrwkv::WKV6",)))
    with pytest.raises(TargetUnavailable, match="inputs"):
        find_parts(read_graph(path), replace(spec, inputs=spec.inputs[1:]))
    with pytest.raises(TargetUnavailable, match="att_shift"):
        find_parts(read_graph(path), _changed(spec, att_shift=(3, "B", 65)))
    refused(step, lambda g: g.operators.update(["Softmax"]), "Softmax")
    refused(step, lambda g: g.operators.subtract(["Sigmoid"]), "Sigmoid")
    refused(step, lambda g: g.epsilons.add(1e-3), "epsilon")
    refused(step, lambda g: g.tensors.pop("blocks.1.att.k_a"), "k_a")
    refused(step, lambda g: g.tensors.update({"more": g.tensors["blocks.0.att.w0"]}), "more")
    refused(step, lambda g: g.tensors.update({"head.head": g.tensors["blocks.0.ffn.key"]}), "head.head")


def test_what_is_another_rwkv6_is_said(steps: dict[str, Step]) -> None:
    step = spec, path = steps["hm621"]
    parts = find_parts(read_graph(path), spec)
    assert (parts.layers, parts.width, parts.hidden, parts.vocabulary) == (2, 128, 448, 512)
    assert parts.ranks[:2] == (32, 64)
    crossed = TensorSpec("cross_shift", "float32", (2, "B", 128))  # v6.22
    for message, changed in (
        ("cross_shift", replace(spec, inputs=(*spec.inputs, crossed))),
        ("image_state", _changed(spec, image_state=(5, "B", 2, 64, 64))),
        ("scan", replace(spec, inputs=(*spec.inputs, TensorSpec("scan", "float32", (4, "T"))))),
        ("orders", replace(spec, inputs=(*spec.inputs, TensorSpec("scan", "int64", ("S", "T"))))),
        ("Tanh", replace(spec, inputs=tuple(one for one in spec.inputs if one.name != "image_state"))),
    ):
        with pytest.raises(TargetUnavailable, match=message):
            find_parts(read_graph(path), changed)
    amounts = next(t for t in read_graph(path).tensors.values() if t.shape == (5, 1, 128))
    kept = read_graph(path)  # as in wide models, whose amounts the exporter does not fold
    flat = replace(kept.tensors.pop(amounts.name), name="blocks.0.att.time_maa", shape=(640,))
    kept.tensors[flat.name] = flat
    assert [v and v.start for v in find_parts(kept, spec).vectors[9:14]] == [0, 128, 256, 384, 512]
    refused(step, lambda g: g.tensors.update({"blocks.0.att.time_maa": g.tensors["head.ln_out_bias"]}), "time_maa")
    refused(step, lambda g: g.operators.update(["Relu"]), "Relu")
    refused(step, lambda g: g.tensors.pop(amounts.name), "0 weights")
    refused(step, lambda g: g.tensors.update({"blocks.0.more": replace(amounts, name="blocks.0.more")}), "2 weights")
    refused(step, lambda g: g.tensors.pop("blocks.1.att.time_mem_w2"), "time_mem_w2")
    refused(step, lambda g: g.tensors.update({"blocks.0.more": g.tensors["head.ln_out_bias"]}), "more")


def refused(step: Step, edit: Callable[[Graph], object], message: str) -> None:
    """A graph with one thing changed is not taken, and the message says what it was."""
    graph = read_graph(step[1])
    edit(graph)
    with pytest.raises(TargetUnavailable, match=message):
        find_parts(graph, step[0])


@pytest.mark.skipif(bool(unavailable()), reason=f"{unavailable()}: pip install -e . with a C++ compiler")
def test_the_file_is_not_needed_once_open(step: Step, tmp_path: Path) -> None:
    spec, path = step
    for name in ("step.onnx", "step.onnx.data"):
        shutil.copyfile(path.with_name(name), tmp_path / name)
    native = NativeStep(spec, tmp_path / "step.onnx", 1)
    (tmp_path / "step.onnx.data").write_bytes(b"")
    assert native.weight_bytes > 0
    native.close()
    assert native.weight_bytes == 0
