"""The CUDA provider's forms of a graph, run on onnxruntime's CPU: which products are halves, which are codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from quant.cuda import apply
from quant.forms import has_halves, rewrite
from quant.recipe import RECIPES, Recipe
from tests.quant.test_tensorrt import EIGHT, FOUR, error, run, two_products


@pytest.mark.parametrize(
    ("recipe", "formats", "most"),
    [
        (RECIPES["fp32"], {"float32"}, 1e-6),
        (RECIPES["fp16"], {"float16"}, 2e-3),
        (EIGHT, {"int8-b32"}, 2e-2),
        (FOUR, {"int4-b32"}, 0.2),
    ],
)
def test_the_rewritten_graph_computes_the_same(tmp_path: Path, recipe: Recipe, formats: set[str], most: float) -> None:
    model, key, value = two_products(128, 256)
    x = np.random.default_rng(1).standard_normal((5, 128)).astype(np.float32)
    rules = apply(model, recipe)
    assert {rule.format for rule in rules} == formats
    assert error(run(model, tmp_path, x), np.square(np.maximum(x @ key, 0)) @ value) < most
    codes = [node for node in model.graph if node.op_type == "MatMulNBits"]
    assert len(codes) == (2 if formats & {"int8-b32", "int4-b32"} else 0)


def test_what_a_recipe_leaves_in_float32_is_a_product_of_halves(tmp_path: Path) -> None:
    first = Recipe("int8", (EIGHT.rules[0],), "float16")  # nothing is said of ffn.value
    model, key, value = two_products(128, 256)
    x = np.random.default_rng(1).standard_normal((5, 128)).astype(np.float32)
    rewrite(model, first, "cuda")
    kinds = {v.name: v.const_value.dtype for v in model.graph.initializers.values() if v.const_value}
    assert kinds["blocks.0.ffn.value_fp16"] == ir.DataType.FLOAT16
    assert kinds["blocks.0.ffn.key_codes"] == ir.DataType.UINT8
    assert error(run(model, tmp_path, x), np.square(np.maximum(x @ key, 0)) @ value) < 2e-2


@pytest.mark.parametrize("target", ["cuda", "jetson"])
@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_lora_paths_are_multiplied_in_float32(target: str, precision: str) -> None:
    model, *_ = two_products(128, 128)
    for name, new in (("key", "w1"), ("value", "v2")):
        value = model.graph.initializers.pop(f"blocks.0.ffn.{name}")
        value.name = f"blocks.0.att.{new}"
        model.graph.register_initializer(value)
    rewrite(model, RECIPES[precision], target)
    assert {v.const_value.dtype for v in model.graph.initializers.values() if v.const_value} == {ir.DataType.FLOAT}
    assert not [node for node in model.graph if node.op_type == "Cast"]


def test_which_bundles_have_halves() -> None:
    assert [has_halves(target, "int8") for target in ("cpu", "cuda", "jetson")] == [False, True, True]
    assert has_halves("cpu", "fp16") and not has_halves("cuda", "fp32")
