"""TensorRT's forms of a graph, run on onnxruntime: what products become, what stays, what does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.recipe import RECIPES, Recipe, Rule
from quant.tensorrt import INT4_BLOCK, INT4_FORMAT, apply, quantize_symmetric
from runtime.errors import CheckpointError

EIGHT = Recipe("int8", (Rule("*.key", "int8-b32", "test"), Rule("*.ffn.value", "int8-b32", "test")), "float16")
FOUR = Recipe("int4", (Rule("*.key", "int4-b32", "test"), Rule("*.ffn.value", "int4-b32", "test")), "float16")


def two_products(k: int, hidden: int, scale: float = 1.0) -> tuple[ir.Model, np.ndarray, np.ndarray]:
    """x [T, k] -> relu(x key)^2 value, as a channel mix has it, with a product of activations behind."""
    rng = np.random.default_rng(0)
    key = (scale * rng.standard_normal((k, hidden)) / np.sqrt(k)).astype(np.float32)
    value = (rng.standard_normal((hidden, k)) / np.sqrt(hidden)).astype(np.float32)
    x = ir.Value(name="x", shape=ir.Shape(["T", k]), type=ir.TensorType(ir.DataType.FLOAT))
    weights = [
        ir.Value(name=f"blocks.0.ffn.{name}", shape=ir.Shape(w.shape), type=ir.TensorType(ir.DataType.FLOAT),
                 const_value=ir.tensor(w, name=f"blocks.0.ffn.{name}"))
        for name, w in (("key", key), ("value", value))
    ]  # fmt: skip
    first = ir.node("MatMul", [x, weights[0]])
    relu = ir.node("Relu", first.outputs)
    square = ir.node("Mul", [relu.outputs[0], relu.outputs[0]])
    second = ir.node("MatMul", [square.outputs[0], weights[1]])
    nodes = [first, relu, square, second]
    for index, node in enumerate(nodes):
        node.outputs[0].name = f"v{index}"
    out = second.outputs[0]
    out.shape, out.type = ir.Shape(["T", k]), ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [out], nodes=nodes, initializers=weights, opset_imports={"": 18})
    return ir.Model(graph, ir_version=10), key, value


def run(model: ir.Model, folder: Path, x: np.ndarray) -> np.ndarray:
    ir.save(model, folder / "g.onnx", external_data="g.onnx.data")
    (found,) = ort.InferenceSession(str(folder / "g.onnx")).run(None, {"x": x})
    return np.asarray(found)


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize(
    ("recipe", "formats", "most"),
    [
        (RECIPES["fp32"], {"float32"}, 1e-6),
        (RECIPES["fp16"], {"float16"}, 2e-3),
        (EIGHT, {"int8-b32"}, 2e-2),
        (FOUR, {INT4_FORMAT}, 0.2),
    ],
)
def test_the_rewritten_graph_computes_the_same(tmp_path: Path, recipe: Recipe, formats: set[str], most: float) -> None:
    model, key, value = two_products(128, 256)
    x = np.random.default_rng(1).standard_normal((5, 128)).astype(np.float32)
    wanted = np.square(np.maximum(x @ key, 0)) @ value
    rules = apply(model, recipe)
    assert {rule.format for rule in rules} == formats
    assert sum(rule.count for rule in rules) == 2
    assert error(run(model, tmp_path, x), wanted) < most
    if formats & {"int8-b32"}:
        assert [node.op_type for node in model.graph if node.domain == "vrwkv"] == ["MatMulW8"] * 2


@pytest.mark.parametrize("recipe", [EIGHT, FOUR])
def test_sizes_that_do_not_fit_are_float16(tmp_path: Path, recipe: Recipe) -> None:
    model, key, value = two_products(40, 72)
    x = np.random.default_rng(1).standard_normal((3, 40)).astype(np.float32)
    apply(model, recipe)
    assert {v.const_value.dtype for v in model.graph.initializers.values() if v.const_value} == {ir.DataType.FLOAT16}
    assert error(run(model, tmp_path, x), np.square(np.maximum(x @ key, 0)) @ value) < 2e-3


def test_squares_beyond_float16_are_scaled_down_and_up(tmp_path: Path) -> None:
    model, key, value = two_products(128, 256, scale=300.0)
    x = np.random.default_rng(1).standard_normal((4, 128)).astype(np.float32)
    hidden = np.square(np.maximum(x @ key, 0))
    assert hidden.max() > 65504
    apply(model, RECIPES["fp16"])
    casts = [node for node in model.graph if node.op_type == "Cast" and node.attributes["to"].as_int() == 10]
    probes = [node.inputs[0] for node in casts if node.inputs[0] is not None]
    for probe in probes:  # what is rounded to float16, before onnxruntime may take the cast out
        model.graph.outputs.append(probe)
        probe.type, probe.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["T", None])
    ir.save(model, tmp_path / "g.onnx")
    names = [probe.name for probe in probes if probe.name != "x"]
    rounded = ort.InferenceSession(str(tmp_path / "g.onnx")).run([*names, model.graph.outputs[0].name], {"x": x})
    assert all(np.abs(array).max() < 65504 for array in rounded[:-1])
    assert error(rounded[-1], hidden @ value) < 2e-3


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.floats(1e-6, 1e4), st.integers(0, 2**31))
def test_symmetric_codes_err_by_no_more_than_plain_rounding(blocks: int, n: int, scale: float, seed: int) -> None:
    weight = (np.random.default_rng(seed).standard_normal((blocks * INT4_BLOCK, n)) * scale).astype(np.float32)
    weight[:INT4_BLOCK, 0] = 0
    codes, scales = quantize_symmetric(weight)
    assert codes.shape == weight.shape and scales.shape == (blocks, n)
    ints = codes.astype(np.int32)
    assert ints.min() >= -7 and ints.max() <= 7 and not ints[:INT4_BLOCK, 0].any()
    wide = np.repeat(scales.astype(np.float32), INT4_BLOCK, 0)
    cut = weight.reshape(blocks, INT4_BLOCK, n)
    plain = (np.abs(cut).max(1) / 7).astype(np.float16).astype(np.float32)
    plain = np.repeat(plain, INT4_BLOCK, 0)
    steps = np.divide(weight, plain, out=np.zeros_like(weight), where=plain > 0)
    rounded = np.clip(np.rint(steps), -7, 7) * plain
    assert np.square(ints * wide - weight).sum() <= 1.001 * np.square(rounded - weight).sum() + 1e-12


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_weights_that_cannot_be_scaled_are_refused(bad: float) -> None:
    weight = np.ones((INT4_BLOCK, 2), np.float32)
    weight[3, 1] = bad
    with pytest.raises(CheckpointError, match="4 bits"):
        quantize_symmetric(weight)
