"""Step graphs of any RWKV-7 size with random weights, made by the exporter itself: traced, optimised, rewritten, saved.

No checkpoint is written: a weight is made when the file is, so 1.5B takes no more memory than its largest matrix.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import ml_dtypes  # noqa: F401  numpy learns "int4"
import numpy as np
import onnx_ir as ir

from export.archspec import ArchSpec
from export.graphs import graphs
from export.trace import custom_ops, fill, finish
from quant.forms import rewrite
from quant.recipe import RECIPES
from runtime.spec import GraphSpec

_POOL = np.random.default_rng(7).standard_normal(1 << 22).astype(np.float32)


def text_model(layers: int, width: int, vocabulary: int) -> ArchSpec:
    """Return an RWKV-7 without a tower; ranks are those of the released 1.5B."""
    ranks = {"w": 96, "a": 96, "v": 64 if layers > 1 else 0, "g": 256}
    return ArchSpec(
        family="rwkv7", version="text", prefix="", n_layer=layers, n_embd=width, n_head=width // 64, head_size=64,
        dim_ffn=4 * width, vocab_size=vocabulary, ranks=ranks, tower=None, projector=None, num_token_per_image=0,
        image_token_id=None, stop_token_id=0, padding="none",
    )  # fmt: skip


def write_step(spec: ArchSpec, path: Path, *, seed: int = 0) -> GraphSpec:
    """Write the float32 step graph of a model with random weights, as the exporter makes it, unless it is there."""
    graph = graphs(spec)[0]
    described = GraphSpec("step", path.name, graph.inputs, graph.outputs, ("vrwkv::WKV7",))
    if path.exists():
        return described
    model = graph.trace()
    shapes = {name: source.shape for name, source in graph.module.sources().items()}
    fill(model, _random(shapes, seed))
    finish(model)
    assert custom_ops(model) == described.custom_ops
    _save(model, path)
    return described


def rewrite_step(source: Path, path: Path, precision: str, target: str) -> None:
    """Write a float32 graph again as a bundle of that precision and target holds it."""
    model = ir.load(source)
    rewrite(model, RECIPES[precision], target)
    _save(model, path)


def our_nodes(path: Path) -> Counter[str]:
    """Return how many nodes of our operators an ONNX file has, by type."""
    return Counter(node.op_type for node in ir.load(path).graph if node.domain == "vrwkv")


def matrices(path: Path) -> dict[str, Counter[int]]:
    """Return how many matrices of an ONNX file are codes ("int8", "int4") and floats, by their count of numbers."""
    found: dict[str, Counter[int]] = {"int8": Counter(), "int4": Counter(), "float": Counter()}
    for value in ir.load(path).graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        kind = tensor.dtype.name.lower()
        if len(tensor.shape) == 2:
            found[kind if kind in found else "float"][tensor.size] += 1
    return found


def _save(model: ir.Model, path: Path) -> None:
    ir.save(model, path, external_data=f"{path.name}.data", alignment=4096)


def _random(shapes: dict[str, tuple[int, ...]], seed: int) -> Callable[[str], np.ndarray]:
    def load(name: str) -> np.ndarray:
        shape = shapes[name]
        start = zlib.crc32(f"{seed} {name}".encode()) % len(_POOL)
        values = np.resize(np.concatenate([_POOL[start:], _POOL[:start]]), shape)
        last = name.rsplit(".", 1)[-1]
        if last.endswith("_weight") or last in ("k_k", "k_a"):
            return np.asarray(1 + 0.1 * values)
        if last.endswith("_bias") or last == "r_k":
            return np.asarray(0.1 * values)
        if len(shape) == 2 and shape[0] > 1:
            # What a layer writes into the residual stream is kept small, as training does: random layers otherwise
            # multiply every rounding.
            written = 0.2 if last in ("output", "value") else 1.0
            return np.asarray(written * shape[0] ** -0.5 * values)
        return np.asarray(0.5 * values)

    return load
