"""A float bundle -> a quantised bundle: the same files but for the weights that the recipe names. No torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from quant.forms import rewrite
from quant.graph import Rounding, round_plainly
from quant.recipe import Recipe
from runtime.bundle import Bundle, fingerprint, sha256_file
from runtime.errors import BundleError
from runtime.spec import MANIFEST_FILE, FileSpec, Manifest, PrecisionRule

Progress = Callable[[str, int, int], None]
_DOMAIN = "vrwkv"
_ROWS = 4096  # of the embedding table at once


def quantise(
    source: Bundle,
    folder: Path,
    recipe: Recipe,
    *,
    name: str,
    rounding: Rounding = round_plainly,
    progress: Progress = lambda stage, done, total: None,
) -> Bundle:
    """Write a quantised bundle into an empty folder.

    Args:
        source: a float32 bundle.
        folder: where to write; it exists and is empty (`quant.folder.destination`).
        recipe: which weight gets which format.
        name: of the new bundle.
        rounding: how a matrix is rounded (`quant.moments.calibrated`, or plainly).
        progress: called with (stage, bytes done, bytes in all).

    Raises:
        BundleError: the bundle is not in float32.
        CheckpointError: a weight is NaN, Inf or too large.
    """
    manifest = source.manifest
    if manifest.precision != "fp32":
        raise BundleError(
            f"{source.path} is in {manifest.precision} already",
            wanted="a bundle in fp32",
            hint="python -m export CHECKPOINT --fp32, and quantise that",
        )
    rules: list[PrecisionRule] = []
    graphs, done = [], set()
    for graph in manifest.graphs:
        chosen = rounding if graph.name == "step" else round_plainly
        groups, ops = _rewrite(source, folder, graph.file, recipe, chosen, progress)
        rules += groups
        graphs.append(replace(graph, custom_ops=ops))
        done |= {graph.file, f"{graph.file}.data"}
    manifest = replace(manifest, graphs=tuple(graphs))
    if recipe.embedding != manifest.embedding.dtype:
        _convert_table(source, folder, recipe.embedding, progress)
        done.add(manifest.embedding.file)
    for file in set(manifest.files) - done:
        shutil.copyfile(source.file(file), folder / file)
    files = {path.name: FileSpec(path.stat().st_size, sha256_file(path)) for path in sorted(folder.iterdir())}
    return save(Bundle(folder, _described(manifest, recipe, tuple(rules), files, name)))


def save(bundle: Bundle) -> Bundle:
    """Write the manifest of a bundle."""
    bundle.file(MANIFEST_FILE).write_text(bundle.manifest.to_json(), encoding="utf-8")
    return bundle


def with_file(bundle: Bundle, name: str) -> Bundle:
    """List one more file, which lies in the bundle's folder already, and write the manifest."""
    path = bundle.file(name)
    files = {**bundle.manifest.files, name: FileSpec(path.stat().st_size, sha256_file(path))}
    files = {key: files[key] for key in sorted(files)}
    return save(Bundle(bundle.path, replace(bundle.manifest, files=files, fingerprint=fingerprint(files))))


def _rewrite(
    source: Bundle, folder: Path, file: str, recipe: Recipe, rounding: Rounding, progress: Progress
) -> tuple[tuple[PrecisionRule, ...], tuple[str, ...]]:
    """Write one graph; return its groups of weights, and which operators of ours it uses."""
    model = ir.load(source.file(file))
    before = len(model.graph)
    rules = rewrite(model, recipe, source.manifest.target, rounding)
    ours = {node.op_type for node in ir.traversal.RecursiveGraphIterator(model.graph) if node.domain == _DOMAIN}
    ops = tuple(f"{_DOMAIN}::{name}" for name in sorted(ours))
    if all(rule.format == "float32" for rule in rules) and len(model.graph) == before:  # nothing was rewritten
        for name in (file, f"{file}.data"):
            if name in source.manifest.files:
                shutil.copyfile(source.file(name), folder / name)
        return rules, ops
    tensors = [value.const_value for value in model.graph.initializers.values()]
    total, done = sum(tensor.nbytes for tensor in tensors if tensor is not None), 0

    def count(tensor: ir.TensorProtocol, info: object) -> None:
        nonlocal done
        done += tensor.nbytes
        progress(f"write {Path(file).stem} weights", done, max(done, total))

    ir.save(model, folder / file, external_data=f"{file}.data", callback=count, alignment=4096)
    return rules, ops


def _convert_table(source: Bundle, folder: Path, dtype: str, progress: Progress) -> None:
    table = source.embedding_table()
    with (folder / source.manifest.embedding.file).open("wb") as file:
        for start in range(0, len(table), _ROWS):
            file.write(np.asarray(table[start : start + _ROWS]).astype(dtype).tobytes())
            progress("write embedding table", min(start + _ROWS, len(table)), len(table))


def _described(
    manifest: Manifest, recipe: Recipe, rules: tuple[PrecisionRule, ...], files: dict[str, FileSpec], name: str
) -> Manifest:
    def size(graph: str) -> int:
        return sum(spec.bytes for file, spec in files.items() if file.startswith(f"{graph}.onnx"))

    return replace(
        manifest,
        name=name,
        precision=recipe.name,
        fingerprint=fingerprint(files),
        embedding=replace(manifest.embedding, dtype=recipe.embedding),
        precision_map=rules,
        budget=replace(
            manifest.budget,
            weights=size("step"),
            vision=sum(size(graph) for graph in ("vision", "context", "compressor")),
            embedding_table=files[manifest.embedding.file].bytes,
        ),
        files=files,
    )
