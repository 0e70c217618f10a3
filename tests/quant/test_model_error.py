"""Errors of whole quantised models through onnxruntime, on the official outputs' checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runtime.backends.ort import OrtBackend
from runtime.bundle import Bundle
from runtime.engine import Engine

LIMIT = {"int8": 0.02, "int4": 0.10}  # relative error; 4 bits everywhere, rounded to nearest, make 0.28 of it
TOKENS = 40


def logits(bundle: Path, ids: np.ndarray) -> np.ndarray:
    """Logits after every token [T, V]."""
    engine = Engine(Bundle.open(bundle), OrtBackend(threads=1))
    try:
        state = engine.new_state()
        return np.stack([engine.advance(engine.embed(ids[i : i + 1]), state).copy() for i in range(len(ids))])
    finally:
        engine.close()


@pytest.mark.parametrize("precision", LIMIT)
@pytest.mark.parametrize("name", ["rwkv7_text", "rwkv6_text"])
def test_the_loss_is_known(name: str, precision: str, golden: Path, export: Callable[..., Path]) -> None:
    ids = np.random.default_rng(3).integers(1, 500, TOKENS)
    exact = logits(export(golden / f"{name}.pth"), ids)
    found = logits(export(golden / f"{name}.pth", precision=precision), ids)
    error = np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2))
    assert 1e-3 < error < LIMIT[precision]


def test_the_manifest_tells_the_precision_of_every_group(golden: Path, export: Callable[..., Path]) -> None:
    bundle = Bundle.open(export(golden / "rwkv7_text.pth", precision="int8"))
    rules = {rule.tensors: (rule.format, rule.count) for rule in bundle.manifest.precision_map}
    layers = json.loads((golden / "configs.json").read_text(encoding="utf-8"))["rwkv7_text.pth"]["lm"]["n_layer"]
    assert rules[f"*.att.key of the first 1 of {layers}"] == ("float16", 1)
    assert rules["*.att.key"] == ("int8-b32", layers - 1)
    assert rules["head.head"] == ("int8-b32", 1)
    stored = sum(rule.bytes for rule in bundle.manifest.precision_map)
    assert stored < bundle.manifest.budget.weights < 1.5 * stored + 200_000  # the graph itself and alignment
