"""onnxruntime's fused operators in place of plain ones: the same numbers, and only where they are the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from quant.forms import rewrite
from quant.fused import fuse
from quant.recipe import RECIPES

TOKENS, WIDTH, HEADS = 6, 8, 2
Model = ir.Model


def block(root: float = 2**0.5, axis: int = -1, bias: bool = True, scale: bool = True) -> GraphProto:
    """One pre-norm block of a tower, as torch traces it; each option turns one of its patterns into another."""
    rng = np.random.default_rng(5)
    size = WIDTH // HEADS
    arrays = {
        "qkv": rng.standard_normal((WIDTH, 3 * WIDTH)),
        "qkv_b": rng.standard_normal(3 * WIDTH),
        "proj": rng.standard_normal((WIDTH, WIDTH)),
        "proj_b": rng.standard_normal(WIDTH),
        "fc1": rng.standard_normal((WIDTH, 12)),
        "fc1_b": rng.standard_normal(12),
        "fc2": rng.standard_normal((12, WIDTH)),
        "gain": rng.standard_normal(WIDTH),
        "shift": rng.standard_normal(WIDTH),
        "scale": np.array(size**-0.5) if scale else rng.standard_normal(size),
        "root": np.array(root),
        "one": np.array(1.0),
        "half": np.array(0.5),
    }
    shapes = {"cut": [-1, TOKENS, HEADS, size], "join": [-1, TOKENS, WIDTH]}
    perms = {"q": (0, 2, 1, 3), "k": (0, 2, 3, 1), "v": (0, 2, 1, 3)}
    turned = []
    for part, perm in perms.items():
        turned += [_node("Reshape", [part, "cut"], f"{part}4"), _node("Transpose", [f"{part}4"], f"{part}t", perm=perm)]
    nodes = [
        _node("LayerNormalization", ["x", "gain", "shift"], "n1", epsilon=1e-6),
        _node("MatMul", ["n1", "qkv"], "product"),
        *([_node("Add", ["product", "qkv_b"], "sum")] if bias else []),
        helper.make_node("Split", ["sum" if bias else "product"], ["q", "k", "v"], axis=2, num_outputs=3),
        *turned,
        _node("Mul", ["qt", "scale"], "qs"),
        _node("MatMul", ["qs", "kt"], "scores"),
        _node("Softmax", ["scores"], "shares", axis=axis),
        _node("MatMul", ["shares", "vt"], "o"),
        _node("Transpose", ["o"], "ot", perm=(0, 2, 1, 3)),
        _node("Reshape", ["ot", "join"], "mixed"),
        _node("MatMul", ["mixed", "proj"], "m"),
        _node("Add", ["m", "proj_b"], "mb"),
        _node("Add", ["x", "mb"], "x1"),
        _node("LayerNormalization", ["x1", "gain", "shift"], "n2", epsilon=1e-6),
        _node("MatMul", ["n2", "fc1"], "h"),
        _node("Add", ["h", "fc1_b"], "hb"),
        _node("Div", ["hb", "root"], "d"),
        _node("Erf", ["d"], "e"),
        _node("Add", ["e", "one"], "e1"),
        _node("Mul", ["half", "e1"], "eh"),
        _node("Mul", ["hb", "eh"], "g"),
        _node("MatMul", ["g", "fc2"], "f"),
        _node("Add", ["x1", "f"], "y"),
    ]
    shape: list[str | int | None] = ["I", TOKENS, WIDTH]
    return helper.make_graph(
        nodes,
        "tower",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [
            *(numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()),
            *(numpy_helper.from_array(np.array(array, np.int64), name) for name, array in shapes.items()),
        ],
    )


def _node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs, [output], **attributes)


def model(graph: GraphProto) -> Model:
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(made))


def kinds(made: Model) -> set[str]:
    return {node.op_type for node in made.graph}


def outputs(made: Model, images: int) -> np.ndarray:
    session = onnxruntime.InferenceSession(ir.to_proto(made).SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((images, TOKENS, WIDTH)).astype(np.float32)
    return np.asarray(session.run(None, {"x": x})[0])


PLAIN, ALL = {"Softmax", "Erf"}, {"MultiHeadAttention", "BiasGelu", "SkipLayerNormalization"}


@pytest.mark.parametrize("bias", [True, False])
def test_the_same_numbers(bias: bool) -> None:
    plain, fused = model(block(bias=bias)), model(block(bias=bias))
    assert fuse(fused) == 1
    assert kinds(fused) >= ALL
    assert not kinds(fused) & PLAIN
    assert len(fused.graph) == 10
    for images in (1, 3):
        wanted = outputs(plain, images)
        assert np.abs(outputs(fused, images) - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert fuse(fused) == 0  # and nothing is left to do


@pytest.mark.parametrize("changes", [{"axis": 1}, {"scale": False}])
def test_another_attention_is_left_alone_and_all_else_with_it(changes: dict[str, Any]) -> None:
    made = model(block(**changes))
    before = kinds(made)
    assert fuse(made) == 0
    assert kinds(made) == before


def test_another_activation_is_left_alone() -> None:
    made = model(block(root=1.5))
    assert fuse(made) == 1
    assert "Erf" in kinds(made)
    assert np.abs(outputs(made, 1) - outputs(model(block(root=1.5)), 1)).max() <= 1e-4


@pytest.mark.parametrize("target", ["cpu", "jetson"])
def test_only_a_cpu_gets_them(target: str) -> None:
    made = model(block())
    rewrite(made, RECIPES["fp32"], target)
    assert ("com.microsoft" in {node.domain for node in made.graph}) == (target == "cpu")
    assert bool(kinds(made) & PLAIN) == (target != "cpu")


def test_weights_keep_their_names() -> None:
    made = model(block())
    rewrite(made, RECIPES["fp32"], "cpu")
    assert {"qkv", "qkv_b", "proj", "proj_b", "fc1", "fc1_b", "fc2", "gain", "shift"} <= set(made.graph.initializers)
