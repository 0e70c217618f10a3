"""The built library, driven as TensorRT drives it: create, ask, serialise, create again, check shapes, enqueue."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from plugins_trt.matmul_w8.reference import matmul_w8, quantize
from plugins_trt.wkv6.reference import wkv6
from plugins_trt.wkv7.reference import wkv7
from tests.plugins_trt.emulated import Emulated
from tests.plugins_trt.series import wkv6_inputs, wkv7_inputs
from tests.plugins_trt.vtable import (
    BF16,
    BUILD,
    CORE,
    FIELD_INT64,
    FLOAT,
    HALF,
    INT8,
    INT32,
    RUNTIME,
    Dynamic,
    Expressions,
    Fields,
    Object,
    Tensor,
    creators,
    dims,
    fields,
    tensor,
)  # fmt: skip

Array = NDArray[Any]
INPUTS = {"WKV6": 6, "WKV7": 7, "MatMulW8": 3, "ReadState": 4}
OUTPUTS = {"WKV6": 2, "WKV7": 2, "MatMulW8": 1, "ReadState": 1}


@pytest.fixture(scope="module")
def makers(emulated: Emulated) -> dict[str, Object]:
    return creators(emulated.path)


def create(maker: Object, attributes: dict[str, int] | None = None, *, phase: int = 0, kind: int = 5) -> Object:
    collection, alive = fields(attributes or {}, kind)
    plugin = maker.call(
        4, ctypes.c_void_p, ctypes.c_char_p(b"node"), ctypes.pointer(collection), ctypes.c_int32(phase)
    )  # fmt: skip
    del alive
    return Object(plugin)


def types_of(name: str, series: int, decay: int | None = None) -> list[int]:
    """Data types of inputs, then outputs."""
    decay = series if decay is None else decay
    if name == "WKV6":
        return [series] * 3 + [decay, decay, FLOAT, series, FLOAT]
    if name == "WKV7":
        return [series, decay] + [series] * 4 + [FLOAT, series, FLOAT]
    if name == "ReadState":
        return [series] * 3 + [FLOAT, series]
    return [series, INT8, decay, series]


def int_array(values: list[int]) -> Any:
    return (ctypes.c_int32 * len(values))(*values)


def test_creators(makers: dict[str, Object]) -> None:
    assert set(makers) == set(INPUTS)
    for maker in makers.values():
        assert maker.information() == ("PLUGIN CREATOR_V3ONE", 1, 0)
        assert maker.call(0, ctypes.c_int32) == 0  # C++
        assert maker.call(7, ctypes.c_char_p) == b"1"
        assert maker.call(8, ctypes.c_char_p) == b"vrwkv"


@pytest.mark.parametrize(("name", "wanted"), [("WKV7", [b"head_size", b"alias_state"]), ("MatMulW8", [])])
def test_attributes_are_announced(makers: dict[str, Object], name: str, wanted: list[bytes]) -> None:
    found = Fields.from_address(makers[name].call(5, ctypes.c_void_p))
    assert [found.at[i].name for i in range(found.count)] == wanted


@pytest.mark.parametrize("name", INPUTS)
def test_the_three_sides_of_a_plugin(makers: dict[str, Object], name: str) -> None:
    plugin = create(makers[name])
    assert plugin.information() == ("PLUGIN", 1, 0)
    core, build, runtime = (plugin.capability(which) for which in (CORE, BUILD, RUNTIME))
    assert core.information() == ("PLUGIN_V3ONE_CORE", 1, 0)
    assert build.information() == ("PLUGIN_V3ONE_BUILD", 2, 0)
    assert runtime.information() == ("PLUGIN_V3ONE_RUNTIME", 1, 0)
    assert [core.call(place, ctypes.c_char_p) for place in (4, 5, 6)] == [name.encode(), b"1", b"vrwkv"]
    assert build.call(8, ctypes.c_int32) == OUTPUTS[name]
    assert build.call(12, ctypes.c_char_p).startswith(name.encode() + b".1")
    assert build.call(13, ctypes.c_int32) == 100
    copy = Object(plugin.call(5, ctypes.c_void_p))
    plugin.destroy()
    assert copy.capability(CORE).call(4, ctypes.c_char_p) == name.encode()
    copy.destroy()


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("series", [FLOAT, HALF, BF16])
def test_data_types(makers: dict[str, Object], name: str, series: int) -> None:
    build = create(makers[name]).capability(BUILD)

    def ask(types: list[int]) -> list[int] | None:
        out = int_array([-1] * OUTPUTS[name])
        given = int_array(types[: INPUTS[name]])
        failed = build.call(
            5, ctypes.c_int32, out, ctypes.c_int32(len(out)), given, ctypes.c_int32(len(given))
        )  # fmt: skip
        return None if failed else list(out)

    for decay in {series, FLOAT}:
        types = types_of(name, series, decay)
        assert ask(types) == types[INPUTS[name] :]
    assert ask([INT32] * INPUTS[name]) is None
    assert ask([*types_of(name, series)[: INPUTS[name] - 1], HALF if series == BF16 else BF16]) is None


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("series", [FLOAT, HALF, BF16])
def test_formats(makers: dict[str, Object], name: str, series: int) -> None:
    build = create(makers[name]).capability(BUILD)
    types = types_of(name, series, FLOAT)

    def supported(at: int, kinds: list[int], tensor_format: int = 0) -> bool:
        layout = [Dynamic(tensor([1], kind, tensor_format if i == at else 0)) for i, kind in enumerate(kinds)]
        every = (Dynamic * len(kinds))(*layout)
        return build.call(
            7, ctypes.c_bool, ctypes.c_int32(at), every, ctypes.c_int32(INPUTS[name]), ctypes.c_int32(OUTPUTS[name])
        )  # fmt: skip

    for at in range(len(types)):
        assert supported(at, types)
        assert not supported(at, types, tensor_format=1)
        assert not supported(at, [*types[:at], INT32, *types[at + 1 :]])


def test_shapes(makers: dict[str, Object]) -> None:
    def ask(name: str, given: list[list[int]]) -> list[list[int]] | None:
        build = create(makers[name]).capability(BUILD)
        symbols = [Expressions(len(one), (ctypes.c_void_p * 8)(*one)) for one in given]
        out = (Expressions * OUTPUTS[name])()
        builder = ctypes.c_void_p(1)  # a reference that must not be touched
        failed = build.call(
            6, ctypes.c_int32, (Expressions * len(symbols))(*symbols), ctypes.c_int32(len(symbols)), None,
            ctypes.c_int32(0), out, ctypes.c_int32(len(out)), builder,
        )  # fmt: skip
        return None if failed else [list(one.at)[: one.count] for one in out]

    series, state = [11, 12, 13], [11, 14, 64, 64]  # addresses of expressions
    assert ask("WKV7", [series] * 6 + [state]) == [series, state]
    assert ask("WKV6", [series] * 4 + [[14, 64], state]) == [series, state]
    assert ask("MatMulW8", [series, [21, 13], [21]]) == [[11, 12, 21]]
    assert ask("WKV7", [[11, 13]] * 6 + [state]) is None
    assert ask("MatMulW8", [series, [21], [21]]) is None


@pytest.mark.parametrize(("length", "chunks"), [(1, 0), (32, 0), (33, 3), (512, 32), (4096, 32)])
def test_the_workspace_is_bounded(makers: dict[str, Object], length: int, chunks: int) -> None:
    build = create(makers["WKV7"]).capability(BUILD)
    given = [Dynamic(tensor([2, -1, 256], HALF), dims([2, 1, 256]), dims([2, length, 256]), dims([2, 1, 256]))] * 6
    state = Dynamic(tensor([2, 4, 64, 64], FLOAT), dims([2, 4, 64, 64]), dims([2, 4, 64, 64]), dims([2, 4, 64, 64]))
    array = (Dynamic * 7)(*given, state)
    size = build.call(9, ctypes.c_size_t, array, ctypes.c_int32(7), None, ctypes.c_int32(2))
    assert size == 2 * 4 * chunks * (2 * 36 * 32 * 8 + 256)


def test_the_state_is_aliased_only_when_asked(makers: dict[str, Object]) -> None:
    for name, state in (("WKV6", 5), ("WKV7", 6)):
        plain = create(makers[name]).capability(BUILD)
        asked = create(makers[name], {"alias_state": 1}).capability(BUILD)
        assert [plain.call(15, ctypes.c_int32, ctypes.c_int32(i)) for i in (0, 1)] == [-1, -1]
        assert [asked.call(15, ctypes.c_int32, ctypes.c_int32(i)) for i in (0, 1)] == [-1, state]
    assert create(makers["MatMulW8"]).capability(BUILD).call(15, ctypes.c_int32, ctypes.c_int32(0)) == -1


def test_attributes_are_read_in_both_widths_and_checked(
    makers: dict[str, Object], capfd: pytest.CaptureFixture[str]
) -> None:
    create(makers["WKV7"], {"head_size": 64}, kind=FIELD_INT64)
    with pytest.raises(AssertionError, match="null"):
        create(makers["WKV7"], {"head_size": 32})
    assert "head_size is 32; wanted 64" in capfd.readouterr().err
    with pytest.raises(AssertionError, match="null"):
        create(makers["WKV7"], {"head_size": 64}, kind=6)  # text


def run(maker: Object, inputs: list[Array], outputs: list[Array], kinds: list[int], workspace: int = 0) -> int:
    """Create, serialise, create for the runtime, attach, announce shapes, enqueue; returns the first error."""
    first = create(maker)
    stored = first.capability(RUNTIME).call(8, ctypes.c_void_p)  # the fields of the engine file
    restored = Object(maker.call(4, ctypes.c_void_p, ctypes.c_char_p(b"n"), ctypes.c_void_p(stored), ctypes.c_int32(1)))
    first.destroy()
    plugin = Object(restored.capability(RUNTIME).call(7, ctypes.c_void_p, ctypes.c_void_p(None)))
    restored.destroy()
    runtime = plugin.capability(RUNTIME)
    described = [tensor(one.shape, kind) for one, kind in zip([*inputs, *outputs], kinds, strict=True)]
    given = (Tensor * len(inputs))(*described[: len(inputs)])
    made = (Tensor * len(outputs))(*described[len(inputs) :])
    counts = ctypes.c_int32(len(inputs)), ctypes.c_int32(len(outputs))
    error = runtime.call(5, ctypes.c_int32, given, counts[0], made, counts[1])
    if not error:
        addresses = [(ctypes.c_void_p * len(x))(*(one.ctypes.data for one in x)) for x in (inputs, outputs)]
        room = np.zeros(max(workspace, 1), np.uint8)
        error = runtime.call(
            6, ctypes.c_int32, given, made, *addresses, ctypes.c_void_p(room.ctypes.data), ctypes.c_void_p(None)
        )  # fmt: skip
    plugin.destroy()
    return int(error)


@pytest.mark.parametrize("length", [1, 5, 40])
@pytest.mark.parametrize("name", ["WKV6", "WKV7"])
def test_recurrences_run(makers: dict[str, Object], name: str, length: int) -> None:
    reference = {"WKV6": wkv6, "WKV7": wkv7}[name]
    made = {"WKV6": wkv6_inputs, "WKV7": wkv7_inputs}[name]("plain", 2, length, 2)
    inputs = [x.astype(np.float16) for x in made[:-1]] + [made[-1].astype(np.float32)]
    y, state = np.full((2, length, 128), np.nan, np.float16), np.full((2, 2, 64, 64), np.nan, np.float32)
    assert run(makers[name], inputs, [y, state], types_of(name, HALF), workspace=1 << 20) == 0
    wanted_y, wanted_state = reference(*inputs)
    np.testing.assert_allclose(y, wanted_y, atol=6e-4 * np.abs(wanted_y).max(), rtol=0)
    np.testing.assert_allclose(state, wanted_state, atol=1.5e-5 * np.abs(wanted_state).max(), rtol=0)


@pytest.mark.parametrize("group", [0, 32, 128])
def test_the_product_runs(makers: dict[str, Object], group: int) -> None:
    g = np.random.default_rng(0)
    codes, scales = quantize(g.standard_normal((24, 256)), group)
    x, y = g.standard_normal((2, 3, 256)).astype(np.float32), np.full((2, 3, 24), np.nan, np.float32)
    assert run(makers["MatMulW8"], [x, codes, scales], [y], [FLOAT, INT8, FLOAT, FLOAT]) == 0
    wanted = matmul_w8(x, codes, scales)
    np.testing.assert_allclose(y, wanted, atol=2e-6 * np.abs(wanted).max(), rtol=0)


def test_wrong_shapes_are_refused_with_a_reason(makers: dict[str, Object], capfd: pytest.CaptureFixture[str]) -> None:
    series = [np.zeros((1, 2, 128), np.float32)] * 6
    state, y = np.zeros((1, 3, 64, 64), np.float32), np.zeros((1, 2, 128), np.float32)
    assert run(makers["WKV7"], [*series, state], [y, state], types_of("WKV7", FLOAT)) == -1
    assert "[1, 3, 64, 64] does not belong to series [1, 2, 128]" in capfd.readouterr().err
    x, codes = np.zeros((1, 48), np.float32), np.zeros((4, 48), np.int8)
    assert run(makers["MatMulW8"], [x, codes, np.ones((4, 3), np.float32)], [x], [FLOAT, INT8, FLOAT, FLOAT]) == -1
    assert "groups of 32 or a multiple of 64" in capfd.readouterr().err
