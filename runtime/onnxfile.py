"""Which other files an ONNX file reads: the locations of its external weights, found without the onnx package.

The engine that runs a graph refuses paths outside the folder (onnxruntime does). A bundle asks for more: every file a
graph reads must be one that its manifest lists and whose digest was checked. Only the tags and lengths of the format
(protocol buffers, onnx.proto3) are followed; weights inside the file are stepped over, not read.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from runtime.errors import BundleError

# Message -> field number -> the message it holds; everything else is stepped over.
_FIELDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}
_DEEPEST = 100  # subgraphs in subgraphs


def external_files(path: Path) -> set[str]:
    """Return the locations of external weights as they stand in the file. Raises `BundleError` for no ONNX file."""
    if not path.stat().st_size:
        raise BundleError(f"{path} is empty", hint="copy the bundle again, or export it again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return set(_locations(data, 0, len(data), "model", 0))
        except (IndexError, ValueError, UnicodeDecodeError) as error:
            raise BundleError(f"{path} is no ONNX file: {error}", hint="copy the bundle again") from None


def _locations(data: mmap.mmap, start: int, stop: int, kind: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError(f"messages nested deeper than {_DEEPEST}")
    entry: dict[int, bytes] = {}
    for number, begin, end in _fields(data, start, stop):
        inner = _FIELDS[kind].get(number)
        if kind == "entry":
            entry[number] = data[begin:end]
        elif inner is not None and end > begin:
            yield from _locations(data, begin, end, inner, depth + 1)
    if entry.get(1) == b"location":
        yield entry.get(2, b"").decode()


def _fields(data: mmap.mmap, at: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, begin and end of every field with a length; numbers are stepped over."""
    while at < stop:
        tag, at = _varint(data, at, stop)
        wire = tag & 7
        if wire == 0:
            _, at = _varint(data, at, stop)
        elif wire == 2:
            length, at = _varint(data, at, stop)
            if length > stop - at:
                raise ValueError(f"a field of {length} bytes in a message of {stop - at}")
            yield tag >> 3, at, at + length
            at += length
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
    if at != stop:
        raise ValueError("a message that ends in the middle of a field")


def _varint(data: mmap.mmap, at: int, stop: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= stop:
            break
        byte = data[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
    raise ValueError("a number without an end")
