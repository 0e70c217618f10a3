"""A plugin library as TensorRT sees it: virtual functions by their place in the table, structures by their layout.

Nothing here comes from our header, so that a wrong order or size there is noticed. Places are those of TensorRT's C++
ABI (Itanium): two for a destructor, and every interface begins with language, interface information, destructor.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FLOAT, HALF, INT8, INT32, BF16 = 0, 1, 2, 3, 7
CORE, BUILD, RUNTIME = 0, 1, 2
FIELD_INT32, FIELD_INT64 = 5, 10


class Dims(ctypes.Structure):
    _fields_ = [("count", ctypes.c_int32), ("at", ctypes.c_int64 * 8)]


class Expressions(ctypes.Structure):
    _fields_ = [("count", ctypes.c_int32), ("at", ctypes.c_void_p * 8)]


class Tensor(ctypes.Structure):
    _fields_ = [
        ("dims", Dims), ("type", ctypes.c_int32), ("format", ctypes.c_int32), ("scale", ctypes.c_float),
    ]  # fmt: skip


class Dynamic(ctypes.Structure):
    _fields_ = [("desc", Tensor), ("min", Dims), ("max", Dims), ("opt", Dims)]


class Field(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("type", ctypes.c_int32), ("length", ctypes.c_int32),
    ]  # fmt: skip


class Fields(ctypes.Structure):
    _fields_ = [("count", ctypes.c_int32), ("at", ctypes.POINTER(Field))]


class Information(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_char_p), ("major", ctypes.c_int32), ("minor", ctypes.c_int32)]


def dims(shape: Sequence[int]) -> Dims:
    return Dims(len(shape), (ctypes.c_int64 * 8)(*shape))


def tensor(shape: Sequence[int], data_type: int, tensor_format: int = 0) -> Tensor:
    return Tensor(dims(shape), data_type, tensor_format, 1.0)


def fields(values: dict[str, int], kind: int = FIELD_INT32) -> tuple[Fields, list[Any]]:
    """Return a field collection, and what must stay alive with it."""
    item = ctypes.c_int64 if kind == FIELD_INT64 else ctypes.c_int32
    numbers = [item(value) for value in values.values()]
    array = (Field * len(values))(
        *(
            Field(name.encode(), ctypes.cast(ctypes.pointer(number), ctypes.c_void_p), kind, 1)
            for name, number in zip(values, numbers, strict=True)
        )
    )
    return Fields(len(values), array), [numbers, array]


class Object:
    """A C++ object with virtual functions."""

    def __init__(self, address: int) -> None:
        assert address, "a null object"
        self.address = address

    def call(self, place: int, result: Any, *arguments: Any) -> Any:
        """Call the virtual function at `place`; pointers are passed with ctypes.byref or as arrays."""
        table = ctypes.c_void_p.from_address(self.address).value
        assert table is not None
        function = ctypes.c_void_p.from_address(table + place * ctypes.sizeof(ctypes.c_void_p)).value
        assert function is not None
        return ctypes.CFUNCTYPE(result, ctypes.c_void_p, *[_kind(a) for a in arguments])(function)(
            self.address, *arguments
        )

    def information(self) -> tuple[str, int, int]:
        """Return kind, major and minor version of the interface."""
        found = self.call(1, Information)
        return found.kind.decode(), found.major, found.minor

    def capability(self, which: int) -> Object:
        """Return one side of a plugin."""
        return Object(self.call(4, ctypes.c_void_p, ctypes.c_int32(which)))

    def destroy(self) -> None:
        """Run the deleting destructor."""
        self.call(3, None)


def creators(path: Path) -> dict[str, Object]:
    """Return the creators of a plugin library by name."""
    library = ctypes.CDLL(str(path))
    library.setLoggerFinder(None)
    library.getCreators.restype = ctypes.POINTER(ctypes.c_void_p)
    count = ctypes.c_int32(-1)
    found = library.getCreators(ctypes.byref(count))
    objects = [Object(found[i] or 0) for i in range(count.value)]
    return {one.call(6, ctypes.c_char_p).decode(): one for one in objects}


def _kind(argument: Any) -> Any:
    return type(argument) if isinstance(argument, ctypes._SimpleCData) else ctypes.c_void_p
