"""Checkpoint -> bundle: trace, rewrite to the precision, write, describe, verify; all or nothing.

Everything is written into a hidden folder beside the destination and renamed at the very end, so an error, a full disk
or Ctrl-C leaves no half-written bundle.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx_ir as ir

import quant.graph
from export.arch.language import embedding_sources, embedding_table
from export.archspec import ArchSpec
from export.checkpoint import Checkpoint
from export.config import ExportConfig
from export.describe import prompt_spec, vision_spec
from export.graphs import Graph, graphs
from export.infer import infer
from export.models import language_model
from export.trace import custom_ops, fill, finish
from export.verify import Parity, verify
from export.vocabulary import stop_ids, vocabulary_file
from export.warm import bake
from export.weights import WeightSource, load_weight
from quant.recipe import RECIPES, Recipe
from runtime.bundle import Bundle, fingerprint, sha256_file
from runtime.errors import ConfigError, ExportError
from runtime.spec import (
    MANIFEST_FILE,
    SCHEMA_VERSION,
    Budget,
    EmbeddingSpec,
    FileSpec,
    GraphSpec,
    Manifest,
    PrecisionRule,
    Provenance,
    TokenizerSpec,
)

TARGETS = ("cpu",)
EMBEDDING_FILE, VOCABULARY_FILE = "embedding.bin", "vocab.txt"

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total); total 0 where the length of a stage is not known."""


@dataclass(frozen=True)
class Report:
    """What an export gives back."""

    bundle: Bundle
    spec: ArchSpec
    parity: Parity


def export_bundle(
    checkpoint_path: Path,
    out: Path,
    *,
    precision: str = "fp32",
    target: str = "cpu",
    config: ExportConfig | None = None,
    vision_files: tuple[Path, ...] = (),
    overwrite: bool = False,
    system_prompt: str = "",
    progress: Progress = lambda stage, done, total: None,
) -> Report:
    """Export a checkpoint to a verified bundle.

    Args:
        checkpoint_path: an official .pth or .safetensors file.
        out: the bundle folder to create; it must not exist, or be empty.
        precision: "fp32", "fp16", "int8" or "int4".
        target: "cpu".
        config: what tensors cannot tell.
        vision_files: vision towers kept in files of their own.
        overwrite: replace a bundle that is already in `out`.
        system_prompt: text that every session of the bundle begins after, baked into it as a state.
        progress: called as the work goes on.

    Raises:
        CheckpointError, ConfigError: the input is not a model this SDK knows.
        ExportError: the folder or disk cannot take the bundle.
        ParityError: the bundle does not reproduce the checkpoint.
    """
    if precision not in RECIPES:
        raise ConfigError(f"precision {precision!r}", wanted=" or ".join(RECIPES))
    if target not in TARGETS:
        raise ConfigError(f"target {target!r}", wanted=" or ".join(TARGETS))
    config = config or ExportConfig()
    with Checkpoint.open(checkpoint_path, vision_files) as checkpoint:
        spec = infer(checkpoint, config)
        with _destination(out, overwrite) as folder:
            _check_space(checkpoint, folder)
            writer = _Writer(checkpoint, spec, config, RECIPES[precision], folder, progress)
            manifest = writer.write(name=out.name, target=target)
            bundle = Bundle(folder, manifest)
            parity = verify(checkpoint, spec, bundle, progress=progress)
            if system_prompt:
                progress("bake the system prompt", 0, 0)
                bundle = bake(bundle, system_prompt)
    return Report(Bundle(out, bundle.manifest), spec, parity)


