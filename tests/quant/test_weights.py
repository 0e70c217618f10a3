"""8-bit codes: error bounds, edge shapes, and the product onnxruntime makes of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

import quant.graph
from quant.recipe import RECIPES, Recipe, Rule
from quant.weights import BLOCK, dequantize_int8_b32, quantize_int8_b32


@given(k=st.integers(1, 130), n=st.integers(1, 20), scale=st.sampled_from([1e-6, 1.0, 1e4]), seed=st.integers(0, 99))
def test_every_weight_is_within_half_a_step(k: int, n: int, scale: float, seed: int) -> None:
    weight = (np.random.default_rng(seed).standard_normal((k, n)) * scale).astype(np.float32)
    codes, scales = quantize_int8_b32(weight)
    assert codes.shape == (n, -(-k // BLOCK), BLOCK)
    assert codes.min() >= 1  # symmetric: -127 .. 127 around 128
    back = dequantize_int8_b32(codes, scales, k)
    step = np.repeat(scales.reshape(n, -1), BLOCK, 1)[:, :k].T
    assert (np.abs(back - weight) <= step * 0.5001 + 1e-30).all()


def test_zeros_stay_zeros() -> None:
    codes, scales = quantize_int8_b32(np.zeros((64, 3), np.float32))
    assert (codes == 128).all()
    assert (dequantize_int8_b32(codes, scales, 64) == 0).all()


def product(weight: np.ndarray) -> ir.Model:
    """y = x @ weight, in a graph with the initializer `ffn.key`."""
    k, n = weight.shape
    x = ir.Value(name="x", shape=ir.Shape(["B", k]), type=ir.TensorType(ir.DataType.FLOAT))
    w = ir.Value(name="blocks.0.ffn.key", const_value=ir.Tensor(weight, name="blocks.0.ffn.key"))
    w.shape, w.dtype = ir.Shape(weight.shape), ir.DataType.FLOAT
    node = ir.node("MatMul", [x, w])
    node.outputs[0].name = "y"
    node.outputs[0].shape, node.outputs[0].dtype = ir.Shape(["B", n]), ir.DataType.FLOAT
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 18}, name="g")
    return ir.Model(graph, ir_version=10)


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(ir.serde.serialize_model(model).SerializeToString())
    (y,) = session.run(None, {"x": x})
    return y


@pytest.mark.parametrize(("precision", "limit"), [("fp16", 1e-3), ("int8", 2e-2)])
@pytest.mark.parametrize("rows", [1, 7])
def test_the_rewritten_product_is_close(precision: str, limit: float, rows: int) -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((96, 40), np.float32), rng.standard_normal((rows, 96), np.float32)
    model = product(weight)
    (rule,) = quant.graph.apply(model, RECIPES[precision])
    assert rule.format == {"fp16": "float16", "int8": "int8-b32"}[precision]
    assert rule.bytes == {"fp16": 2 * weight.size, "int8": weight.size * (1 + 4 / BLOCK)}[precision]
    wanted = x @ weight
    error = np.sqrt(np.mean((run(model, x) - wanted) ** 2) / np.mean(wanted**2))
    assert error < limit


def test_large_activations_do_not_saturate() -> None:
    """All-positive, all-large inputs and weights: the case in which u8 x s8 products overflow 16 bits."""
    weight, x = np.full((64, 8), 0.9, np.float32), np.full((2, 64), 250.0, np.float32)
    model = product(weight)
    quant.graph.apply(model, RECIPES["int8"])
    np.testing.assert_allclose(run(model, x), x @ weight, rtol=1e-2)


def test_only_what_a_rule_names_changes() -> None:
    model = product(np.ones((64, 8), np.float32))
    (rule,) = quant.graph.apply(model, Recipe("other", (Rule("head.*", "int8-b32", "test"),), "float32"))
    assert (rule.format, rule.count) == ("float32", 1)
    assert [node.op_type for node in model.graph] == ["MatMul"]
