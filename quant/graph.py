"""Rewriting a graph to a recipe's weight formats, without holding more than one matrix in memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from quant.recipe import KEEP, Recipe, Rule
from quant.weights import BLOCK, quantize_int8_b32
from runtime.spec import PrecisionRule

_MS = "com.microsoft"
_ACCURACY_LEVEL = 4  # int8 activations inside the kernel; levels 0 and 1 have no packed path for 8-bit weights


def apply(model: ir.Model, recipe: Recipe) -> tuple[PrecisionRule, ...]:
    """Rewrite `model` in place to `recipe` and return what became of every group of weights.

    A matrix is an initializer of rank 2 that is the right-hand side of a MatMul. Its data stays lazy: it is read,
    converted and dropped when the file is written.
    """
    groups: dict[Rule, list[int]] = defaultdict(list)
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        assert tensor is not None
        if tensor.dtype != ir.DataType.FLOAT:
            continue
        rule = recipe.rule(name) if _is_matrix(value) else KEEP
        groups[rule].append(_WRITERS[rule.format](model, value))
    return tuple(
        PrecisionRule(rule.pattern, rule.format, len(sizes), sum(sizes), rule.reason) for rule, sizes in groups.items()
    )


def _is_matrix(value: ir.Value) -> bool:
    tensor = value.const_value
    assert tensor is not None
    return len(tensor.shape) == 2 and all(node.op_type == "MatMul" and index == 1 for node, index in value.uses())


def _keep(model: ir.Model, value: ir.Value) -> int:
    assert value.const_value is not None
    return value.const_value.nbytes


def _to_float16(model: ir.Model, value: ir.Value) -> int:
    """Store as float16 and widen in the graph; onnxruntime's CPU provider widens once, at load."""
    tensor, name = value.const_value, value.name
    assert tensor is not None and name is not None
    half = _initializer(
        model,
        f"{name}_fp16",
        ir.DataType.FLOAT16,
        tuple(tensor.shape.numpy()),
        lambda: tensor.numpy().astype(np.float16),
    )
    cast = ir.node("Cast", [half], {"to": int(ir.DataType.FLOAT)})
    cast.outputs[0].name = f"{name}_fp32"
    _replace(model, value, cast)
    return tensor.nbytes // 2


def _to_int8_b32(model: ir.Model, value: ir.Value) -> int:
    """Replace every `x @ weight` by MatMulNBits with 8-bit codes."""
    tensor, name = value.const_value, value.name
    assert tensor is not None and name is not None
    k, n = tensor.shape.numpy()
    blocks = -(-k // BLOCK)
    latest: dict[str, Any] = {}

    def part(index: int) -> np.ndarray:
        # Codes and scales are written one after the other: quantise once, forget after the second.
        if "both" not in latest:
            latest["both"] = quantize_int8_b32(tensor.numpy())
        both = latest["both"] if index == 0 else latest.pop("both")
        return both[index]

    codes = _initializer(model, f"{name}_q8", ir.DataType.UINT8, (n, blocks, BLOCK), lambda: part(0))
    scales = _initializer(model, f"{name}_scale", ir.DataType.FLOAT, (n * blocks,), lambda: part(1))
    attributes = {"K": k, "N": n, "bits": 8, "block_size": BLOCK, "accuracy_level": _ACCURACY_LEVEL}
    for user, _ in list(value.uses()):
        product = ir.node("MatMulNBits", [user.inputs[0], codes, scales], attributes, domain=_MS)
        _take_place(user, product)
    del model.graph.initializers[name]
    model.opset_imports[_MS] = 1
    return n * blocks * (BLOCK + 4)


_WRITERS: dict[str, Callable[[ir.Model, ir.Value], int]] = {
    "float32": _keep,
    "float16": _to_float16,
    "int8-b32": _to_int8_b32,
}


def _initializer(
    model: ir.Model, name: str, dtype: ir.DataType, shape: tuple[int, ...], load: Callable[[], np.ndarray]
) -> ir.Value:
    tensor = ir.LazyTensor(lambda: ir.Tensor(load(), name=name), dtype=dtype, shape=ir.Shape(shape), name=name)
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def _replace(model: ir.Model, value: ir.Value, producer: ir.Node) -> None:
    """Let `producer`'s output stand for the initializer `value`."""
    model.graph.insert_before(model.graph[0], producer)
    ir.convenience.replace_all_uses_with(value, producer.outputs[0])
    assert value.name is not None
    del model.graph.initializers[value.name]


def _take_place(old: ir.Node, new: ir.Node) -> None:
    """Put `new` where `old` stands, under the same output name."""
    output, graph = old.outputs[0], old.graph
    assert graph is not None
    new.outputs[0].name, new.outputs[0].shape, new.outputs[0].type = output.name, output.shape, output.type
    graph.insert_before(old, new)
    ir.convenience.replace_all_uses_with(output, new.outputs[0], replace_graph_outputs=True)
    graph.remove(old, safe=True)
