"""The search for the smallest formats, and recipes as files."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from quant.graph import round_plainly
from quant.pictures import drawn
from quant.probe import Probe
from quant.recipe import PATHS, RECIPES, Recipe, Rule, from_json, to_json, with_vision
from quant.search import LADDER, search, smallest
from quant.vision import fit_vision
from runtime.bundle import Bundle
from runtime.errors import ConfigError

SIZES = {name: {"int4-b32": 10, "int4-b16": 12, "int8-b32": 18, "float32": 64} for name in "abc"}


def errors(**four_bits: float) -> dict[str, dict[str, float]]:
    return {
        name: {"int4-b32": e, "int4-b16": 0.8 * e, "int8-b32": e / 16, "float32": 0.0} for name, e in four_bits.items()
    }


def test_what_costs_most_goes_up_first() -> None:
    alone = errors(a=0.10, b=0.01, c=0.01)
    assert smallest(alone, SIZES, 0.2) == {"a": "int4-b32", "b": "int4-b32", "c": "int4-b32"}
    assert smallest(alone, SIZES, 0.03) == {"a": "int8-b32", "b": "int4-b32", "c": "int4-b32"}
    assert set(smallest(alone, SIZES, 1e-9).values()) == {"float32"}


@pytest.mark.parametrize("loss", [0.002, 0.01, 0.05, 0.08])
def test_the_sum_is_within_the_loss(loss: float) -> None:
    alone = errors(a=0.06, b=0.05, c=0.02)
    chosen = smallest(alone, SIZES, loss)
    assert sum(alone[name][fmt] ** 2 for name, fmt in chosen.items()) <= loss**2


def test_a_search_keeps_its_word(float_demo: Bundle) -> None:
    few = Recipe(
        "int4", tuple(r for r in RECIPES["int4"].rules if r.pattern in ("*.ffn.key", "*.att.value")), "float16"
    )
    with Probe(float_demo, few, drawn(2), turns=2, threads=1) as probe:
        assert probe.error({}) == 0
        assert {name.partition(".")[0] for name in probe.weights} == {"blocks"} and len(probe.weights) == 8
        found = search(probe, 0.02, round_plainly)
        assert 0 < found.loss <= 0.02
        tight = search(probe, 1e-9, round_plainly)
    assert set(PATHS) < set(tight.recipe.rules)
    matrices = [rule for rule in tight.recipe.rules if rule not in PATHS]
    # What the int8 bundle's codes stand for goes back into 8 bits without a loss; its first layer was float16.
    assert tight.loss == 0 and {rule.format for rule in matrices} == {"float32", "int8-b32"}
    assert found.bytes < tight.bytes
    assert {rule.format for rule in found.recipe.rules if rule not in PATHS} <= set(LADDER)
    assert from_json(to_json(found.recipe), "recipe.json") == found.recipe


def test_a_loss_of_nothing_is_refused(float_demo: Bundle) -> None:
    with (
        Probe(float_demo, Recipe("int4", (), "float16"), [], turns=1, threads=1) as probe,
        pytest.raises(ConfigError, match=r"a loss of 0\.0"),
    ):
        search(probe, 0.0, round_plainly)


GOOD = json.loads(to_json(Recipe("int8", (Rule("head.*", "int8-b32", "why"),), "float16")))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "is no recipe"),
        ("[]", "is no recipe"),
        (json.dumps({**GOOD, "colour": "red"}), "colour"),
        (json.dumps({**GOOD, "name": "tiny"}), "named 'tiny'"),
        (json.dumps({**GOOD, "embedding": "int8"}), "embedding"),
        (json.dumps({**GOOD, "rules": [{**GOOD["rules"][0], "format": "int3-b32"}]}), "int3-b32"),
        (json.dumps({**GOOD, "rules": [{**GOOD["rules"][0], "share": 2.0}]}), r"share 2\.0"),
    ],
)
def test_bad_recipes(text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        from_json(text, "recipe.json")


def test_the_tower_goes_to_8_bits_where_it_does_not_hurt(float_demo: Bundle) -> None:
    gallery = drawn(2)
    wide, cosine = fit_vision(float_demo, RECIPES["int8"], gallery, threads=1)
    assert wide == with_vision(RECIPES["int8"]) and 0.9995 <= cosine < 1
    some, better = fit_vision(float_demo, RECIPES["int8"], gallery, threads=1, least=(1 + cosine) / 2)
    kept = [rule for rule in some.rules if rule.format == "float32" and rule.pattern.startswith("tower.")]
    assert kept and better >= (1 + cosine) / 2
    none, exact = fit_vision(float_demo, RECIPES["int8"], gallery, threads=1, least=2.0)
    assert exact == 1 and len(none.rules) > len(some.rules)
    blind = replace(float_demo, manifest=replace(float_demo.manifest, vision=None))
    assert fit_vision(blind, RECIPES["int8"], gallery) == (RECIPES["int8"], 1.0)
