"""8-bit weights for the vision tower: for size, where it does not hurt; never for speed.

A tower is products of many rows, bound by arithmetic: on the CPUs measured, 8 bits in onnxruntime (as weights, or with
quantised activations) are no faster than float32. What they save is seven tenths of the tower's bytes, on disk and in
memory. So `--int8-vision` is a choice, and towers stay float32 without it. A block of the tower whose rounding turns
an image embedding by too much keeps its float32 weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from quant.conversation import Gallery
from quant.edited import EditedBackend, is_large
from quant.graph import matrices, round_plainly
from quant.recipe import Recipe, Rule, with_vision
from quant.weights import FORMATS, dequantize
from runtime.bundle import Bundle
from runtime.engine import Engine
from runtime.image import load_image, prepare_views, split_regions

FORMAT = "int8-b32"
COSINE = 0.9995  # least similarity of an image embedding to that of the float tower
PICTURES = 4
_BLOCK = re.compile(r"^(.*\.blocks\.\d+)\.")
_HURTS = "in 8 bits it turns image embeddings by more than the cosine allowed"
Progress = Callable[[str, int, int], None]


def fit_vision(
    exact: Bundle,
    recipe: Recipe,
    gallery: Gallery,
    *,
    threads: int | None = None,
    least: float = COSINE,
    progress: Progress = lambda stage, done, total: None,
) -> tuple[Recipe, float]:
    """Return a recipe that keeps the tower in 8 bits but for what hurts, and the least cosine that is left.

    Args:
        exact: a float bundle.
        recipe: of the language model.
        gallery: pictures; the first few are encoded.
        threads: compute threads.
        least: cosine that every image embedding must keep.
        progress: called with ("check the vision tower", blocks done, blocks).

    A bundle without a tower that takes pixels comes back as it is, with a cosine of 1.
    """
    vision = exact.manifest.vision
    if vision is None or any(view.kind != "pixels" for view in vision.views) or not len(gallery):
        return recipe, 1.0
    wide = with_vision(recipe, FORMAT)
    weights: dict[str, np.ndarray] = {}

    def edit(model: ir.Model) -> None:
        for name, value in matrices(model, wide).items():
            assert value.const_value is not None
            weights[name] = np.asarray(value.const_value.numpy())
            value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(weights[name].shape)
            del model.graph.initializers[name]
            value.const_value = None
            model.graph.inputs.append(value)

    backend = EditedBackend("vision", edit, threads=threads, mapped=is_large(exact))
    engine = Engine(exact, backend)
    try:
        pictures = [load_image(gallery[i]) for i in range(min(PICTURES, len(gallery)))]
        parts = [split_regions(one, vision.regions)[:1] if vision.regions else [one] for one in pictures]
        views = [prepare_views(one, vision) for one in parts]

        def embeddings(rounded: set[str]) -> np.ndarray:
            backend.inputs = {n: _rounded(w) if n in rounded else w for n, w in weights.items()}
            return np.concatenate([engine.encode(view).reshape(-1, exact.manifest.width) for view in views])

        wanted, groups = embeddings(set()), _groups(weights)
        alone = {}
        for done, (group, names) in enumerate(groups.items()):
            alone[group] = _least_cosine(embeddings(names), wanted)
            progress("check the vision tower", done + 1, len(groups))
        kept, cosine = dict(groups), 1.0
        while kept and (cosine := _least_cosine(embeddings(set().union(*kept.values())), wanted)) < least:
            del kept[min(kept, key=lambda group: alone[group])]
    finally:
        engine.close()
    floats = [Rule(name, "float32", _HURTS) for group in groups.keys() - kept.keys() for name in sorted(groups[group])]
    floats.sort(key=lambda rule: rule.pattern)
    return replace(wide, rules=(*floats, *wide.rules)), cosine if kept else 1.0


def _groups(weights: dict[str, np.ndarray]) -> dict[str, set[str]]:
    """Matrices by the tower's block they are in; others by themselves."""
    groups: dict[str, set[str]] = {}
    for name in weights:
        found = _BLOCK.match(name)
        groups.setdefault(found[1] if found else name, set()).add(name)
    return groups


def _rounded(weight: np.ndarray) -> np.ndarray:
    fmt = FORMATS[FORMAT]
    return dequantize(round_plainly("", weight, fmt), len(weight), fmt)


def _least_cosine(found: np.ndarray, wanted: np.ndarray) -> float:
    products = (found * wanted).sum(1) / (np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1))
    return float(products.min()) if np.isfinite(products).all() else -1.0
