"""WKV-6 and WKV-7: the CUDA kernels' own source, emulated, against the recurrence in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from plugins_trt.wkv6.reference import wkv6
from plugins_trt.wkv7.reference import wkv7
from tests.plugins_trt.emulated import AUTOMATIC, CHUNKED, RECURRENT, Emulated, KernelError, from_type, to_type
from tests.plugins_trt.series import WKV6_KINDS, WKV7_KINDS, wkv6_inputs, wkv7_inputs

Array = NDArray[Any]

LENGTHS = (1, 2, 16, 17, 63, 256)
# Of the largest value: what y may be off, by its type, and what the state may be off, by kernel and input type. The
# chunked kernel multiplies 16-bit inputs as sums of two bfloat16 terms; the state itself is float32 everywhere.
Y_TOLERANCE = {"float32": 2e-6, "float16": 6e-4, "bfloat16": 4e-3}
STATE_TOLERANCE = {RECURRENT: 1e-6, CHUNKED: 1.5e-5}
TYPE_PAIRS = [
    ("float32", "float32"), ("float16", "float16"), ("float16", "float32"), ("bfloat16", "bfloat16"),
    ("bfloat16", "float32"),
]  # fmt: skip
NAMES = {"wkv6": (wkv6, wkv6_inputs, (3, 4)), "wkv7": (wkv7, wkv7_inputs, (1,))}  # reference, inputs, decays among them


def typed(name: str, inputs: list[Array], type_name: str, decay_type: str) -> tuple[list[Array], list[Array]]:
    """Return the inputs rounded to their types, and the float64 values of those."""
    decays = NAMES[name][2]
    kinds = [decay_type if i in decays else type_name for i in range(len(inputs) - 1)] + ["float32"]
    rounded = [to_type(x, kind) for x, kind in zip(inputs, kinds, strict=True)]
    return rounded, [from_type(x, kind) for x, kind in zip(rounded, kinds, strict=True)]


def check(
    emulated: Emulated, name: str, inputs: list[Array], type_name: str, decay_type: str, path: int, **options: bool
) -> None:
    rounded, exact = typed(name, inputs, type_name, decay_type)
    y, state = emulated.recurrence(name, rounded, type_name, decay_type, path, **options)
    wanted_y, wanted_state = NAMES[name][0](*exact)
    chunked = path == CHUNKED or (path == AUTOMATIC and inputs[0].shape[1] > 32)
    loose = chunked and type_name != "float32"
    y_error = np.abs(y - wanted_y).max() / np.abs(wanted_y).max()
    state_error = np.abs(state - wanted_state).max() / np.abs(wanted_state).max()
    assert y_error < Y_TOLERANCE[type_name]
    assert state_error < STATE_TOLERANCE[CHUNKED if loose else RECURRENT]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("path", [RECURRENT, CHUNKED], ids=["recurrent", "chunked"])
@pytest.mark.parametrize("name", ["wkv6", "wkv7"])
def test_lengths(emulated: Emulated, name: str, path: int, length: int) -> None:
    heads = 1 if length == 256 and path == RECURRENT else 2
    check(emulated, name, NAMES[name][1]("plain", 1, length, heads), "float16", "float32", path)


@pytest.mark.parametrize(("type_name", "decay_type"), TYPE_PAIRS)
@pytest.mark.parametrize("path", [RECURRENT, CHUNKED], ids=["recurrent", "chunked"])
@pytest.mark.parametrize("name", ["wkv6", "wkv7"])
def test_types_and_batches(emulated: Emulated, name: str, path: int, type_name: str, decay_type: str) -> None:
    check(emulated, name, NAMES[name][1]("plain", 3, 19), type_name, decay_type, path)


@pytest.mark.parametrize("path", [RECURRENT, CHUNKED], ids=["recurrent", "chunked"])
@pytest.mark.parametrize("type_name", ["float32", "float16"])
@pytest.mark.parametrize(
    ("name", "kind"), [("wkv6", kind) for kind in WKV6_KINDS[1:]] + [("wkv7", kind) for kind in WKV7_KINDS[1:]]
)
def test_hard_inputs(emulated: Emulated, name: str, kind: str, type_name: str, path: int) -> None:
    check(emulated, name, NAMES[name][1](kind, 1, 63, 1), type_name, type_name, path)


def test_decays_of_minus_infinity_forget_everything(emulated: Emulated) -> None:
    inputs = wkv6_inputs("plain", 1, 40, 1)
    inputs[3][:, 20] = -np.inf
    check(emulated, "wkv6", inputs, "float16", "float16", CHUNKED)
    inputs = wkv7_inputs("plain", 1, 40, 1)
    inputs[1][:, 20] = -np.inf
    check(emulated, "wkv7", inputs, "float16", "float16", CHUNKED)


@pytest.mark.parametrize("name", ["wkv6", "wkv7"])
def test_long_series_pass_through_the_workspace_in_segments(emulated: Emulated, name: str) -> None:
    inputs = NAMES[name][1]("plain", 1, 515, 1)  # 512 tokens are prepared at a time
    check(emulated, name, inputs, "bfloat16", "float32", AUTOMATIC)


@pytest.mark.parametrize("length", [1, 40])
@pytest.mark.parametrize("name", ["wkv6", "wkv7"])
def test_the_state_may_be_written_where_it_was_read(emulated: Emulated, name: str, length: int) -> None:
    check(emulated, name, NAMES[name][1]("plain", 2, length), "float16", "float32", AUTOMATIC, in_place=True)


@pytest.mark.parametrize("kind", ["plain", "one key"])
@pytest.mark.parametrize("cuts", [(17, 47), (1,) * 64, (63, 1), (33, 31)])
def test_cutting_a_segment_changes_nothing(emulated: Emulated, kind: str, cuts: tuple[int, ...]) -> None:
    rounded, _ = typed("wkv7", wkv7_inputs(kind, 1, 64, 1), "float32", "float32")
    *series, state = rounded
    whole_y, whole_state = emulated.recurrence("wkv7", rounded, "float32", "float32", AUTOMATIC)
    parts, start = [], 0
    for length in cuts:
        piece = [np.ascontiguousarray(x[:, start : start + length]) for x in series]
        y, after = emulated.recurrence("wkv7", [*piece, state], "float32", "float32", AUTOMATIC)
        parts.append(y)
        state, start = after.astype(np.float32), start + length
    np.testing.assert_allclose(np.concatenate(parts, 1), whole_y, atol=4e-6 * np.abs(whole_y).max(), rtol=0)
    np.testing.assert_allclose(state, whole_state, atol=2e-6 * np.abs(whole_state).max(), rtol=0)


def test_wrong_types_and_sizes_are_refused(emulated: Emulated) -> None:
    rounded, _ = typed("wkv7", wkv7_inputs("plain", 1, 2, 1), "float32", "float32")
    with pytest.raises(KernelError, match="error 1"):
        emulated.recurrence("wkv7", rounded, "float32", "float16", RECURRENT)
    empty = [x[:, :0].copy() for x in rounded[:-1]]
    with pytest.raises(KernelError, match="error 1"):
        emulated.recurrence("wkv7", [*empty, rounded[-1]], "float32", "float32", RECURRENT)
