"""What is fuzzed: every parser that reads bytes from outside, as functions of bytes.

Each gives a result or one of our errors; anything else that leaves it is a bug, and so is a hang.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from runtime import store
from runtime.errors import VisualRWKVError
from runtime.frames import as_picture, thumbnail
from runtime.image import load_image
from runtime.onnxfile import external_files
from runtime.spec import MANIFEST_FILE, Manifest
from runtime.tensorfile import _DIGEST, _ZEROS, read_tensors
from runtime.tokenizer import Tokenizer
from tests.runtime.fake_bundle import write_fake_bundle
from tests.runtime.fake_model import fake_model, frame, say

_FOLDER = Path(tempfile.mkdtemp(prefix="vrwkv-fuzz-"))
_BUNDLE = write_fake_bundle(_FOLDER / "bundle")
_MANIFEST = Manifest.from_json((_BUNDLE / MANIFEST_FILE).read_text(encoding="utf-8"))
_TOKENIZER = Tokenizer(_BUNDLE / "vocab.txt")


def picture(data: bytes) -> None:
    """An image file, and the bytes a camera may send."""
    with suppress(VisualRWKVError):
        load_image(_written(data))
    sent = as_picture(data)
    if sent is not None:
        assert thumbnail(sent).shape == (32, 32)


def manifest(data: bytes) -> None:
    """A bundle's manifest."""
    with suppress(VisualRWKVError, UnicodeDecodeError):
        text = data.decode()
        read = Manifest.from_json(text)
        assert Manifest.from_json(read.to_json()) == read


def graph(data: bytes) -> None:
    """The external files of an ONNX graph."""
    with suppress(VisualRWKVError):
        external_files(_written(data))


def state(data: bytes) -> None:
    """A saved conversation, its checksum made right so that what is behind it is reached."""
    if len(data) >= _DIGEST.stop:
        digest = hashlib.sha256(data[: _DIGEST.start] + _ZEROS + data[_DIGEST.stop :]).hexdigest().encode()
        data = data[: _DIGEST.start] + digest + data[_DIGEST.stop :]
    path = _written(data)
    with suppress(VisualRWKVError):
        read_tensors(path, limit=1 << 20)
        store.load(path, _MANIFEST, "fake")


def text(data: bytes) -> None:
    """A prompt, and ids that no tokenizer made."""
    prompt = data.decode("utf-8", "replace")
    assert _TOKENIZER.decode(_TOKENIZER.encode(prompt)) == prompt
    ids = struct.unpack(f"<{len(data) // 4}i", data[: len(data) // 4 * 4])
    with suppress(VisualRWKVError):
        _TOKENIZER.decode(ids)


TARGETS: dict[str, Callable[[bytes], None]] = {f.__name__: f for f in (picture, manifest, graph, state, text)}


def seeds(target: str) -> Iterable[bytes]:
    """Return well-formed inputs to start from."""
    if target == "picture":
        pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
        for kind in ("PNG", "JPEG", "BMP", "GIF", "WEBP"):
            file = io.BytesIO()
            pixels.save(file, kind)
            yield file.getvalue()
    elif target == "manifest":
        content = (_BUNDLE / MANIFEST_FILE).read_bytes()
        yield from (content, json.dumps(json.loads(content), separators=(",", ":")).encode())
    elif target == "graph":
        # graph { initializer { name, location "w.bin" } }, written out: onnx is no dependency of what is fuzzed.
        entry = b"\x0a\x08location\x12\x05w.bin"
        tensor = b"\x42\x01w" + b"\x6a" + bytes([len(entry)]) + entry
        inner = b"\x2a" + bytes([len(tensor)]) + tensor
        yield b"\x08\x09\x3a" + bytes([len(inner)]) + inner
    elif target == "state":
        path = _FOLDER / "seed.state"
        with fake_model(_FOLDER / "model") as model:
            session = model.session()
            session.see(frame(1))
            say(session, "One?")
            session.see(frame(2))
            session.save(path)
        yield path.read_bytes()
    else:
        yield from (b"How many?", "图里有什么？\n\n".encode(), struct.pack("<3i", 1, 257, -1))


def _written(data: bytes) -> Path:
    path = _FOLDER / "input"
    path.write_bytes(data)
    return path
