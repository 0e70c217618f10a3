"""Products in float16 between float32 numbers, which is what GPUs run fast, whatever engine compiles the graph.

Only the operands of large products are rounded, `Cast -> MatMul(float16) -> Cast`: everything between them, the
recurrence, its state, norms and LoRA paths, stays float32. What becomes of codes is each engine's own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

import onnx_ir as ir

from quant.graph import HALF, Rounding, halved, initializer, is_matrix, take_place
from quant.recipe import KEEP, PATHS, RECIPES, Recipe, Rule, block_count
from runtime.spec import PrecisionRule

# relu(x)^2 of large models exceeds float16's 65504. A power of two changes no digit on the way in and out.
_SQUARED, _DOWN = "ffn.value", 2.0**-6

Writer = Callable[[ir.Model, ir.Value, Rule, Rounding], int]
"""Rewrites one matrix in place and returns its bytes."""


def apply(
    model: ir.Model,
    recipe: Recipe,
    rounding: Rounding,
    writers: Mapping[str, Writer],
    form: Callable[[str], str] = str,
) -> tuple[PrecisionRule, ...]:
    """Rewrite `model` in place to `recipe` and return what became of every group of weights.

    Data stays lazy: a matrix is read, converted (codes by `rounding`) and dropped when the file is written.

    Args:
        model: a float32 graph.
        recipe: what another engine keeps in float32 is float16 here, but in "fp32".
        rounding: from a matrix to codes.
        writers: by format, besides "float16".
        form: from a recipe's format to the one that the engine has for it.
    """
    groups: dict[Rule, list[int]] = defaultdict(list)
    blocks = block_count(model.graph.initializers)
    known = {"float16": to_half, **writers}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        assert tensor is not None
        if tensor.dtype != ir.DataType.FLOAT:
            continue
        rule = _rule(recipe, name, blocks, form) if is_matrix(value) else KEEP
        groups[rule].append(known[rule.format](model, value, rule, rounding) if rule is not KEEP else tensor.nbytes)
    if recipe.name != "fp32":
        for node in list(model.graph):
            if node.op_type == "MatMul" and all(_is_activation(v) for v in node.inputs):
                half_product(model, node, [None, None])
    return tuple(
        PrecisionRule(rule.title(blocks), rule.format, len(sizes), sum(sizes), rule.reason)
        for rule, sizes in groups.items()
    )


def _rule(recipe: Recipe, name: str, blocks: int, form: Callable[[str], str]) -> Rule:
    rule = recipe.rule(name, blocks)
    if recipe.name == "fp32":
        return KEEP
    if rule is KEEP:
        rule = RECIPES["fp16"].rule(name, blocks)
    if rule in PATHS or rule.reason == KEEP.reason or rule.pattern == "*.pool":
        return KEEP
    chosen = "float16" if rule.format == "float32" else form(rule.format)
    return rule if chosen == rule.format else Rule(rule.pattern, chosen, rule.reason, rule.share)


def _is_activation(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is None and value.producer() is not None


def to_half(model: ir.Model, value: ir.Value, rule: Rule, rounding: Rounding) -> int:
    """Keep a matrix in float16."""
    tensor, name = value.const_value, value.name
    assert tensor is not None and name is not None
    shape = tuple(tensor.shape.numpy())
    half = initializer(model, f"{name}{HALF}", ir.DataType.FLOAT16, shape, lambda: halved(tensor.numpy(), name))
    for node, _ in list(value.uses()):
        half_product(model, node, [None, half], down_for(name))
    del model.graph.initializers[name]
    return tensor.nbytes // 2


def down_for(name: str) -> float:
    """Return what the other operand of a matrix is multiplied by, so that float16 can hold it."""
    return _DOWN if name.endswith(_SQUARED) else 1.0


def half_product(model: ir.Model, node: ir.Node, operands: list[ir.Value | None], down: float = 1.0) -> None:
    """Let a MatMul round its operands to float16 and give float32; `operands` are those that are float16 already."""
    graph, output = model.graph, node.outputs[0]
    assert output.name is not None

    def emit(new: ir.Node, suffix: str) -> ir.Value:
        new.outputs[0].name = f"{output.name}_{suffix}"
        graph.insert_before(node, new)
        return new.outputs[0]

    def scaled(source: ir.Value, factor: float, suffix: str) -> ir.Value:
        constant = ir.node("Constant", [], {"value_float": factor})
        return emit(ir.node("Mul", [source, emit(constant, f"{suffix}_factor")]), suffix)

    inputs = []
    for index, (given, half) in enumerate(zip(node.inputs, operands, strict=True)):
        assert given is not None
        if half is None:
            source = scaled(given, down, "down") if down != 1 and index == 0 else given
            half = emit(ir.node("Cast", [source], {"to": int(ir.DataType.FLOAT16)}), f"half{index}")
        inputs.append(half)
    product = emit(ir.node("MatMul", inputs), "half")
    last = ir.node("Cast", [product], {"to": int(ir.DataType.FLOAT)})
    if down != 1:
        constant = ir.node("Constant", [], {"value_float": 1 / down})
        last = ir.node("Mul", [emit(last, "wide"), emit(constant, "up_factor")])
    take_place(node, last)
