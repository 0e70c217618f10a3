"""Which engine wants weights in which form."""

from __future__ import annotations

import onnx_ir as ir

import quant.cuda
import quant.fused
import quant.graph
import quant.tensorrt
from quant.graph import Rounding, round_plainly
from quant.recipe import Recipe
from runtime import tensorrt
from runtime.spec import PrecisionRule

_FORMS = {"cuda": quant.cuda.apply, **dict.fromkeys(tensorrt.TARGETS, quant.tensorrt.apply)}


def rewrite(
    model: ir.Model, recipe: Recipe, target: str, rounding: Rounding = round_plainly
) -> tuple[PrecisionRule, ...]:
    """Rewrite a float32 graph in place to a recipe, in the form that the target's engine runs fast."""
    if target == "cpu":
        quant.fused.fuse(model)
    return _FORMS.get(target, quant.graph.apply)(model, recipe, rounding)


def has_halves(target: str, precision: str) -> bool:
    """Whether what another target's recipe leaves in float32, such as towers, is in float16."""
    return precision == "fp16" or (target in _FORMS and precision != "fp32")
