"""Hostile bytes in pictures, bundles, prompts and camera frames: each gives a result or one of our errors."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image, ImageFile

from runtime.backends.ort import OrtBackend
from runtime.bundle import Bundle
from runtime.errors import BundleError, InputError, VisualRWKVError
from runtime.frames import as_picture, thumbnail
from runtime.image import load_image
from runtime.spec import MANIFEST_FILE, GraphSpec, TensorSpec
from runtime.tokenizer import Tokenizer
from tests.runtime.fake_bundle import write_fake_bundle
from tests.runtime.fake_model import bits, fake_model, frame, say
from tests.runtime.watching import PATIENCE

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "ICO", "PPM", "TGA")
fuzz = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,  # the same in every run; delete the line to search further
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
shared = settings(fuzz, max_examples=40)


@functools.cache
def coded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(file, kind)
    return file.getvalue()


@st.composite
def damaged(draw: st.DrawFn, good: st.SearchStrategy[bytes]) -> bytes:
    """Bytes with some replaced, some cut out and some put in."""
    data = bytearray(draw(good))
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.integers(0, 8)))
        data[start:stop] = draw(st.binary(max_size=8))
    return bytes(data[: draw(st.integers(0, len(data))) if draw(st.booleans()) else None])


pictures = damaged(st.sampled_from(FORMATS).map(coded))


@fuzz
@given(data=pictures | st.binary(max_size=64))
def test_picture_files(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "picture"
    path.write_bytes(data)
    try:
        picture = load_image(path)
    except InputError:
        pass
    else:
        assert (picture.dtype, picture.ndim, picture.shape[2]) == (np.uint8, 3, 3)
    sent = as_picture(data)
    if sent is not None:
        assert load_image(sent).shape == (*sent.shape[:2], 3)
        assert thumbnail(sent).shape == (32, 32)


@st.composite
def zeros(draw: st.DrawFn) -> np.ndarray:
    """An array of any shape and kind."""
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    return np.zeros(shape, draw(st.sampled_from(["u1", "u2", "i1", "f4", "?", "O", "U2", "c8"])))


@fuzz
@given(array=zeros())
def test_arrays_that_may_be_no_pictures(array: np.ndarray) -> None:
    picture = as_picture(array)
    try:
        loaded = load_image(array)
    except InputError:
        assert picture is None or array.dtype == np.uint16
    else:
        assert picture is not None
        assert loaded.shape == (*array.shape[:2], 3)


def png_header(width: int, height: int) -> bytes:
    """A PNG of any size on paper, and a few bytes in truth."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def jpeg_header(width: int, height: int) -> bytes:
    data = bytearray(coded("JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("data", [png_header(12_000, 6000), png_header(60_000, 60_000), jpeg_header(65_000, 65_000)])
def test_decompression_bombs_are_refused_before_they_are_decoded(
    tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decoding(self: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decoding)
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    with pytest.raises(InputError, match="pixels"):
        load_image(path)
    assert as_picture(data) is None


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST_FILE).read_text())


@fuzz
@given(data=st.data())
def test_manifests_of_damaged_bytes(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "bundle"
    if not folder.exists():
        write_fake_bundle(folder)
        (tmp_path / "good").write_bytes((folder / MANIFEST_FILE).read_bytes())
    (folder / MANIFEST_FILE).write_bytes(data.draw(damaged(st.just((tmp_path / "good").read_bytes()))))
    with contextlib.suppress(BundleError):
        Bundle.open(folder, verify=False)


@pytest.mark.parametrize("where", ["embedding", "tokenizer", "graphs"])
@pytest.mark.parametrize("way", ["../outside", "{outside}", "link", "folder/../../outside", "//{outside}"])
def test_no_file_of_a_bundle_lies_outside(tmp_path: Path, where: str, way: str) -> None:
    folder = write_fake_bundle(tmp_path / "bundle")
    outside = tmp_path / "outside"
    outside.write_bytes(b"x")
    os.symlink(outside, folder / "link")
    (folder / "folder").mkdir()
    name, manifest = way.format(outside=outside), manifest_of(folder)
    spec = manifest[where][0] if where == "graphs" else manifest[where]
    manifest["files"][name] = {**manifest["files"][spec["file"]], "bytes": 1}
    spec["file"] = name
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(BundleError):
        Bundle.open(folder, verify=False)


STEP = GraphSpec("step", "step.onnx", (TensorSpec("x", "float32", (4,)),), (TensorSpec("y", "float32", (4,)),), ())


def with_external_weights(folder: Path, location: str) -> Path:
    """An ONNX file that adds four numbers which lie in another file."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        weights.external_data.add(key=key, value=value)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = folder / "step.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["{outside}", "../outside", "link", "folder/../../outside", "/proc/self/environ"])
def test_weights_of_a_graph_cannot_lie_outside(tmp_path: Path, location: str) -> None:
    folder, outside = tmp_path / "bundle", tmp_path / "outside"
    (folder / "folder").mkdir(parents=True)
    for path in (outside, folder / "inside"):
        path.write_bytes(np.ones(4, np.float32).tobytes())
    os.symlink(outside, folder / "link")
    backend = OrtBackend(threads=1)
    backend.load(STEP, with_external_weights(folder, "inside"))
    with pytest.raises(BundleError, match="cannot load"):
        backend.load(STEP, with_external_weights(folder, location.format(outside=outside)))


@shared
@given(data=damaged(st.just(b"")), start=st.integers(0, 200))
def test_graphs_of_damaged_bytes(tmp_path: Path, data: bytes, start: int) -> None:
    (tmp_path / "inside").write_bytes(np.ones(4, np.float32).tobytes())
    path = with_external_weights(tmp_path, "inside")
    content = path.read_bytes()
    path.write_bytes(content[:start] + data + content[start + len(data) :])
    with contextlib.suppress(BundleError):
        OrtBackend(threads=1).load(STEP, path)


@fuzz
@given(ids=st.lists(st.integers(-(2**66), 2**66) | st.integers(0, 70_000), max_size=8))
def test_token_ids(tokenizer: Tokenizer, ids: list[int]) -> None:
    assert isinstance(tokenizer.decode(ids), str)
    stream = tokenizer.stream()
    assert isinstance("".join(stream.feed(i) for i in ids) + stream.flush(), str)


nasty = st.text(st.characters() | st.sampled_from("\n\r\0\ufeff\u202e\ud800\udfff<>🙂"), max_size=40) | st.lists(
    st.sampled_from(["<image>", "\n\n", "User: ", "Assistant:", "", " ", "\x1b[2J"]), max_size=8
).map("".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("fuzz") / "bundle")


@shared
@given(questions=st.lists(nasty, min_size=1, max_size=3), shown=st.lists(st.booleans(), min_size=3, max_size=3))
def test_prompts(folder: Path, questions: list[str], shown: list[bool]) -> None:
    with fake_model(folder) as model:
        session = model.session()
        for number, question in enumerate(questions):
            try:
                answer = say(session, question, *([frame(number)] if shown[number] else []), max_tokens=3)
            except VisualRWKVError:
                continue
            assert "\n\n" not in answer
        assert session.tokens >= 0
        assert all(np.isfinite(a).all() for a in session.snapshot().state.arrays.values())


def test_a_very_long_prompt_is_fed_in_pieces(folder: Path) -> None:
    with fake_model(folder) as model:
        session = model.session()
        say(session, "why? " * 10_000, max_tokens=1)
        assert session.tokens > 50_000


anything = st.one_of(
    pictures,
    st.none(),
    st.text(max_size=3),
    st.integers(),
    st.tuples(),
    st.tuples(st.floats() | st.none() | st.text(max_size=3), st.just(frame(1)) | st.none()),
    st.builds(
        np.zeros, st.sampled_from([(), (3,), (0, 0, 3), (4, 5), (4, 5, 3), (4, 5, 2), (2, 2, 2, 2)]), st.just("u1")
    ),
)


@shared
@given(items=st.lists(anything, max_size=12))
def test_anything_a_camera_may_send(folder: Path, items: list[Any]) -> None:
    with fake_model(folder) as model:
        session, by_hand = model.session(), model.session()
        good = [
            p for p in (as_picture(i[1] if isinstance(i, tuple) and len(i) == 2 else i) for i in items) if p is not None
        ]
        with session.watch(items, policy="every") as watch:
            assert watch.wait(PATIENCE)
            assert watch.error is None
            assert (watch.stats.fed, watch.stats.corrupt) == (len(good), len(items) - len(good))
        for picture in good:
            by_hand.see(picture)
        assert bits(session) == bits(by_hand)
