"""The files that an ONNX file reads are found wherever they are named, and damaged files are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import GraphProto, ModelProto, TensorProto, helper

from runtime.errors import BundleError
from runtime.onnxfile import external_files


def tensor(location: str | None) -> TensorProto:
    """Four numbers, here or in another file."""
    if location is None:
        return TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], raw_data=b"location" * 2)
    outside = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("offset", "0"), ("location", location), ("length", "16")):
        outside.external_data.add(key=key, value=value)
    return outside


def everywhere() -> ModelProto:
    """A model with weights in every place that the format has for them."""
    inner = GraphProto(name="inner", initializer=[tensor("in a subgraph")])
    inner.node.add(op_type="Constant").attribute.add(name="value", t=tensor("in a subgraph's node"))
    model = helper.make_model(GraphProto(name="g", initializer=[tensor("initializer"), tensor(None)]))
    model.graph.sparse_initializer.add(values=tensor("sparse values"), indices=tensor("sparse indices"))
    node = model.graph.node.add(op_type="If")
    node.attribute.add(name="then_branch", g=inner)
    node.attribute.add(name="more", graphs=[GraphProto(initializer=[tensor("in graphs")])])
    node.attribute.add(name="some", tensors=[tensor("in tensors"), tensor(None)])
    node.attribute.add(name="thin").sparse_tensor.values.CopyFrom(tensor("in a sparse attribute"))
    function = model.functions.add(name="f", domain="d")
    function.node.add(op_type="Constant").attribute.add(name="value", t=tensor("in a function"))
    function.attribute_proto.add(name="default", t=tensor("in a function's default"))
    model.training_info.add().algorithm.initializer.append(tensor("training"))
    return model


def test_every_place_is_found(tmp_path: Path) -> None:
    path = tmp_path / "step.onnx"
    path.write_bytes(everywhere().SerializeToString())
    assert external_files(path) == {
        "initializer",
        "sparse values",
        "sparse indices",
        "in a subgraph",
        "in a subgraph's node",
        "in graphs",
        "in tensors",
        "in a sparse attribute",
        "in a function",
        "in a function's default",
        "training",
    }


def test_a_file_that_reads_no_other(tmp_path: Path) -> None:
    path = tmp_path / "step.onnx"
    path.write_bytes(helper.make_model(GraphProto(name="g", initializer=[tensor(None)])).SerializeToString())
    assert external_files(path) == set()


@pytest.mark.parametrize(
    "content", [b"", b"read by nobody", b"\x3a\xff\xff\xff\xff\x7f", b"\xff" * 20, b"\x0b", b"\x3a", b"\x09\0"]
)
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "step.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError):
        external_files(path)


def test_graphs_nested_without_end_are_refused(tmp_path: Path) -> None:
    def field(number: int, data: bytes) -> bytes:
        length = bytearray()
        size = len(data)
        while size > 127:
            length.append(size & 127 | 128)
            size >>= 7
        return bytes([number << 3 | 2]) + bytes(length) + bytes([size]) + data

    graph = b"\x08\x01"
    for _ in range(200):
        graph = field(1, field(5, field(6, graph)))  # a node's attribute's graph
    path = tmp_path / "step.onnx"
    path.write_bytes(field(7, graph))
    with pytest.raises(BundleError, match="deeper"):
        external_files(path)


@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.integers(0, 900), new=st.binary(max_size=6), cut=st.integers(0, 6))
def test_damaged_files(tmp_path: Path, at: int, new: bytes, cut: int) -> None:
    """Whatever onnx itself reads, its locations are found; the rest is refused or harmless."""
    good = everywhere().SerializeToString()
    data = good[:at] + new + good[at + cut :]
    path = tmp_path / "step.onnx"
    path.write_bytes(data)
    try:
        found = external_files(path)
    except BundleError:
        return
    try:
        read = ModelProto.FromString(data)
    except Exception:  # protobuf checks more
        return
    first = [entry.value for one in read.graph.initializer for entry in one.external_data if entry.key == "location"]
    assert found >= set(first)
