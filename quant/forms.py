"""Which engine wants weights in which form."""

from __future__ import annotations

import onnx_ir as ir

import quant.graph
import quant.tensorrt
from quant.graph import Rounding, round_plainly
from quant.recipe import Recipe
from runtime import tensorrt
from runtime.spec import PrecisionRule


def rewrite(
    model: ir.Model, recipe: Recipe, target: str, rounding: Rounding = round_plainly
) -> tuple[PrecisionRule, ...]:
    """Rewrite a float32 graph in place to a recipe, in the form that the target's engine runs fast."""
    apply = quant.tensorrt.apply if target in tensorrt.TARGETS else quant.graph.apply
    return apply(model, recipe, rounding)
