"""Rewriting a graph to a recipe's weight formats, without holding more than one matrix in memory."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from quant.recipe import KEEP, Recipe, Rule, block_count
from quant.weights import FORMATS, BlockFormat, quantize
from runtime.errors import CheckpointError
from runtime.spec import PrecisionRule

_MS = "com.microsoft"
_ACCURACY_LEVEL = 4  # int8 activations inside the kernel. Levels 0 to 3 take 60 (8 bits) or 3 times (4 bits) as long

HALF = "_fp16"  # ends the name of a matrix in float16

Rounding = Callable[[str, np.ndarray, BlockFormat], tuple[np.ndarray, ...]]
"""(initializer's name, [K, N] float32, format) -> parts as `quant.weights.quantize` makes them."""


def round_plainly(name: str, weight: np.ndarray, fmt: BlockFormat) -> tuple[np.ndarray, ...]:
    """Quantise a matrix by itself, without knowing what it is multiplied with."""
    return quantize(weight, fmt)


def apply(model: ir.Model, recipe: Recipe, rounding: Rounding = round_plainly) -> tuple[PrecisionRule, ...]:
    """Rewrite `model` in place to `recipe` and return what became of every group of weights.

    A matrix is an initializer of rank 2 that is the right-hand side of a MatMul. Its data stays lazy: it is read,
    converted by `rounding` and dropped when the file is written.
    """
    groups: dict[Rule, list[int]] = defaultdict(list)
    blocks = block_count(model.graph.initializers)
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        assert tensor is not None
        if tensor.dtype != ir.DataType.FLOAT:
            continue
        rule = recipe.rule(name, blocks) if is_matrix(value) else KEEP
        if rule.format in FORMATS:
            groups[rule].append(to_codes(model, value, FORMATS[rule.format], rounding))
        else:
            groups[rule].append({"float32": _keep, "float16": _to_float16}[rule.format](model, value))
    return tuple(
        PrecisionRule(rule.title(blocks), rule.format, len(sizes), sum(sizes), rule.reason)
        for rule, sizes in groups.items()
    )


def is_matrix(value: ir.Value) -> bool:
    """Whether an initializer is only ever the right-hand side of products."""
    tensor = value.const_value
    assert tensor is not None
    return len(tensor.shape) == 2 and all(node.op_type == "MatMul" and index == 1 for node, index in value.uses())


def matrices(model: ir.Model, recipe: Recipe) -> dict[str, ir.Value]:
    """Return the float initializers of a graph that `apply` would turn into codes, by name."""
    blocks = block_count(model.graph.initializers)
    return {
        name: value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
        and value.const_value.dtype == ir.DataType.FLOAT
        and is_matrix(value)
        and recipe.rule(name, blocks).format in FORMATS
    }


def _keep(model: ir.Model, value: ir.Value) -> int:
    assert value.const_value is not None
    return value.const_value.nbytes


def _to_float16(model: ir.Model, value: ir.Value) -> int:
    """Store as float16 and widen in the graph; onnxruntime's CPU provider widens once, at load."""
    tensor, name = value.const_value, value.name
    assert tensor is not None and name is not None
    half = initializer(
        model,
        f"{name}{HALF}",
        ir.DataType.FLOAT16,
        tuple(tensor.shape.numpy()),
        lambda: halved(tensor.numpy(), name),
    )
    cast = ir.node("Cast", [half], {"to": int(ir.DataType.FLOAT)})
    cast.outputs[0].name = f"{name}_fp32"
    _replace(model, value, cast)
    return tensor.nbytes // 2


def halved(weight: np.ndarray, name: str) -> np.ndarray:
    """Return the matrix `name` [K, N] in float16; raises `CheckpointError` where it does not fit."""
    with np.errstate(over="ignore"):
        half = weight.astype(np.float16)
    if not np.isfinite(half).all():
        raise CheckpointError(
            f"{name} holds NaN, Inf or weights that float16 cannot hold: up to {np.abs(weight).max():.3g}",
            wanted="weights below 65504",
            hint="export it with --fp32, or download the checkpoint again",
        )
    return half


def to_codes(model: ir.Model, value: ir.Value, fmt: BlockFormat, rounding: Rounding) -> int:
    """Replace every `x @ weight` by MatMulNBits."""
    tensor, name = value.const_value, value.name
    assert tensor is not None and name is not None
    k, n = tensor.shape.numpy()
    parts: dict[int, np.ndarray] = {}

    def part(index: int) -> np.ndarray:
        # The parts are written one after the other: quantise once, forget each part when it is taken.
        if index not in parts:
            parts.update(enumerate(rounding(name, tensor.numpy(), fmt)))
        return parts.pop(index)

    inputs, size = [], 0
    for index, (suffix, shape) in enumerate(zip(("codes", "scale", "zero"), fmt.shapes(k, n), strict=False)):
        dtype = ir.DataType.FLOAT if suffix == "scale" else ir.DataType.UINT8
        inputs.append(initializer(model, f"{name}_{suffix}", dtype, shape, functools.partial(part, index)))
        size += math.prod(shape) * dtype.numpy().itemsize
    attributes = {"K": k, "N": n, "bits": fmt.bits, "block_size": fmt.block, "accuracy_level": _ACCURACY_LEVEL}
    for user, _ in list(value.uses()):
        take_place(user, ir.node("MatMulNBits", [user.inputs[0], *inputs], attributes, domain=_MS))
    del model.graph.initializers[name]
    model.opset_imports[_MS] = 1
    return size


def initializer(
    model: ir.Model, name: str, dtype: ir.DataType, shape: tuple[int, ...], load: Callable[[], np.ndarray]
) -> ir.Value:
    tensor = ir.LazyTensor(
        lambda: ir.Tensor(load(), name=name, dtype=dtype), dtype=dtype, shape=ir.Shape(shape), name=name
    )
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def _replace(model: ir.Model, value: ir.Value, producer: ir.Node) -> None:
    """Let `producer`'s output stand for the initializer `value`."""
    model.graph.insert_before(model.graph[0], producer)
    ir.convenience.replace_all_uses_with(value, producer.outputs[0])
    assert value.name is not None
    del model.graph.initializers[value.name]


def take_place(old: ir.Node, new: ir.Node) -> None:
    """Put `new` where `old` stands, under the same output name."""
    output, graph = old.outputs[0], old.graph
    assert graph is not None
    new.outputs[0].name, new.outputs[0].shape, new.outputs[0].type = output.name, output.shape, output.type
    graph.insert_before(old, new)
    ir.convenience.replace_all_uses_with(output, new.outputs[0], replace_graph_outputs=True)
    graph.remove(old, safe=True)
