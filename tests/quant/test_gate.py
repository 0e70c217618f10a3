"""The gate: two bundles in one conversation, what differs, and what is too much."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import quant.graph
from quant.apply import quantise
from quant.compare import Stage, compare, is_sure, relative, stages_up_to
from quant.gate import QUALITY_FILE, Quality, default_drift, gate, keep
from quant.graph import round_plainly
from quant.limits import ENOUGH, LIMITS
from quant.moments import block_size, calibrated, collect
from quant.pictures import drawn
from quant.recipe import RECIPES
from quant.task import Result
from quant.weights import BlockFormat
from runtime.bundle import Bundle
from runtime.errors import ParityError

GOOD = Stage("prompts", 40, 60, 0.01, 1e-4, 1.0, 50, 1.0, 0.01)
LONG = replace(GOOD, name="1,000 tokens", tokens=1000)
LATER = replace(GOOD, name="10,000 tokens", tokens=10_000)
TASK = Result(1000, 990, 990, 1000, 3000, 1.0, 2900, 1.0)


@pytest.fixture(scope="module")
def small(float_demo: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return quantise(float_demo, tmp_path_factory.mktemp("small"), RECIPES["int4"], name="small")


def test_a_bundle_says_what_it_says_itself(float_demo: Bundle) -> None:
    for stage in compare(float_demo, float_demo, drawn(2), 200, threads=1):
        assert (stage.logits, stage.kl, stage.state, stage.agreement) == (0, 0, 0, 1)
        assert stage.positions > 10


def test_a_quantised_bundle_is_near_and_stays_so(float_demo: Bundle, small: Bundle) -> None:
    prompts, first, last = compare(float_demo, small, drawn(3), 1100, threads=1)
    assert (prompts.name, first.name, last.name) == ("prompts", "1,000 tokens", "1,100 tokens")
    assert 1000 <= first.tokens < last.tokens < 1200
    for stage in (prompts, first, last):
        assert 1e-3 < stage.logits < 0.15 and 1e-3 < stage.state < 0.15 and 0 < stage.kl < 0.1
        assert stage.agreement > 0.9


def test_a_model_without_words_or_pictures_is_compared_too(float_text: Bundle, tmp_path: Path) -> None:
    made = quantise(float_text, tmp_path, RECIPES["int8"], name="made")
    prompts, long = compare(float_text, made, [], 300, threads=1)
    assert 1e-4 < prompts.logits < 0.05 and 1e-4 < long.logits < 0.05
    assert long.tokens >= 300


def test_calibration_lessens_what_a_model_gets_wrong(float_demo: Bundle, small: Bundle, tmp_path: Path) -> None:
    moments = collect(float_demo, RECIPES["int4"], drawn(8, seed=1), turns=24, threads=1)
    again = collect(float_demo, RECIPES["int4"], drawn(8, seed=1), turns=24, threads=1)
    assert all(np.array_equal(a, b) for name in moments for a, b in zip(moments[name], again[name], strict=True))
    made = quantise(float_demo, tmp_path, RECIPES["int4"], name="made", rounding=calibrated(moments))
    gallery = drawn(4, seed=9)
    plain, ours = (compare(float_demo, bundle, gallery, 0, threads=1)[0] for bundle in (small, made))
    assert ours.state < 0.9 * plain.state


def test_a_bundle_that_is_broken_does_not_pass(float_demo: Bundle, tmp_path: Path) -> None:
    def wrong(name: str, weight: np.ndarray, fmt: BlockFormat) -> tuple[np.ndarray, ...]:
        return round_plainly(name, weight * 1.5 if name == "blocks.2.att.output" else weight, fmt)

    made = quantise(float_demo, tmp_path, RECIPES["int8"], name="made", rounding=wrong)
    with pytest.raises(ParityError, match="prompts: logits"):
        gate(float_demo, made, drawn(2), drift=0, threads=1)


def test_the_figures_are_kept_in_the_bundle(float_demo: Bundle, tmp_path: Path) -> None:
    made = quantise(float_demo, tmp_path, RECIPES["int8"], name="made")
    quality = gate(float_demo, made, drawn(2), drift=100, threads=1)
    kept = Bundle.open(keep(made, quality).path)
    assert kept.manifest.fingerprint != made.manifest.fingerprint
    data = json.loads(kept.file(QUALITY_FILE).read_text())
    assert [stage["name"] for stage in data["stages"]] == ["prompts", "100 tokens"]
    assert data["limits"]["logits"] == LIMITS["int8"].logits and data["task"] is None
    assert data["stages"][0]["logits"] == pytest.approx(quality.stages[0].logits, rel=1e-2)


@pytest.mark.parametrize(
    ("stages", "task", "expected"),
    [
        ((GOOD, LONG, LATER), TASK, []),
        ((replace(GOOD, logits=0.06), LONG), None, ["prompts: logits 6.00%"]),
        ((replace(GOOD, logits=float("inf")),), None, ["prompts: logits inf%"]),
        ((replace(GOOD, state=float("nan")),), None, ["prompts: state nan%"]),
        ((GOOD, LONG, replace(LATER, logits=0.021)), None, ["10,000 tokens: logits 2.10%, 2 times 1.00% allowed"]),
        ((GOOD, LONG, replace(LATER, logits=0.019)), None, []),
        ((replace(GOOD, sure_agreement=0.99),), None, ["prompts: agreement 99.00%"]),
        ((replace(GOOD, sure_agreement=0.9, sure=ENOUGH - 1),), None, []),
        ((replace(GOOD, agreement=0.5),), None, []),
        ((GOOD,), replace(TASK, right=986), ["task: 0.40% of the answers lost"]),
        ((GOOD,), replace(TASK, right=995), []),
        ((GOOD,), replace(TASK, sure_agreement=0.99), ["task: agreement 99.00%"]),
    ],
)
def test_what_is_past_the_limits(stages: tuple[Stage, ...], task: Result | None, expected: list[str]) -> None:
    found = Quality("int8", stages, task).failures()
    assert len(found) == len(expected)
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True))


def test_measures() -> None:
    assert stages_up_to(0) == () and stages_up_to(300) == (300,)
    assert stages_up_to(100_000) == (1_000, 10_000, 100_000)
    assert relative(np.array([1.1, 2.2]), np.array([1.0, 2.0])) == pytest.approx(0.1)
    assert relative(np.array([np.nan]), np.array([1.0])) == float("inf")
    assert is_sure(np.log(np.array([0.2, 0.5, 0.24]))) and not is_sure(np.log(np.array([0.2, 0.5, 0.26])))
    assert block_size([2048] * 40) == 1024
    assert block_size([16384] * 128) == 256


def test_big_models_are_compared_less_far(float_demo: Bundle) -> None:
    def sized(weights: int) -> Bundle:
        budget = replace(float_demo.manifest.budget, weights=weights)
        return replace(float_demo, manifest=replace(float_demo.manifest, budget=budget))

    assert [default_drift(sized(10**power)) for power in (6, 8, 9, 11)] == [1000, 1000, 400, 250]


def test_products_in_several_places_are_rounded_plainly() -> None:
    """A matrix with two inputs has no moments, and loses nothing by it."""
    matrices = quant.graph.matrices
    x, y = (ir.Value(name=n, shape=ir.Shape(["B", 32]), type=ir.TensorType(ir.DataType.FLOAT)) for n in "xy")
    w = ir.Value(name="blocks.0.att.key", const_value=ir.Tensor(np.eye(32, dtype=np.float32), name="w"))
    w.shape, w.dtype = ir.Shape((32, 32)), ir.DataType.FLOAT
    nodes = [ir.node("MatMul", [one, w]) for one in (x, y)]
    graph = ir.Graph([x, y], [n.outputs[0] for n in nodes], nodes=nodes, initializers=[w], opset_imports={"": 18})
    model = ir.Model(graph, ir_version=10)
    assert list(matrices(model, RECIPES["int4"])) == ["blocks.0.att.key"]
    from quant.moments import _Listener

    listener = _Listener(RECIPES["int4"])
    listener.edit(model)
    assert listener.sources == {} and len(model.graph.outputs) == 2
