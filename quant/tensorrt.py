"""Rewriting a float32 graph to what TensorRT runs fast: products in float16, weights in forms it does not widen first.

TensorRT's networks are strongly typed: the graph says where a number is rounded.
- float16: as `quant.halves` has it.
- 8 bits: `vrwkv::MatMulW8`, our plugin, since TensorRT would write out a float16 copy of the matrix in every step. It
  takes and gives float32. Its body in standard operators makes the same file run on onnxruntime.
- 4 bits: blocks of 64 behind a DequantizeLinear, which TensorRT fuses into the product. Zero points other than 0 it
  refuses, so codes are symmetric, and the scale of each block is searched for the least squared error.
"""

from __future__ import annotations

import functools
import math

import ml_dtypes
import numpy as np
import onnx_ir as ir

from quant import halves
from quant.graph import Rounding, initializer, round_plainly, take_place
from quant.recipe import Recipe, Rule
from quant.weights import FORMATS
from runtime.errors import CheckpointError
from runtime.spec import PrecisionRule

_DOMAIN = "vrwkv"
INT4_BLOCK = 64  # the smallest that TensorRT fuses
INT4_FORMAT = f"int4-b{INT4_BLOCK}-symmetric"
_OPSET = 21  # blocked DequantizeLinear
_SHARES = np.arange(0.70, 1.01, 0.05, dtype=np.float32)  # of a block's largest weight, tried as the end of its range


def apply(model: ir.Model, recipe: Recipe, rounding: Rounding = round_plainly) -> tuple[PrecisionRule, ...]:
    """Rewrite `model` in place to `recipe`, in TensorRT's forms, and return what became of every group of weights."""
    return halves.apply(model, recipe, rounding, _WRITERS, lambda fmt: INT4_FORMAT if fmt.startswith("int4") else fmt)


