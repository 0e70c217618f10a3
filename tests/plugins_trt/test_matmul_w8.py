"""The product with 8-bit weights: the CUDA kernels' own source, emulated, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from plugins_trt.matmul_w8.reference import matmul_w8, quantize
from tests.plugins_trt.emulated import Emulated, KernelError, from_type, to_type

# Of the largest value: y is rounded to its type, and float32 inputs are multiplied as three bfloat16 terms.
TOLERANCE = {"float32": 2e-6, "float16": 6e-4, "bfloat16": 4e-3}
TYPE_PAIRS = [
    ("float32", "float32"), ("float16", "float16"), ("float16", "float32"), ("bfloat16", "bfloat16"),
    ("bfloat16", "float32"),
]  # fmt: skip


def check(
    emulated: Emulated, tokens: int, inputs: int, outputs: int, group: int, type_name: str, scale_type: str
) -> None:
    g = np.random.default_rng(tokens * inputs + outputs)
    codes, scales = quantize(g.standard_normal((outputs, inputs)) * np.exp(g.standard_normal((outputs, 1))), group)
    x, typed_scales = to_type(g.standard_normal((tokens, inputs)), type_name), to_type(scales, scale_type)
    wanted = matmul_w8(from_type(x, type_name), codes, from_type(typed_scales, scale_type))
    y = emulated.matmul(x, codes, typed_scales, type_name, scale_type)
    assert np.abs(y - wanted).max() < TOLERANCE[type_name] * np.abs(wanted).max()


@pytest.mark.parametrize("group", [0, 32, 64, 128])
@pytest.mark.parametrize(("type_name", "scale_type"), TYPE_PAIRS)
def test_types_and_groups(emulated: Emulated, type_name: str, scale_type: str, group: int) -> None:
    check(emulated, 1, 384, 48, group, type_name, scale_type)
    check(emulated, 21, 256, 40, group, type_name, scale_type)


@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 9, 16, 17, 64, 70])
def test_tokens(emulated: Emulated, tokens: int) -> None:
    check(emulated, tokens, 192, 24, 64, "float16", "float32")


@pytest.mark.parametrize("outputs", [1, 15, 16, 17, 130])
@pytest.mark.parametrize("tokens", [1, 18])
def test_odd_outputs(emulated: Emulated, tokens: int, outputs: int) -> None:
    check(emulated, tokens, 64, outputs, 32, "float16", "float16")


@pytest.mark.parametrize(
    ("inputs", "group"), [(16, 0), (96, 0), (96, 32), (144, 0), (2304, 0), (4096, 64), (4096 + 64, 32)]
)
def test_inputs_that_fill_no_block_and_several_slices(emulated: Emulated, inputs: int, group: int) -> None:
    check(emulated, 2, inputs, 16, group, "float16", "float16")
    if inputs < 1000:
        check(emulated, 20, inputs, 16, group, "float16", "float16")


@pytest.mark.parametrize("type_name", ["float32", "float16", "bfloat16"])
def test_every_code_is_exact(emulated: Emulated, type_name: str) -> None:
    codes = np.arange(-128, 128).astype(np.int8).reshape(256, 1).repeat(16, 1)
    codes[:, 1:] = 0
    x = np.ones((1, 16), np.float32)
    y = emulated.matmul(to_type(x, type_name), codes, np.ones(256, np.float32), type_name, "float32")
    np.testing.assert_array_equal(y[0], np.arange(-128, 128))


@pytest.mark.parametrize(("inputs", "groups"), [(24, 1), (64, 4), (192, 2)])
def test_what_the_kernels_cannot_do_is_refused(emulated: Emulated, inputs: int, groups: int) -> None:
    scales = np.ones((4, groups), np.float32)
    with pytest.raises(KernelError, match="error 1"):
        emulated.matmul(np.zeros((1, inputs), np.float32), np.zeros((4, inputs), np.int8), scales, "float32", "float32")


def test_quantize_rounds_to_the_nearest_code() -> None:
    weights = np.random.default_rng(0).standard_normal((5, 128))
    for group in (0, 32):
        codes, scales = quantize(weights, group)
        step = scales.reshape(5, -1).repeat(group or 128, 1)
        assert np.abs(codes * step.astype(np.float64) - weights).max() <= 0.5001 * step.max()
