"""Opening a bundle: a folder whose manifest declares every file, its size and its digest.

Nothing in a bundle is executed. A file is used only if the manifest lists it, its name is a plain one inside the
folder, and its size and (unless `verify=False`) SHA-256 are the declared ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.errors import BundleError
from runtime.onnxfile import external_files
from runtime.spec import MANIFEST_FILE, EmbeddingSpec, FileSpec, Manifest

_MANIFEST_LIMIT = 16 << 20  # bytes; a manifest is a few kilobytes
_EXPORT_AGAIN = "copy the bundle again, or export it again"


def sha256_file(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Return the hex SHA-256 of a file, read in 4 MiB pieces; `progress` receives each piece's length in bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(4 << 20):
            digest.update(piece)
            if progress:
                progress(len(piece))
    return digest.hexdigest()


def fingerprint(files: Mapping[str, FileSpec]) -> str:
    """Return the identity of a model: a digest over the names and digests of all files of its bundle."""
    text = "\n".join(f"{name} {files[name].sha256}" for name in sorted(files))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Bundle:
    """An opened, checked bundle."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Bundle:
        """Open and check a bundle folder.

        Args:
            path: the folder.
            verify: also compare every file's SHA-256, which reads the whole bundle once.

        Raises:
            BundleError: no such folder, or a file is missing, altered, or outside the folder.
            SchemaError: the manifest is malformed, or of another schema version.
        """
        root = Path(path)
        manifest_path = root / MANIFEST_FILE
        if not manifest_path.is_file():
            what = "has no manifest.json" if root.is_dir() else "is not a folder"
            raise BundleError(f"{root} {what}", wanted="a bundle folder", hint=f"python -m export --out {root}")
        if manifest_path.stat().st_size > _MANIFEST_LIMIT:
            raise BundleError(f"{manifest_path} is larger than {_MANIFEST_LIMIT} bytes", hint=_EXPORT_AGAIN)
        try:
            manifest = Manifest.from_json(manifest_path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{manifest_path} cannot be read: {error}", hint=_EXPORT_AGAIN) from error
        bundle = cls(root, manifest)
        bundle._check_names()
        for name, declared in manifest.files.items():
            _check_file(root, name, declared, verify=verify)
        bundle._check_weights()
        if fingerprint(manifest.files) != manifest.fingerprint:
            raise BundleError(
                f"{manifest_path} was edited: its fingerprint does not match its files", hint=_EXPORT_AGAIN
            )
        return bundle

    def file(self, name: str) -> Path:
        """Return the path of a declared file."""
        return self.path / name

    def embedding_table(self) -> np.ndarray:
        """Return the embedding table [rows, width], memory-mapped and read-only."""
        spec = self.manifest.embedding
        return np.memmap(self.file(spec.file), dtype=spec.dtype, mode="r", shape=(spec.rows, spec.width))

    def _check_names(self) -> None:
        manifest = self.manifest
        used = [manifest.embedding.file, manifest.tokenizer.file, *(graph.file for graph in manifest.graphs)]
        used += [manifest.warm.file] if manifest.warm else []
        for name in used:
            if name not in manifest.files:
                raise BundleError(f"{MANIFEST_FILE} uses {name!r} but does not list it in files", hint=_EXPORT_AGAIN)
        size = _table_bytes(manifest.embedding)
        if manifest.files[manifest.embedding.file].bytes != size:
            raise BundleError(
                f"{manifest.embedding.file} is declared with {manifest.files[manifest.embedding.file].bytes} bytes",
                wanted=f"{size} bytes for {manifest.embedding.rows} x {manifest.embedding.width}",
                hint=_EXPORT_AGAIN,
            )

    def _check_weights(self) -> None:
        """Whatever a graph reads beside its own file must have been listed, and so checked."""
        for graph in self.manifest.graphs:
            for name in sorted(external_files(self.file(graph.file)) - set(self.manifest.files)):
                raise BundleError(
                    f"{graph.file} reads {name!r}, which {MANIFEST_FILE} does not list",
                    wanted="weights in files of the bundle",
                    hint=_EXPORT_AGAIN,
                )


def _table_bytes(spec: EmbeddingSpec) -> int:
    return spec.rows * spec.width * np.dtype(spec.dtype).itemsize


def _check_file(root: Path, name: str, declared: FileSpec, *, verify: bool) -> None:
    if not name or Path(name).name != name or "\\" in name or name in (".", "..") or "\0" in name:
        raise BundleError(f"{MANIFEST_FILE} lists {name!r}", wanted="plain file names inside the bundle")
    path = root / name
    if path.is_symlink() and path.resolve().parent != root.resolve():
        raise BundleError(f"{path} is a link to outside the bundle", wanted="a file of the bundle", hint=_EXPORT_AGAIN)
    if not path.is_file():
        raise BundleError(f"{path} is missing", wanted=f"{declared.bytes} bytes", hint=_EXPORT_AGAIN)
    size = path.stat().st_size
    if size != declared.bytes:
        raise BundleError(f"{path} has {size} bytes", wanted=f"{declared.bytes} bytes", hint=_EXPORT_AGAIN)
    if verify:
        found = sha256_file(path)
        if found != declared.sha256:
            raise BundleError(f"{path} has SHA-256 {found}", wanted=declared.sha256, hint=_EXPORT_AGAIN)
