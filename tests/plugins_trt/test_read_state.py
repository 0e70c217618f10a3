"""The image state's read-out: the CUDA kernel's own source, emulated, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from plugins_trt.read_state.reference import read_state
from tests.plugins_trt.emulated import Emulated, KernelError, from_type, to_type

TOLERANCE = {"float32": 1e-6, "float16": 6e-4, "bfloat16": 4e-3}  # of the largest value


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 200])
@pytest.mark.parametrize("type_name", TOLERANCE)
def test_lengths_and_types(emulated: Emulated, type_name: str, length: int) -> None:
    g = np.random.default_rng(length)
    q, gate, y = (g.standard_normal((2, length, 128)) for _ in range(3))
    gate = np.maximum(gate, 0)  # a relu gate: often 0, often more than 1
    state = g.standard_normal((2, 2, 64, 64)).astype(np.float32)
    typed = [to_type(x, type_name) for x in (q, gate, y)]
    wanted = read_state(*(from_type(x, type_name) for x in typed), state)
    got = emulated.read_state([*typed, state], type_name)
    assert np.abs(got - wanted).max() < TOLERANCE[type_name] * np.abs(wanted).max()


def test_the_gate_chooses(emulated: Emulated) -> None:
    g = np.random.default_rng(0)
    q, y = (g.standard_normal((1, 3, 64)).astype(np.float32) for _ in range(2))
    state = g.standard_normal((1, 1, 64, 64)).astype(np.float32)
    np.testing.assert_array_equal(emulated.read_state([q, np.zeros_like(y), y, state], "float32"), y)
    found = emulated.read_state([q, np.ones_like(y), y, state], "float32")
    np.testing.assert_allclose(found[0], q[0] @ state[0, 0], rtol=0, atol=1e-5)


def test_no_tokens_are_refused(emulated: Emulated) -> None:
    none, state = np.zeros((1, 0, 64), np.float32), np.zeros((1, 1, 64, 64), np.float32)
    with pytest.raises(KernelError, match="error 1"):
        emulated.read_state([none, none, none, state], "float32")
