"""What an ONNX file says: its nodes, and where its weights lie. Read without the onnx package.

The format is protocol buffers (onnx.proto3); only the fields that are needed are looked at. Everything found is
checked against the sizes of the files, so that what comes after may trust it.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from runtime.errors import BundleError

_AGAIN = "copy the bundle again, or export it again"
_DTYPES = {1: "float32", 2: "uint8", 6: "int32", 7: "int64", 10: "float16", 11: "float64"}
_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_INITIALIZER = 7, 1, 5
_NODE_INPUT, _NODE_OP, _NODE_ATTRIBUTE = 1, 4, 5
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Tensor:
    """One initializer: its bytes are in the ONNX file itself, or at an offset of another file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str  # "" for the ONNX file itself
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Product:
    """A MatMulNBits: codes, scales and zero points by name, and what its attributes say."""

    inputs: tuple[str, ...]  # of the weights: codes, scales[, zero points]
    k: int
    n: int
    bits: int
    block: int


@dataclass
class Graph:
    """The main graph of one ONNX file."""

    path: Path
    tensors: dict[str, Tensor] = field(default_factory=dict)
    products: dict[str, Product] = field(default_factory=dict)  # by the name of the codes
    operators: Counter[str] = field(default_factory=Counter)  # "Add", "com.microsoft.MatMulNBits" without its domain
    epsilons: set[float] = field(default_factory=set)  # of norms, rounded to float32
    _maps: dict[str, mmap.mmap] = field(default_factory=dict)

    def read(self, name: str) -> np.ndarray:
        """Return an initializer: a read-only view of the mapped file; a copy where it lies unaligned."""
        tensor = self.tensors[name]
        data = self._map(tensor.file)
        array = np.frombuffer(data, tensor.dtype, math.prod(tensor.shape), tensor.offset).reshape(tensor.shape)
        return array if array.flags.aligned else array.copy()

    def mapped(self, name: str) -> bool:
        """Tell whether `read` gives a view of a file of weights."""
        tensor = self.tensors[name]
        return bool(tensor.file) and tensor.offset % np.dtype(tensor.dtype).itemsize == 0

    def close(self) -> None:
        """Forget the mapped files; they are unmapped with the last array that views them."""
        self._maps.clear()

    def _map(self, name: str) -> mmap.mmap:
        if name not in self._maps:
            with (self.path.parent / name if name else self.path).open("rb") as file:
                self._maps[name] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[name]


def read_graph(path: Path) -> Graph:
    """Read nodes and initializers of an ONNX file.

    Raises:
        BundleError: the file is damaged, or an initializer does not lie within its file.
    """
    try:
        data = path.read_bytes()
        graph = Graph(path)
        for number, _, start, stop in _fields(data, 0, len(data)):
            if number == _MODEL_GRAPH:
                _read_main(graph, data, start, stop)
        sizes = {name: (path.parent / name).stat().st_size for name in {t.file for t in graph.tensors.values()} if name}
    except (OSError, ValueError, IndexError, KeyError, OverflowError, struct.error) as error:
        raise BundleError(f"{path} cannot be read: {error}", hint=_AGAIN) from None
    sizes[""] = len(data)
    for tensor in graph.tensors.values():
        if not 0 <= tensor.offset <= sizes[tensor.file] - tensor.nbytes:
            raise BundleError(
                f"{tensor.name!r} is {tensor.nbytes} bytes at {tensor.offset} of {tensor.file or path.name}",
                wanted=f"no more than the {sizes[tensor.file]} bytes of that file",
                hint=_AGAIN,
            )
    return graph


def _read_main(graph: Graph, data: bytes, start: int, stop: int) -> None:
    for number, wire, begin, end in _fields(data, start, stop):
        if wire != _BYTES:
            continue
        if number == _GRAPH_NODE:
            _read_node(graph, data, begin, end)
        elif number == _GRAPH_INITIALIZER:
            tensor = _read_tensor(data, begin, end)
            if tensor is not None:
                if tensor.name in graph.tensors:
                    raise ValueError(f"two initializers are named {tensor.name!r}")
                graph.tensors[tensor.name] = tensor


