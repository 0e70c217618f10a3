"""Rewritten graphs: the product onnxruntime makes of the codes, and which tensor becomes what."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

import quant.graph
from quant.recipe import KEEP, PATHS, RECIPES, Recipe, Rule
from quant.weights import FORMATS, dequantize, quantize

NAME = "blocks.0.ffn.key"


def product(weight: np.ndarray, name: str = NAME) -> ir.Model:
    """y = x @ weight."""
    k, n = weight.shape
    x = ir.Value(name="x", shape=ir.Shape(["B", k]), type=ir.TensorType(ir.DataType.FLOAT))
    w = ir.Value(name=name, const_value=ir.Tensor(weight, name=name))
    w.shape, w.dtype = ir.Shape(weight.shape), ir.DataType.FLOAT
    node = ir.node("MatMul", [x, w])
    node.outputs[0].name = "y"
    node.outputs[0].shape, node.outputs[0].dtype = ir.Shape(["B", n]), ir.DataType.FLOAT
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 18}, name="g")
    return ir.Model(graph, ir_version=10)


def everything(fmt: str) -> Recipe:
    return Recipe("test", (Rule("*", fmt, "test"),), "float32")


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(ir.serde.serialize_model(model).SerializeToString())
    (y,) = session.run(None, {"x": x})
    return y


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2)))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("k", "rows"), [(96, 1), (96, 7), (72, 1), (200, 5)])
def test_onnxruntime_reads_the_layout(name: str, k: int, rows: int) -> None:
    """Activations that 8 bits hold exactly leave only the weights' layout to be right."""
    fmt, rng = FORMATS[name], np.random.default_rng(k)
    weight, x = rng.standard_normal((k, 40), np.float32), rng.integers(-127, 128, (rows, k)).astype(np.float32)
    x[:, :: min(fmt.block, 16)] = 127  # in every block, so that the kernel's activation scale is 1
    model = product(weight)
    quant.graph.apply(model, everything(name))
    back = dequantize(quantize(weight, fmt), k, fmt)
    np.testing.assert_allclose(run(model, x), x @ back, rtol=1e-5, atol=2e-3)


@pytest.mark.parametrize(("name", "limit"), [("float16", 1e-3), ("int8-b32", 1e-2), ("int4-b32", 9e-2)])
@pytest.mark.parametrize("rows", [1, 7])
def test_the_rewritten_product_is_close(name: str, limit: float, rows: int) -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((96, 40), np.float32), rng.standard_normal((rows, 96), np.float32)
    model = product(weight)
    (rule,) = quant.graph.apply(model, everything(name))
    size = {"float16": 2 * 96, "int8-b32": 96 + 3 * 4, "int4-b32": 48 + 3 * 4 + 2}[name] * 40
    assert (rule.format, rule.count, rule.bytes) == (name, 1, size)
    assert sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value) == size
    assert relative(run(model, x), x @ weight) < limit


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", [1, 5])
def test_large_activations_do_not_saturate(name: str, rows: int) -> None:
    """All-positive, all-large inputs and weights: the case in which u8 x s8 products overflow 16 bits."""
    weight, x = np.full((160, 8), 0.9, np.float32), np.full((rows, 160), 250.0, np.float32)
    weight[:, 4:] *= -1
    model = product(weight)
    quant.graph.apply(model, everything(name))
    stored = dequantize(quantize(weight, FORMATS[name]), 160, FORMATS[name])
    np.testing.assert_allclose(run(model, x), x @ stored, rtol=1e-4)
    np.testing.assert_allclose(stored, weight, rtol=2**-11)


