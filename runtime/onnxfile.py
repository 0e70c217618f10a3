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

Bytes = bytes | mmap.mmap


def external_files(path: Path) -> set[str]:
    """Return the locations of external weights as they stand in the file. Raises `BundleError` for no ONNX file."""
    if not path.stat().st_size:
        raise BundleError(f"{path} is empty", hint="copy the bundle again, or export it again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return set(_locations(data, 0, len(data), "model", 0))
        except (IndexError, ValueError, UnicodeDecodeError) as error:
            raise BundleError(f"{path} is no ONNX file: {error}", hint="copy the bundle again") from None


def without_functions(model: bytes) -> bytes:
    """Return a model without the bodies of its own operators (`ModelProto.functions`), which a plugin then replaces.

    Raises `BundleError` for no ONNX file.
    """
    kept, at = [], 0
    try:
        while at < len(model):
            tag, after = _varint(model, at, len(model))
            _, end = _span(model, tag & 7, after, len(model))
            if _FIELDS["model"].get(tag >> 3) != "function":
                kept.append(model[at:end])
            at = end
    except ValueError as error:
        raise BundleError(f"no ONNX file: {error}", hint="copy the bundle again") from None
    return b"".join(kept)


def _locations(data: Bytes, start: int, stop: int, kind: str, depth: int) -> Iterator[str]:
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


def _fields(data: Bytes, at: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, begin and end of every field with a length; numbers are stepped over."""
    while at < stop:
        tag, at = _varint(data, at, stop)
        begin, at = _span(data, tag & 7, at, stop)
        if tag & 7 == 2:
            yield tag >> 3, begin, at
    if at != stop:
        raise ValueError("a message that ends in the middle of a field")


def _span(data: Bytes, wire: int, at: int, stop: int) -> tuple[int, int]:
    """Return where the content of a field begins and ends, whose tag ended at `at`."""
    if wire == 0:
        return at, _varint(data, at, stop)[1]
    length = {1: 8, 5: 4}.get(wire, 0)
    if wire == 2:
        length, at = _varint(data, at, stop)
    elif not length:
        raise ValueError(f"wire type {wire}")
    if length > stop - at:
        raise ValueError(f"a field of {length} bytes in a message of {stop - at}")
    return at, at + length


def _varint(data: Bytes, at: int, stop: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= stop:
            break
        byte = data[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
    raise ValueError("a number without an end")
