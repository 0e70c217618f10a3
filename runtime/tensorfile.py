"""Tensors in one file that is whole or absent: the safetensors format, with a checksum, written atomically.

The format is a length, a header in JSON and the bytes of the tensors, so that reading and writing it by hand costs the
runtime no dependency; every safetensors tool opens these files. The first entry of the header's metadata is a SHA-256
over the whole file with that digest as zeros: a changed byte anywhere is noticed. It is no signature: who can write
the file can also write a digest, so whatever is read is still checked against what the model declares.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from runtime.errors import StateError

HEADER_LIMIT = 16 << 20  # bytes; a long conversation's text is far below
STALE = 3600.0  # seconds after which the leftover of a killed save is removed by the next one

_DTYPES = {"float32": "F32", "float16": "F16", "int8": "I8", "uint8": "U8", "int32": "I32", "int64": "I64"}
_NAMES = {code: name for name, code in _DTYPES.items()}
_OPENING = b'{"__metadata__":{"sha256":"'
_DIGEST = slice(8 + len(_OPENING), 8 + len(_OPENING) + 64)
_ZEROS = b"0" * 64


@dataclass(frozen=True)
class TensorFile:
    """What a file holds: its metadata, and tensors that cannot be written to."""

    metadata: dict[str, str]
    tensors: dict[str, np.ndarray]


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write a file in one go: whatever happens, `path` then holds the old content or the new.

    Raises `StateError` if the disk is full or the folder cannot be written; the old file is then as it was.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    entries, offset = {}, 0
    for name, array in arrays.items():
        stop = offset + array.nbytes
        entries[name] = {
            "dtype": _DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, stop],
        }
        offset = stop
    content = {"__metadata__": {"sha256": _ZEROS.decode(), **metadata}, **entries}
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    if len(text) > HEADER_LIMIT:
        raise StateError(
            f"{path}: the conversation's text takes {len(text)} bytes",
            wanted=f"at most {HEADER_LIMIT}",
            hint="reset() the session, or ask shorter questions",
        )
    digest = hashlib.sha256(head)
    for array in arrays.values():
        digest.update(array.data)
    head = head[: _DIGEST.start] + digest.hexdigest().encode() + head[_DIGEST.stop :]
    with _replacing(path) as file:
        file.write(head)
        for array in arrays.values():
            file.write(array.data)


def read_tensors(path: Path, *, limit: int) -> TensorFile:
    """Read a file written by `write_tensors`.

    Args:
        path: the file.
        limit: bytes of tensors that can be meant; a larger file is refused before it is read.

    Raises:
        StateError: no such file, too large, truncated, altered, or not of this format.
    """
    data = _content(path, limit + HEADER_LIMIT + 8)
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if not data[8:].startswith(_OPENING) or length > HEADER_LIMIT:
        raise StateError(f"{path} is not a state file", wanted="a file that save() wrote", hint="check the path")
    found = hashlib.sha256(data[: _DIGEST.start])
    found.update(_ZEROS)
    found.update(memoryview(data)[_DIGEST.stop :])
    if found.hexdigest().encode() != data[_DIGEST]:
        raise StateError(
            f"{path} ({len(data)} bytes) is truncated or was changed: its SHA-256 is {found.hexdigest()}",
            wanted=data[_DIGEST].decode("ascii", "replace"),
            hint="copy the file again, or go back to an older save",
        )
    try:
        return _parse(json.loads(data[8 : 8 + length]), memoryview(data)[8 + length :])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StateError(f"{path} has a malformed header: {error}", hint="save the session again") from None


def _parse(header: Any, body: memoryview) -> TensorFile:
    metadata = header.pop("__metadata__")
    if not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("metadata that is not text")
    tensors, offset = {}, 0
    for name, entry in header.items():
        dtype, shape = np.dtype(_NAMES[entry["dtype"]]), entry["shape"]
        if not all(type(axis) is int and axis >= 0 for axis in shape):
            raise ValueError(f"{name} has shape {shape}")
        stop = offset + prod(shape) * dtype.itemsize
        if entry["data_offsets"] != [offset, stop] or stop > len(body):
            raise ValueError(f"{name} lies at {entry['data_offsets']} instead of {[offset, stop]}")
        tensors[name] = np.frombuffer(body[offset:stop], dtype).reshape(shape)
        offset = stop
    if offset != len(body):
        raise ValueError(f"{len(body) - offset} bytes belong to no tensor")
    return TensorFile(metadata, tensors)


def _content(path: Path, limit: int) -> bytes:
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise StateError(f"{path} is not a file", wanted="a file that save() wrote", hint="check the path")
        if info.st_size > limit:
            raise StateError(
                f"{path} has {info.st_size} bytes",
                wanted=f"at most {limit} for this model",
                hint="is it a state of another model, or no state at all?",
            )
        with path.open("rb") as file:
            return file.read(limit)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        reason = getattr(error, "strerror", None) or error
        raise StateError(f"{path} cannot be read: {reason}", hint="check the path") from None


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file that becomes `path`, safely on the disk, unless something goes wrong."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        _remove_leftovers(path)
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StateError(
            f"{path} cannot be written: {reason}",
            hint="free some space or choose another folder; an older file of that name is untouched",
        ) from error
    finally:
        with suppress(OSError, ValueError):  # the first error is the one to tell
            partial.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    for name in os.listdir(path.parent):
        if name.startswith(f".{path.name}.") and name.endswith(".partial"):
            old = path.with_name(name)
            if time.time() - old.stat().st_mtime > STALE:
                old.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the new name durable, where the file system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    with suppress(OSError):
        os.fsync(handle)
    os.close(handle)