def saturates(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether AVX2's u8 x s8 product (vpmaddubsw) of two vectors would: it adds pairs of products in 16 bits."""
    products = a.astype(np.int64) * b.astype(np.int64)
    pairs = products[0::2] + products[1::2]
    return bool((np.abs(pairs) > 32767).any())


def test_why_the_kernel_must_not_multiply_codes_as_they_are() -> None:
    """The codes of the test above, as that instruction would take them, and what keeps it inside 16 bits.

    |activation| as u8 times the weight with the activation's sign: at most 2 x 127 x 127. The weights' offset of 128
    has to go first; codes as u8 times activations as s8 would reach 2 x 255 x 127.
    """
    weight, x = np.full((160, 1), 0.9, np.float32), np.full(160, 127, np.int64)
    codes = quantize(weight, FORMATS["int8-b32"])[0].reshape(-1).astype(np.int64)
    assert saturates(codes, x)  # u8 codes times s8 activations: what DynamicQuantizeMatMul's layout asks for
    signed = codes - FORMATS["int8-b32"].middle
    assert np.abs(signed).max() == 127  # -128 never occurs, so that a sign can be taken over
    for sign in (1, -1):
        assert not saturates(np.abs(sign * x), signed * sign)
    nibbles = quantize(weight, FORMATS["int4-b32"])[0].reshape(-1)
    assert not saturates(np.repeat(nibbles & 15, 2).astype(np.int64), x)  # 15 x 127 x 2 is far inside


@pytest.mark.parametrize("name", ["int8-b32", "int4-b32"])
def test_a_row_does_not_depend_on_its_neighbours(name: str) -> None:
    rng = np.random.default_rng(3)
    weight, x = rng.standard_normal((96, 40), np.float32), rng.standard_normal((6, 96), np.float32)
    model = product(weight)
    quant.graph.apply(model, everything(name))
    together = run(model, x)
    x[1:] *= 1000
    np.testing.assert_allclose(run(model, x)[0], together[0], rtol=1e-5)
    np.testing.assert_allclose(run(model, x[:1])[0], together[0], rtol=1e-5)


def test_only_what_a_rule_names_changes() -> None:
    model = product(np.ones((64, 8), np.float32))
    (rule,) = quant.graph.apply(model, Recipe("other", (Rule("head.*", "int8-b32", "test"),), "float32"))
    assert (rule.format, rule.count) == ("float32", 1)
    assert [node.op_type for node in model.graph] == ["MatMul"]


MATRICES = ("att.receptance", "att.key", "att.value", "att.output", "ffn.key", "ffn.value")
OTHERS = (
    "att.gate",
    "att.mem_read",
    "att.mem_gate",
    "cross.receptance",
    "cross.gate",
    "cross.output",
    "ffn.receptance",
)
LORA = (
    "att.w1",
    "att.time_decay_w2",
    "att.time_maa_w1",
    "cross.time_maa_w1",
    "att.g2",
    "att.time_mem_w1",
)
KEPT = ("ln1_weight", "att.x_w", "att.w0", "att.r_k", "att.time_maa", "att.time_decay")


@pytest.mark.parametrize("matrix", MATRICES + OTHERS)
@pytest.mark.parametrize(
    ("precision", "wanted"),
    [
        ("fp32", ["float32"] * 8),
        ("fp16", ["float16"] * 8),
        ("int8", ["float16"] + ["int8-b32"] * 7),
        ("int4", ["int8-b32"] * 3 + ["int4-b32"] * 5),
    ],
)
def test_recipes_by_layer(precision: str, matrix: str, wanted: list[str]) -> None:
    recipe = RECIPES[precision]
    assert [recipe.rule(f"blocks.{i}.{matrix}", 8).format for i in range(8)] == wanted


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_what_no_recipe_touches(precision: str) -> None:
    recipe = RECIPES[precision]
    names = [f"blocks.{i}.{name}" for name in KEPT for i in (0, 7)]
    names += ["head.ln_out_weight", "tower.sam.blocks.0.qkv", "projector.gate"]
    paths = [recipe.rule(f"blocks.{i}.{name}", 8) for name in LORA for i in (0, 7)]
    assert all(rule in PATHS and rule.format == "float16" for rule in paths)
    assert all(recipe.rule(name, 8) is KEEP for name in names)
    assert recipe.rule("head.head", 8).format == "int8-b32"
    assert recipe.embedding == "float16"


@pytest.mark.parametrize(("blocks", "first"), [(1, 1), (3, 2), (4, 2), (12, 5), (24, 9), (32, 12)])
def test_the_first_three_eighths_are_rounded_up(blocks: int, first: int) -> None:
    recipe = RECIPES["int4"]
    formats = [recipe.rule(f"blocks.{i}.att.key", blocks).format for i in range(blocks)]
    assert formats == ["int8-b32"] * first + ["int4-b32"] * (blocks - first)


def test_the_precision_map_tells_what_became_of_every_tensor() -> None:
    """Five layers of one matrix, with a head and a norm."""
    shape, names = (32, 32), [f"blocks.{i}.att.key" for i in range(5)] + ["head.head"]
    x = ir.Value(name="x", shape=ir.Shape(["B", 32]), type=ir.TensorType(ir.DataType.FLOAT))
    weights, nodes, last = [], [], x
    for name in (*names, "head.ln_out_weight"):
        array = np.ones(shape if name != "head.ln_out_weight" else 32, np.float32)
        weights.append(ir.Value(name=name, const_value=ir.Tensor(array, name=name), shape=ir.Shape(array.shape)))
        nodes.append(ir.node("MatMul" if array.ndim == 2 else "Mul", [last, weights[-1]]))
        last = nodes[-1].outputs[0]
        last.name = f"after {name}"
    graph = ir.Graph([x], [last], nodes=nodes, initializers=weights, opset_imports={"": 18}, name="g")
    rules = quant.graph.apply(ir.Model(graph, ir_version=10), RECIPES["int4"])
    assert [(rule.tensors, rule.format, rule.count, rule.bytes) for rule in rules] == [
        ("*.att.key of the first 2 of 5", "int8-b32", 2, 2 * 32 * 36),
        ("*.att.key", "int4-b32", 3, 3 * 32 * (16 + 4 + 1)),
        ("head.head", "int8-b32", 1, 32 * 36),
        ("*", "float32", 1, 128),
    ]
    assert all(rule.reason for rule in rules)
