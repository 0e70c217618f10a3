"""Bundles: what is accepted, and the one clear error for everything else."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import GraphProto, ModelProto, TensorProto

from runtime.bundle import Bundle, fingerprint, sha256_file
from runtime.errors import BundleError, SchemaError, VisualRWKVError
from runtime.spec import MANIFEST_FILE, SCHEMA_VERSION, FileSpec, Manifest
from tests.runtime.fake_bundle import write_fake_bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_fake_bundle(tmp_path / "bundle")


def edit(folder: Path, **changes: Any) -> None:
    path = folder / MANIFEST_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_manifest_survives_its_json(folder: Path) -> None:
    manifest = Bundle.open(folder).manifest
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_embedding_table_is_mapped(folder: Path) -> None:
    bundle = Bundle.open(folder)
    table = bundle.embedding_table()
    assert table.shape == (bundle.manifest.embedding.rows, bundle.manifest.width)
    assert not table.flags.writeable


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="python -m export"):
        Bundle.open(tmp_path / "nothing")
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        Bundle.open(tmp_path)


def test_newer_schema(folder: Path) -> None:
    edit(folder, schema=SCHEMA_VERSION + 1)
    with pytest.raises(SchemaError, match="upgrade"):
        Bundle.open(folder)


@pytest.mark.parametrize("change", [{"surprise": 1}, {"width": "8"}, {"slots": {}}, {"vision": 3}, {"embedding": []}])
def test_malformed_manifest(folder: Path, change: dict[str, Any]) -> None:
    edit(folder, **change)
    with pytest.raises(SchemaError, match=next(iter(change))):
        Bundle.open(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass")])
def test_not_a_manifest_at_all(folder: Path, text: str | bytes) -> None:
    (folder / MANIFEST_FILE).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BundleError):
        Bundle.open(folder)


@pytest.mark.parametrize("name", ["step.onnx", "embedding.bin", "vocab.txt"])
def test_altered_files(folder: Path, name: str) -> None:
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match="SHA-256"):
        Bundle.open(folder)
    Bundle.open(folder, verify=False)
    path.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=f"{name} has {len(content) - 1} bytes"):
        Bundle.open(folder, verify=False)
    path.unlink()
    with pytest.raises(BundleError, match="missing"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/b", "..", ".", "", "a\\b", "a\0b"])
def test_no_way_out_of_the_folder(folder: Path, name: str) -> None:
    files = json.loads((folder / MANIFEST_FILE).read_text())["files"]
    edit(folder, files={**files, name: {"bytes": 1, "sha256": "0" * 64}})
    with pytest.raises(BundleError):
        Bundle.open(folder)


def test_a_link_to_outside_is_refused(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (folder / "vocab.txt").rename(outside)
    os.symlink(outside, folder / "vocab.txt")
    with pytest.raises(BundleError, match="link"):
        Bundle.open(folder)


def test_files_swapped_in_both_places(folder: Path) -> None:
    """Somebody replaces a file and its digest: the fingerprint still tells."""
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["files"]["vocab.txt"] = {**manifest["files"]["vocab.txt"], "sha256": "0" * 64}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="fingerprint"):
        Bundle.open(folder, verify=False)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(data=st.data())
def test_a_mutated_manifest_is_refused_or_harmless(folder: Path, data: st.DataObject) -> None:
    """Whatever one value of the manifest becomes, opening gives a bundle or one of our errors."""
    path = folder / MANIFEST_FILE
    original = path.read_text()
    manifest = json.loads(original)
    node, key = manifest, data.draw(st.sampled_from(sorted(manifest)))
    while isinstance(node[key], (dict, list)) and node[key] and data.draw(st.booleans()):
        node = node[key]
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
    node[key] = data.draw(
        st.one_of(st.none(), st.integers(-3, 2**70), st.text(max_size=6), st.just([]), st.just({}), st.floats())
    )
    path.write_text(json.dumps(manifest))
    try:
        Bundle.open(folder)
    except VisualRWKVError:
        pass
    finally:
        path.write_text(original)


def test_weights_that_the_manifest_does_not_list_are_refused(folder: Path) -> None:
    outside = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="elsewhere.bin")
    graph = folder / Bundle.open(folder).manifest.graphs[0].file
    graph.write_bytes(ModelProto(ir_version=9, graph=GraphProto(initializer=[outside])).SerializeToString())
    (folder / "elsewhere.bin").write_bytes(b"1234")
    rewrite_digests(folder)
    with pytest.raises(BundleError, match=r"reads 'elsewhere\.bin', which manifest\.json does not list"):
        Bundle.open(folder)


def rewrite_digests(folder: Path) -> None:
    """Make the manifest fit its files again, as somebody who means harm would."""
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    files = {name: FileSpec((folder / name).stat().st_size, sha256_file(folder / name)) for name in manifest["files"]}
    edit(folder, files={name: asdict(spec) for name, spec in files.items()}, fingerprint=fingerprint(files))
