"""Checkpoint -> bundle: trace, rewrite to the precision, write, describe, verify; all or nothing.

Everything is written into a hidden folder beside the destination and renamed at the very end, so an error, a full disk
or Ctrl-C leaves no half-written bundle.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx_ir as ir

from export.arch.language import embedding_sources, embedding_table
from export.archspec import ArchSpec
from export.checkpoint import Checkpoint
from export.config import ExportConfig
from export.describe import prompt_spec, vision_spec
from export.graphs import Graph, graphs
from export.infer import infer
from export.models import language_model
from export.targets import ARCHITECTURES, Compiler, check_target, with_engines
from export.trace import custom_ops, fill, finish
from export.verify import Parity, verify
from export.vocabulary import stop_ids, vocabulary_file
from export.warm import bake
from export.weights import WeightSource, load_weight
from quant.apply import quantise
from quant.conversation import QUESTIONS, Gallery
from quant.folder import destination, scratch
from quant.forms import rewrite
from quant.gate import Quality, gate, keep
from quant.graph import Rounding, round_plainly
from quant.limits import LIMITS
from quant.moments import calibrated, collect
from quant.pictures import drawn, find_pictures, questions_of
from quant.recipe import RECIPES, Recipe
from quant.task import read_task
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

EMBEDDING_FILE, VOCABULARY_FILE = "embedding.bin", "vocab.txt"
DRAWN = 8  # pictures that are drawn for the comparison where there are none to calibrate on

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total); total 0 where the length of a stage is not known."""


@dataclass(frozen=True)
class Report:
    """What an export gives back."""

    bundle: Bundle
    spec: ArchSpec
    parity: Parity  # with torch
    quality: Quality | None = None  # of a quantised bundle, against its float model


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
    architectures: tuple[str, ...] = ARCHITECTURES,
    calibrate: str | None = None,
    drift: int | None = None,
    task: Path | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Report:
    """Export a checkpoint to a verified bundle.

    Args:
        checkpoint_path: an official .pth or .safetensors file.
        out: the bundle folder to create; it must not exist, or be empty.
        precision: "fp32", "fp16", "int8" or "int4".
        target: a name of `export.targets.TARGETS`.
        config: what tensors cannot tell.
        vision_files: vision towers kept in files of their own.
        overwrite: replace a bundle that is already in `out`.
        architectures: of the engines that target "rtx" brings along.
        system_prompt: text that every session of the bundle begins after, baked into it as a state.
        calibrate: pictures that int8 and int4 are fitted to: a folder, a video file or a camera's number.
        drift: how many tokens of one conversation int8 and int4 are compared with the float model over (default: by
            size, `quant.gate.default_drift`); 0 leaves the comparison out, and with it the float copy it needs.
        task: questions with right answers, compared too (`quant.task`).
        progress: called as the work goes on.

    Raises:
        CheckpointError, ConfigError: the input is not a model this SDK knows.
        InputError: pictures to calibrate on, or the task, cannot be used.
        ExportError: the folder or disk cannot take the bundle.
        ParityError: the bundle does not reproduce the checkpoint, or lost too much of the float model.
    """
    if precision not in RECIPES:
        raise ConfigError(f"precision {precision!r}", wanted=" or ".join(RECIPES))
    check_target(target)
    config, recipe = config or ExportConfig(), RECIPES[precision]
    fit = _Fit(calibrate, drift, task) if precision in LIMITS else None
    if fit is None and (calibrate or task):
        raise ConfigError(f"--calibrate or --task with {precision}", wanted="int8 or int4: float weights lose nothing")
    compiler = Compiler.find(architectures) if target == "rtx" else None
    with Checkpoint.open(checkpoint_path, vision_files) as checkpoint:
        spec = infer(checkpoint, config)
        with destination(out, overwrite) as folder, scratch(out, "float") as floats:
            copied = fit is not None and fit.needs_floats
            _check_space(checkpoint, folder, 5 if copied else 1)
            writer = _Writer(checkpoint, spec, config, RECIPES["fp32"] if copied else recipe, progress)
            exact = Bundle(floats, writer.write(floats, name=out.name, target=target)) if copied else None
            if fit is not None and exact is not None:
                bundle = fit.quantise(exact, folder, recipe, progress)
            else:
                bundle = Bundle(folder, writer.write(folder, name=out.name, target=target))
            parity = verify(checkpoint, spec, bundle, progress=progress)
            quality = None
            if fit is not None and exact is not None and fit.drift != 0:
                quality = fit.judge(exact, bundle, progress)
                bundle = keep(bundle, quality)
            if system_prompt:
                progress("bake the system prompt", 0, 0)
                bundle = bake(bundle, system_prompt)
            if compiler is not None:
                bundle = with_engines(bundle, compiler, architectures, progress)
    return Report(Bundle(out, bundle.manifest), spec, parity, quality)


class _Fit:
    """What makes a float bundle smaller, and says what that cost."""

    def __init__(self, calibrate: str | None, drift: int | None, task: Path | None) -> None:
        """Look at pictures and task before anything takes long."""
        self.drift = drift
        self._calibrate = calibrate is not None
        self._gallery: Gallery = drawn(DRAWN) if calibrate is None else find_pictures(calibrate)
        self._questions = (questions_of(calibrate) if calibrate else ()) or QUESTIONS
        self._task = read_task(task) if task else None

    @property
    def needs_floats(self) -> bool:
        """Whether the float bundle is needed on disk."""
        return self._calibrate or self.drift != 0

    def quantise(self, exact: Bundle, folder: Path, recipe: Recipe, progress: Progress) -> Bundle:
        """Write the quantised bundle; calibrated, if there are pictures."""
        rounding: Rounding = round_plainly
        if self._calibrate:
            moments = collect(exact, recipe, self._gallery, questions=self._questions, progress=progress)
            rounding = calibrated(moments)
        return quantise(exact, folder, recipe, name=exact.manifest.name, rounding=rounding, progress=progress)

    def judge(self, exact: Bundle, bundle: Bundle, progress: Progress) -> Quality:
        """Compare the two; raises `ParityError`."""
        return gate(exact, bundle, self._gallery, drift=self.drift, task=self._task, progress=progress)


class _Writer:
    """Writes the files of one bundle."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        spec: ArchSpec,
        config: ExportConfig,
        recipe: Recipe,
        progress: Progress,
    ) -> None:
        self.checkpoint, self.spec, self.config = checkpoint, spec, config
        self.recipe, self.progress = recipe, progress
        self.rules: list[PrecisionRule] = []

    def write(self, folder: Path, name: str, target: str) -> Manifest:
        self.folder, self.target = folder, target
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
        self.rules += rewrite(model, self.recipe, self.target)
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


def _check_space(checkpoint: Checkpoint, folder: Path, bytes_each: int) -> None:
    """Refuse before the work starts when even the smallest bundle, and the float copy it needs, could not fit."""
    needed = bytes_each * sum(int(np.prod(shape)) for shape in checkpoint.shapes.values())
    free = shutil.disk_usage(folder).free
    if free < needed:
        smaller = ", or --drift 0, which needs no float copy" if bytes_each > 1 else ""
        raise ExportError(
            f"{free / 1e9:.2f} GB free on the disk of {folder.parent}",
            wanted=f"at least {needed / 1e9:.2f} GB",
            hint=f"free some space, or choose another --out{smaller}",
        )
