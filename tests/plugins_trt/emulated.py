"""The kernels' C interface, called on arrays whose neighbourhood is watched and whose contents are NaN at first."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

TYPES = ("float32", "float16", "bfloat16")
AUTOMATIC, RECURRENT, CHUNKED = range(3)
_GUARD, _MARK = 64, 0xA5  # bytes on either side of an output


def to_type(x: Array, name: str) -> Array:
    """Return `x` rounded to a type of TYPES; bfloat16 as its bits in uint16."""
    if name != "bfloat16":
        return np.ascontiguousarray(x, name)
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_type(x: Array, name: str) -> Array:
    """Return the float64 values of what `to_type` made."""
    if name != "bfloat16":
        return x.astype(np.float64)
    return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


class Output:
    """An array of NaN between two guards."""

    def __init__(self, shape: tuple[int, ...], type_name: str) -> None:
        item = np.dtype(np.uint16 if type_name == "bfloat16" else type_name)
        self._bytes = np.full(int(np.prod(shape)) * item.itemsize + 2 * _GUARD, 0xFF, np.uint8)
        self._bytes[:_GUARD] = self._bytes[-_GUARD:] = _MARK
        self.array: Array = self._bytes[_GUARD:-_GUARD].view(item).reshape(shape)
        self._type = type_name

    def values(self) -> Array:
        """Return the values in float64; fails where a guard was overwritten or an element was not written."""
        guards = np.concatenate([self._bytes[:_GUARD], self._bytes[-_GUARD:]])
        assert (guards == _MARK).all(), "written outside of the output"
        values = from_type(self.array, self._type)
        assert not np.isnan(values).any(), "an element is NaN or was not written"
        return values


class KernelError(AssertionError):
    """A kernel call did not return 0."""


class Emulated:
    """The emulated library."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.functions = ctypes.CDLL(str(path))
        for name in ("vrwkv_wkv6_workspace", "vrwkv_wkv7_workspace"):
            getattr(self.functions, name).restype = ctypes.c_size_t
        self.functions.vrwkv_emulate_message.restype = ctypes.c_char_p

    def recurrence(
        self, name: str, inputs: Sequence[Array], type_name: str, decay_type: str, path: int, *, in_place: bool = False
    ) -> tuple[Array, Array]:
        """Run "wkv6" or "wkv7" on typed inputs; returns y and the state in float64."""
        batch, length, width = inputs[0].shape
        state = inputs[-1]
        y, after = Output((batch, length, width), type_name), Output(state.shape, "float32")
        codes = (TYPES.index(type_name), TYPES.index(decay_type))
        sizes = (batch, length, width // 64)
        if in_place:
            after.array[...] = state
            inputs = [*inputs[:-1], after.array]
        size = getattr(self.functions, f"vrwkv_{name}_workspace")(codes[0], batch, max(length, 33), width // 64)
        workspace = Output((size,), "uint8") if path != RECURRENT else None
        call = getattr(self.functions, f"vrwkv_{name}")
        self._check(
            call(
                *codes, *sizes, _pointers(inputs), _pointers([y.array, after.array]),
                workspace and ctypes.c_void_p(workspace.array.ctypes.data), path, None,
            )
        )  # fmt: skip
        if workspace:
            workspace.values()
        return y.values(), after.values()

    def matmul(self, x: Array, codes: Array, scales: Array, type_name: str, scale_type: str) -> Array:
        """Run the product with 8-bit weights on x [M, K]; returns y [M, N] in float64."""
        group = 0 if scales.ndim == 1 else codes.shape[1] // scales.shape[1]
        y = Output((x.shape[0], codes.shape[0]), type_name)
        data = [ctypes.c_void_p(one.ctypes.data) for one in (x, codes, scales, y.array)]
        call = self.functions.vrwkv_matmul_w8
        types = TYPES.index(type_name), TYPES.index(scale_type)
        self._check(call(*types, x.shape[0], codes.shape[1], codes.shape[0], group, *data, None))
        return y.values()

    def read_state(self, inputs: Sequence[Array], type_name: str) -> Array:
        """Run the image state's read-out on typed q, gate, y and a state; returns float64."""
        batch, length, width = inputs[0].shape
        out = Output((batch, length, width), type_name)
        sizes = (TYPES.index(type_name), batch, length, width // 64)
        at = ctypes.c_void_p(out.array.ctypes.data)
        self._check(self.functions.vrwkv_read_state(*sizes, _pointers(inputs), at, None))
        return out.values()

    @contextmanager
    def steered(self, *, reverse: bool = False, skip_barrier: int = -1) -> Iterator[None]:
        """Run threads in reverse order, or without one of the barriers, inside the block."""
        self.functions.vrwkv_emulate(int(reverse), skip_barrier)
        try:
            yield
        finally:
            self.functions.vrwkv_emulate(0, -1)

    def _check(self, error: int) -> None:
        if error:
            message = self.functions.vrwkv_emulate_message().decode() if error == 999 else ""
            raise KernelError(f"error {error} {message}")


def _pointers(arrays: Sequence[Array]) -> Any:
    assert all(one.flags["C_CONTIGUOUS"] for one in arrays)
    return (ctypes.c_void_p * len(arrays))(*(one.ctypes.data for one in arrays))