class _Writer:
    """Writes the files of one bundle."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        spec: ArchSpec,
        config: ExportConfig,
        recipe: Recipe,
        folder: Path,
        progress: Progress,
    ) -> None:
        self.checkpoint, self.spec, self.config = checkpoint, spec, config
        self.recipe, self.folder, self.progress = recipe, folder, progress
        self.rules: list[PrecisionRule] = []

    def write(self, name: str, target: str) -> Manifest:
        described = {graph.name: self._graph(graph) for graph in graphs(self.spec)}
        embedding = self._embedding()
        vocabulary = vocabulary_file(self.config)
        shutil.copyfile(vocabulary, self.folder / VOCABULARY_FILE)
        files = {path.name: FileSpec(path.stat().st_size, sha256_file(path)) for path in sorted(self.folder.iterdir())}
        slots = language_model(self.spec).slots
        manifest = Manifest(
            schema=SCHEMA_VERSION,
            name=name,
            family=f"{self.spec.family} {self.spec.version}",
            target=target,
            precision=self.recipe.name,
            fingerprint=fingerprint(files),
            vocab_size=self.spec.vocab_size,
            width=self.spec.n_embd,
            slots=slots,
            graphs=tuple(described.values()),
            embedding=embedding,
            vision=vision_spec(self.spec),
            prompt=prompt_spec(self.spec),
            tokenizer=TokenizerSpec(
                VOCABULARY_FILE,
                stop_ids(self.spec, vocabulary),
                self.spec.image_token_id if self.spec.has_vision else None,
                stop_ids(self.spec, vocabulary)[0],
                self.spec.padding,
            ),
            precision_map=tuple(self.rules),
            budget=Budget(
                weights=_size(files, "step"),
                vision=sum(_size(files, name) for name in ("vision", "context", "compressor")),
                embedding_table=files[EMBEDDING_FILE].bytes,
                state_per_session=2 * sum(4 * int(np.prod(slot.resolve(1))) for slot in slots),
            ),
            provenance=Provenance(
                f"visualrwkv-edge {_version()}",
                self.checkpoint.name,
                self.checkpoint.sha256(progress=lambda done, total: self.progress("hash source", done, total)),
            ),
            files=files,
        )
        (self.folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
        return manifest

    def _graph(self, graph: Graph) -> GraphSpec:
        self.progress(f"trace {graph.name}", 0, 0)
        model = graph.trace()
        self._save(graph.name, model, graph.module.sources())
        return GraphSpec(graph.name, f"{graph.name}.onnx", graph.inputs, graph.outputs, custom_ops(model))

    def _save(self, name: str, model: ir.Model, sources: dict[str, WeightSource]) -> None:
        fill(model, lambda parameter: load_weight(self.checkpoint, sources[parameter]).numpy())
        finish(model)
        self.rules += quant.graph.apply(model, self.recipe)
        total, done = sum(tensor.nbytes for tensor in _tensors(model)), 0

        def count(tensor: ir.TensorProtocol, info: object) -> None:
            nonlocal done
            done += tensor.nbytes
            self.progress(f"write {name} weights", done, max(done, total))

        ir.save(
            model,
            self.folder / f"{name}.onnx",
            external_data=f"{name}.onnx.data",
            callback=count,
            alignment=4096,
        )

    def _embedding(self) -> EmbeddingSpec:
        dtype = self.recipe.embedding
        rows = 0
        with (self.folder / EMBEDDING_FILE).open("wb") as file:
            for chunk in embedding_table(self.checkpoint, self.spec):
                file.write(chunk.numpy().astype(dtype).tobytes())
                rows += len(chunk)
                self.progress("write embedding table", rows, self.spec.vocab_size)
            zero_row = rows if prompt_spec(self.spec).text_only == "zero_block" else None
            if zero_row is not None:  # the norm of a zero vector is its bias
                bias = load_weight(self.checkpoint, embedding_sources(self.spec)["ln0_bias"])
                file.write(bias.numpy().astype(dtype).tobytes())
                rows += 1
        return EmbeddingSpec(EMBEDDING_FILE, dtype, rows, self.spec.n_embd, zero_row)


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            yield value.const_value


def _size(files: dict[str, FileSpec], graph: str) -> int:
    return sum(spec.bytes for name, spec in files.items() if name.startswith(f"{graph}.onnx"))


def _version() -> str:
    try:
        return metadata.version("visualrwkv-edge")
    except metadata.PackageNotFoundError:
        return "(not installed)"


@contextmanager
def _destination(out: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a folder to write into, which becomes `out` if nothing goes wrong and disappears otherwise."""
    taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if taken and not (overwrite and (out / MANIFEST_FILE).is_file()):
        what = "is not a bundle" if overwrite else "exists and is not an empty folder"
        raise ExportError(f"{out} {what}", hint="choose another --out, or --overwrite a bundle")
    folder = out.parent / f".{out.name}.partial-{os.getpid()}"
    old = folder.with_name(f"{folder.name}-old")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ExportError(f"{out.parent} cannot be written: {error.strerror}", hint="choose another --out") from error
    try:
        yield folder
        if out.exists():
            out.rename(old)
        folder.rename(out)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ExportError(
                f"the disk of {out.parent} is full", hint="free some space, or choose another --out"
            ) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _check_space(checkpoint: Checkpoint, folder: Path) -> None:
    """Refuse before the work starts when even the smallest bundle could not fit."""
    elements = sum(int(np.prod(shape)) for shape in checkpoint.shapes.values())
    free = shutil.disk_usage(folder).free
    if free < elements:
        raise ExportError(
            f"{free / 1e9:.2f} GB free on the disk of {folder.parent}",
            wanted=f"at least {elements / 1e9:.2f} GB",
            hint="free some space, or choose another --out",
        )