def _read_node(graph: Graph, data: bytes, start: int, stop: int) -> None:
    inputs, operator, numbers = [], "", {}
    for number, wire, begin, end in _fields(data, start, stop):
        if wire != _BYTES:
            continue
        if number == _NODE_INPUT:
            inputs.append(data[begin:end].decode())
        elif number == _NODE_OP:
            operator = data[begin:end].decode()
        elif number == _NODE_ATTRIBUTE:
            name, value = _read_attribute(data, begin, end)
            numbers[name] = value
    graph.operators[operator] += 1
    if operator == "LayerNormalization":
        graph.epsilons.add(float(numbers.get("epsilon", 1e-5)))
    if operator == "MatMulNBits" and len(inputs) > 1:
        sizes = [int(numbers.get(name, 0)) for name in ("K", "N", "bits", "block_size")]
        if inputs[1] in graph.products:
            raise ValueError(f"two products share the weights {inputs[1]!r}")
        graph.products[inputs[1]] = Product(tuple(inputs[1:]), *sizes)


def _read_attribute(data: bytes, start: int, stop: int) -> tuple[str, float]:
    name, value = "", 0.0
    for number, wire, begin, end in _fields(data, start, stop):
        if number == 1 and wire == _BYTES:
            name = data[begin:end].decode()
        elif number == 2 and wire == _FIXED32:
            value = struct.unpack("<f", data[begin:end])[0]
        elif number == 3 and wire == _VARINT:
            value = _varint(data, begin, end)[0]
    return name, value


def _read_tensor(data: bytes, start: int, stop: int) -> Tensor | None:
    """Return the tensor, or None for one whose values are in fields we have no use for."""
    shape: list[int] = []
    outside: dict[str, str] = {}
    name, kind, inside = "", 0, -1
    for number, wire, begin, end in _fields(data, start, stop):
        if number == 1:
            while begin < end:
                size, begin = _varint(data, begin, end)
                shape.append(size)
        elif number == 2 and wire == _VARINT:
            kind = _varint(data, begin, end)[0]
        elif number == 8 and wire == _BYTES:
            name = data[begin:end].decode()
        elif number == 9 and wire == _BYTES:
            inside, length = begin, end - begin
        elif number == 13 and wire == _BYTES:
            parts = {n: data[b:e].decode() for n, w, b, e in _fields(data, begin, end) if w == _BYTES}
            outside[parts.get(1, "")] = parts.get(2, "")
    if kind not in _DTYPES or (inside < 0 and "location" not in outside):
        return None
    if max(shape, default=0) >= 1 << 40 or math.prod(shape) >= 1 << 40:
        raise ValueError(f"{name!r} has shape {shape}")
    if outside:
        place = outside["location"]
        if not place or Path(place).name != place or place in (".", ".."):
            raise ValueError(f"{name!r} lies in {place!r}")
        tensor = Tensor(name, _DTYPES[kind], tuple(shape), place, int(outside.get("offset", "0")))
        length = int(outside.get("length", str(tensor.nbytes)))
    else:
        tensor = Tensor(name, _DTYPES[kind], tuple(shape), "", inside)
    if length != tensor.nbytes:
        raise ValueError(f"{name!r}, {tensor.dtype} {list(shape)}, has {length} bytes")
    return tensor


def _fields(data: bytes, at: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, wire type, begin and end of every field."""
    while at < stop:
        tag, at = _varint(data, at, stop)
        wire, begin = tag & 7, at
        if wire == _VARINT:
            _, at = _varint(data, at, stop)
        elif wire == _BYTES:
            length, begin = _varint(data, at, stop)
            at = begin + length
        elif wire in (_FIXED32, _FIXED64):
            at += 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire}")
        if at > stop:
            raise ValueError("a message that ends in the middle of a field")
        yield tag >> 3, wire, begin, at


def _varint(data: bytes, at: int, stop: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= stop:
            break
        byte = data[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
    raise ValueError("a number without an end")
