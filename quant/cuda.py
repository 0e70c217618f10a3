"""Rewriting a float32 graph to what onnxruntime's CUDA provider runs fast.

- float16: as `quant.halves` has it: onnxruntime would widen stored halves when it loads them, and read twice the bytes.
- 8 and 4 bits: `MatMulNBits`, as on a CPU. Its CUDA kernels read codes at M = 1; activations and scales stay float32.
"""

from __future__ import annotations

import onnx_ir as ir

from quant import halves
from quant.graph import Rounding, round_plainly, to_codes
from quant.recipe import Recipe, Rule
from quant.weights import FORMATS
from runtime.spec import PrecisionRule


def apply(model: ir.Model, recipe: Recipe, rounding: Rounding = round_plainly) -> tuple[PrecisionRule, ...]:
    """Rewrite `model` in place to `recipe`, and return what became of every group of weights."""
    return halves.apply(model, recipe, rounding, dict.fromkeys(FORMATS, _to_codes))


def _to_codes(model: ir.Model, value: ir.Value, rule: Rule, rounding: Rounding) -> int:
    return to_codes(model, value, FORMATS[rule.format], rounding)
