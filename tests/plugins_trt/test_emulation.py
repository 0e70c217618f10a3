"""The emulation notices mistakes: a barrier less, threads in another order, a warp that does not meet."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest

from plugins_trt.builder import ROOT
from plugins_trt.matmul_w8.reference import quantize
from plugins_trt.toolchain import find_compiler
from tests.plugins_trt.emulated import CHUNKED, Emulated, KernelError, to_type
from tests.plugins_trt.series import wkv6_inputs, wkv7_inputs

INPUTS = {"wkv6": wkv6_inputs, "wkv7": wkv7_inputs}
# Of the chunked kernels with four chunks. `advance` has two to a chunk; the second of the last two chunks protects a
# buffer that nobody fills again.
BARRIERS, NEEDED = 8, (0, 1, 2, 3, 4, 6)


def chunked(emulated: Emulated, name: str, **steering: int) -> np.ndarray:
    inputs = [to_type(x, "float16") for x in INPUTS[name]("plain", 1, 64, 1)]
    inputs[-1] = INPUTS[name]("plain", 1, 64, 1)[-1].astype(np.float32)
    with emulated.steered(**steering):
        y, state = emulated.recurrence(name, inputs, "float16", "float16", CHUNKED)
    return np.concatenate([y.ravel(), state.ravel()])


def differs(emulated: Emulated, name: str, wanted: np.ndarray, barrier: int, reverse: bool) -> bool:
    try:
        return not np.array_equal(chunked(emulated, name, skip_barrier=barrier, reverse=reverse), wanted)
    except AssertionError:  # NaN, a guard, or what the emulation itself noticed
        return True


@pytest.mark.parametrize("name", ["wkv6", "wkv7"])
def test_the_order_of_threads_changes_nothing(emulated: Emulated, name: str) -> None:
    np.testing.assert_array_equal(chunked(emulated, name, reverse=True), chunked(emulated, name))


@pytest.mark.parametrize("barrier", NEEDED)
@pytest.mark.parametrize("name", ["wkv6", "wkv7"])
def test_a_missing_barrier_is_caught(emulated: Emulated, name: str, barrier: int) -> None:
    wanted = chunked(emulated, name)
    assert emulated.functions.vrwkv_emulate_barriers() == BARRIERS
    assert any(differs(emulated, name, wanted, barrier, reverse) for reverse in (False, True))


@pytest.mark.parametrize(("tokens", "barrier"), [(1, 0), (20, 1), (20, 2)])
def test_a_missing_barrier_of_the_product_is_caught(emulated: Emulated, tokens: int, barrier: int) -> None:
    g = np.random.default_rng(0)
    codes, scales = quantize(g.standard_normal((16, 1024)))
    x = to_type(g.standard_normal((tokens, 1024)), "float16")

    def run(**steering: int) -> bytes:
        with emulated.steered(**steering):
            try:
                return emulated.matmul(x, codes, scales, "float16", "float32").tobytes()
            except AssertionError:
                return b""

    wanted = run()
    assert run(reverse=True) == wanted != b""
    assert any(run(skip_barrier=barrier, reverse=reverse) != wanted for reverse in (False, True))


_WRONG = """
#include "common/device.cuh"
#include "common/emulate.cpp"
using namespace vrwkv;
__global__ void diverge(float* out) {
    float x = 1.f;
    if (threadIdx.x != 3) x = __shfl_xor_sync(kAll, x, 1);
    out[threadIdx.x] = x;
}
__global__ void mix(float* out) {
    float const x = threadIdx.x % 2 ? __shfl_xor_sync(kAll, 1.f, 1) : __shfl_sync(kAll, 1.f, 0);
    out[threadIdx.x] = x;
}
__global__ void overrun(float* out) {
    float* shared = &shared_as<float>();
    shared[threadIdx.x] = 1.f;
    out[threadIdx.x] = shared[threadIdx.x];
}
VRWKV_EXPORT int32_t run(int32_t which, float* out) {
    if (which == 0) return launch(diverge, dim3(1), 32, 0, nullptr, out);
    if (which == 1) return launch(mix, dim3(1), 32, 0, nullptr, out);
    return launch(overrun, dim3(1), 32, 31 * sizeof(float), nullptr, out);
}
"""


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory, emulated: Emulated) -> ctypes.CDLL:
    folder: Path = tmp_path_factory.mktemp("wrong")
    (folder / "wrong.cpp").write_text(_WRONG)
    command = [find_compiler(), "-std=c++17", "-fPIC", "-shared", "-DVRWKV_EMULATE", "-U_FORTIFY_SOURCE", f"-I{ROOT}"]
    out = str(folder / "wrong.so")
    subprocess.run([*command, "-o", out, str(folder / "wrong.cpp")], check=True, timeout=120)
    library = ctypes.CDLL(out)
    library.vrwkv_emulate_message.restype = ctypes.c_char_p
    return library


@pytest.mark.parametrize(
    ("which", "message"), [(0, "for ever"), (1, "different operations"), (2, "past its shared memory")]
)
def test_what_a_gpu_would_not_forgive(wrong: ctypes.CDLL, which: int, message: str) -> None:
    out = np.zeros(32, np.float32)
    assert wrong.run(which, ctypes.c_void_p(out.ctypes.data)) == 999
    assert message in wrong.vrwkv_emulate_message().decode()


def test_errors_are_told_apart(emulated: Emulated) -> None:
    with pytest.raises(KernelError, match=r"error 1 $"):
        emulated.matmul(
            np.zeros((1, 24), np.float32), np.zeros((4, 24), np.int8), np.ones(4, np.float32), "float32", "float32"
        )
