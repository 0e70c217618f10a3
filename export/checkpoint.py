"""A checkpoint as named tensors: the main file and the vision files that complete it, under one set of names.

Nothing is interpreted here; `export.infer` tells what model the names make up.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import torch

from export.tensor_files import DTYPES, TensorFile, open_tensor_file
from export.vision_names import Kind, classify, tower_prefixes
from runtime.errors import CheckpointError

_HASH_CHUNK = 16 << 20


class Checkpoint:
    """Named tensors of a checkpoint, mapped from its files; a context manager.

    Attributes:
        path: the main file.
        shapes: shape by key, of the main file and the vision files.
        main_keys: the keys of the main file alone.
    """

    def __init__(self, path: Path, entries: dict[str, tuple[TensorFile, str]], main_keys: frozenset[str]) -> None:
        self.path, self.main_keys = path, main_keys
        self._entries = entries
        self.shapes = {key: file.shapes[stored] for key, (file, stored) in entries.items()}
        self.dtypes = {key: file.dtypes[stored] for key, (file, stored) in entries.items()}

    @classmethod
    def open(cls, path: Path, vision_files: Sequence[Path] = ()) -> Checkpoint:
        """Open `.pth` or `.safetensors` files; runs no code from them and does not read their weights yet.

        Args:
            path: the language model, or the whole VisualRWKV model.
            vision_files: towers the checkpoint lacks, in timm, Hugging Face or original SAM naming.

        Raises:
            CheckpointError: a file is missing, damaged, holds code or unsupported values, is no known tower,
                or brings a tensor that the checkpoint already has.
        """
        path = Path(path)
        main = open_tensor_file(path)
        entries = {_current(key): (main, key) for key in main.shapes}
        files = {str(name): open_tensor_file(Path(name)) for name in vision_files}
        kinds: dict[str, Kind] = {}
        names: dict[str, dict[str, str]] = {}
        for name, file in files.items():
            kinds[name], names[name] = classify(file.shapes, name)
        prefixes = tower_prefixes(kinds, entries)
        for name, file in files.items():
            prefix = prefixes[kinds[name]]
            added = {_current(prefix + new): (file, stored) for stored, new in names[name].items()}
            clash = sorted(set(added) & set(entries)) or sorted(_same_tower(added, entries))
            if clash:
                raise CheckpointError(
                    f"{name} brings {clash[0]}, which {path.name} or another vision file already has",
                    wanted="each tower once",
                    hint="leave this --vision file out",
                )
            entries.update(added)
        return cls(path, entries, frozenset(map(_current, main.shapes)))

    @property
    def name(self) -> str:
        """File name of the main file."""
        return self.path.name

    @property
    def stored_dtypes(self) -> tuple[str, ...]:
        """Names of the dtypes in the main file, e.g. ("bfloat16",)."""
        return tuple(sorted({DTYPES[self.dtypes[key]] for key in self.main_keys}))

    def tensor(self, key: str) -> torch.Tensor:
        """Return a tensor in its stored dtype and layout, mapped and read-only by convention."""
        if key not in self._entries:
            raise CheckpointError(f"{self.name} has no tensor {key}", wanted=f"one of its {len(self._entries)} tensors")
        file, stored = self._entries[key]
        return file.tensor(stored)

    def sha256(self, progress: Callable[[int, int], None] | None = None) -> str:
        """Return the main file's hex digest; calls `progress(bytes done, bytes in all)` as it is read."""
        digest, done, total = hashlib.sha256(), 0, self.path.stat().st_size
        with self.path.open("rb") as file:
            while chunk := file.read(_HASH_CHUNK):
                digest.update(chunk)
                done += len(chunk)
                if progress:
                    progress(done, total)
        return digest.hexdigest()

    def close(self) -> None:
        """Let go of the mapped files; tensors handed out stay valid."""
        self._entries = {}

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _current(key: str) -> str:
    """Give a model saved under transformers 5, which dropped `vision_model.`, its official names."""
    return re.sub(r"^vit\.(embeddings|encoder|pre_layrnorm|post_layernorm|head)\.", r"vit.vision_model.\1.", key)


def _same_tower(added: dict[str, tuple[TensorFile, str]], have: dict[str, tuple[TensorFile, str]]) -> set[str]:
    """Keys of `added` whose tower `have` already holds under another naming."""
    towers = {_tower(key) for key in have} - {""}
    return {key for key in added if _tower(key) in towers}


def _tower(key: str) -> str:
    return ".".join(key.split(".")[:2]) if key.startswith("vit.") else ""