def _to_w8(model: ir.Model, value: ir.Value, rule: Rule, rounding: Rounding) -> int:
    tensor, name = value.const_value, value.name
    assert tensor is not None and name is not None
    fmt = FORMATS[rule.format]
    k, n = tensor.shape.numpy()
    if k % fmt.block:
        return halves.to_half(model, value, rule, rounding)
    parts: dict[str, np.ndarray] = {}

    def part(which: str) -> np.ndarray:
        if which not in parts:
            codes, scales = rounding(name, tensor.numpy(), fmt)
            signed = (codes.reshape(n, k).astype(np.int16) - fmt.middle).astype(np.int8)
            parts.update(codes=signed, scale=scales.reshape(n, -1))
        return parts.pop(which)

    codes = initializer(model, f"{name}_codes", ir.DataType.INT8, (n, k), functools.partial(part, "codes"))
    blocks = (n, k // fmt.block)
    scale = initializer(model, f"{name}_scale", ir.DataType.FLOAT, blocks, functools.partial(part, "scale"))
    attributes: dict[str, int | str] = {
        "group_size": fmt.block,
        "plugin_namespace": _DOMAIN,
        "plugin_version": "1",
    }
    for node, _ in list(value.uses()):
        take_place(node, ir.node("MatMulW8", [node.inputs[0], codes, scale], attributes, domain=_DOMAIN))
    del model.graph.initializers[name]
    _raise_opset(model)
    body = _matmul_w8()
    model.functions[body.identifier()] = body
    model.opset_imports[_DOMAIN] = 1
    return k * n + 4 * math.prod(blocks)


def _matmul_w8() -> ir.Function:
    """Return MatMulW8(x [..., K], codes [N, K] int8, scale [N, K / group_size]) in standard operators."""
    x, codes, scale = (ir.Value(name=f"w8_{name}") for name in ("x", "codes", "scale"))
    block = ir.RefAttr("block_size", "group_size", ir.AttributeType.INT)
    widen = ir.Node("", "DequantizeLinear", [codes, scale], [ir.AttrInt64("axis", 1), block])
    turn = ir.node("Transpose", widen.outputs, {"perm": [1, 0]})
    product = ir.node("MatMul", [x, turn.outputs[0]])
    for node, name in ((widen, "wide"), (turn, "turned"), (product, "y")):
        node.outputs[0].name = f"w8_{name}"
    graph = ir.Graph([x, codes, scale], product.outputs, nodes=[widen, turn, product], opset_imports={"": _OPSET})
    names = ("group_size", "plugin_namespace", "plugin_version")
    kinds = (ir.AttributeType.INT, ir.AttributeType.STRING, ir.AttributeType.STRING)
    attributes = [ir.Attr(name, kind, None) for name, kind in zip(names, kinds, strict=True)]
    return ir.Function(_DOMAIN, "MatMulW8", graph=graph, attributes=attributes)


def _raise_opset(model: ir.Model) -> None:
    model.opset_imports[""] = _OPSET
    for function in model.functions.values():
        function.opset_imports[""] = _OPSET


def _to_int4(model: ir.Model, value: ir.Value, rule: Rule, rounding: Rounding) -> int:
    tensor, name = value.const_value, value.name
    assert tensor is not None and name is not None
    k, n = tensor.shape.numpy()
    if k % INT4_BLOCK:
        return halves.to_half(model, value, rule, rounding)
    parts: dict[str, np.ndarray] = {}

    def part(which: str) -> np.ndarray:
        if which not in parts:
            codes, scales = quantize_symmetric(tensor.numpy())
            parts.update(codes=codes, scale=scales)
        return parts.pop(which)

    codes = initializer(model, f"{name}_codes", ir.DataType.INT4, (k, n), functools.partial(part, "codes"))
    blocks = (k // INT4_BLOCK, n)
    scale = initializer(model, f"{name}_scale", ir.DataType.FLOAT16, blocks, functools.partial(part, "scale"))
    for node, _ in list(value.uses()):
        widen = ir.node("DequantizeLinear", [codes, scale], {"axis": 0, "block_size": INT4_BLOCK})
        widen.outputs[0].name = f"{name}_{len(codes.uses())}_widened"
        model.graph.insert_before(node, widen)
        halves.half_product(model, node, [None, widen.outputs[0]], halves.down_for(name))
    del model.graph.initializers[name]
    _raise_opset(model)
    return k * n // 2 + 2 * math.prod(blocks)


_WRITERS: dict[str, halves.Writer] = {
    INT4_FORMAT: _to_int4,
    **{name: _to_w8 for name, fmt in FORMATS.items() if fmt.bits == 8},
}


def quantize_symmetric(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round a [K, N] float32 matrix to symmetric 4-bit codes in blocks of 64 inputs.

    Returns:
        codes [K, N] int4 (-7 to 7), scales [K / 64, N] float16; value = code * scale.

    Raises:
        CheckpointError: the matrix holds NaN or Inf, or weights so large that float16 has no scale for them.
    """
    k, n = weight.shape
    blocks = weight.astype(np.float32, copy=False).reshape(k // INT4_BLOCK, INT4_BLOCK, n)
    largest = np.abs(blocks).max(1)
    if not float(largest.max(initial=0)) / 7 < 65504:  # NaN compares false
        raise CheckpointError(
            "a matrix to be stored in 4 bits holds NaN, Inf or weights that float16 cannot scale",
            wanted="finite weights below 4e5",
            hint="download the checkpoint again",
        )
    best = np.full(largest.shape, np.inf, np.float32)
    scales = np.zeros(largest.shape, np.float16)
    for share in _SHARES:
        tried = (largest * (share / 7)).astype(np.float16)
        error = np.square(_rounded(blocks, tried) * tried[:, None].astype(np.float32) - blocks).sum(1)
        better = error < best
        best, scales = np.where(better, error, best), np.where(better, tried, scales)
    return _rounded(blocks, scales).reshape(k, n).astype(ml_dtypes.int4), scales


def _rounded(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    wide = scales[:, None].astype(np.float32)
    inverse = np.divide(1, wide, out=np.zeros_like(wide), where=wide > 0)
    codes: np.ndarray = np.clip(np.rint(blocks * inverse), -7, 7)
    return codes
