"""Recipes: which weight gets which format, and why. Data, not code paths.

What was measured, as relative error of the logits (benchmarks/quant_error.py; random-weight RWKV-7 of 2, 12 and 24
layers, the golden models, the trained demo model). Of the two figures of a recipe the first is through the weights
alone, as a backend makes it that keeps activations in 16 bits or more; the second also through onnxruntime's kernel,
which rounds activations to 8 bits.
- One 8-bit product errs by 0.5 % through its weights and 0.5 % through its activations. Deep random models multiply
  that: 24 layers in plain int8-b32 end at 5.1 % (demo 1.2 %).
- The first layers make most of the squared error, in the demo model as well: all others read what they write. One
  layer of 24 in float leaves 2.4 and 3.7 %, two 1.9 and 3.0 %, six 1.3 and 2.0 %. One layer and blocks of 16 everywhere
  leave 2.1 and 3.0 % for more bytes than two. Zero points take off 3 %. Float means float16: official checkpoints are
  bfloat16, of which it loses nothing above 6e-5.
- With 4 bits early layers pay more: the first quarter in 8 bits leaves 17 % of 44 % in 24 layers, three eighths 14 %
  for 5 % more bytes, half 11 %, half and blocks of 16 10 % for 17 % more bytes. Golden models: 12, 8, 8 and 6 %.
What a single model needs can differ: `python -m quant try` finds the smallest formats within a loss, matrix by matrix.
Towers stay in float32: they are products of many rows, where 8 bits are no faster without VNNI and slower with AVX2.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quant.weights import FORMATS
from runtime.errors import ConfigError, SchemaError
from runtime.spec import parse

_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")


@dataclass(frozen=True)
class Rule:
    """The first rule that covers an initializer decides its format."""

    pattern: str  # shell style, on the initializer's name
    format: str  # "float32", "float16" or a name of `quant.weights.FORMATS`
    reason: str
    share: float = 1.0  # of the graph's blocks, from the first on, at least one; 1: names outside of blocks too

    def covers(self, name: str, blocks: int) -> bool:
        """Tell whether the rule is about the initializer `name` of a graph of so many blocks."""
        if not fnmatch.fnmatchcase(name, self.pattern):
            return False
        block = _BLOCK.search(name)
        return self.share == 1 or (block is not None and int(block[1]) < self._first(blocks))

    def title(self, blocks: int) -> str:
        """Return what the rule covers, for the manifest."""
        return self.pattern if self.share == 1 else f"{self.pattern} of the first {self._first(blocks)} of {blocks}"

    def _first(self, blocks: int) -> int:
        return math.ceil(self.share * blocks)


@dataclass(frozen=True)
class Recipe:
    """An ordered list of rules for the matrices of a graph; everything no rule names stays float32."""

    name: str
    rules: tuple[Rule, ...]
    embedding: Literal["float32", "float16"]  # of the token embedding table: mapped from disk, one row read per token

    def rule(self, name: str, blocks: int) -> Rule:
        """Return the rule for an initializer of a graph of so many blocks."""
        return next((rule for rule in self.rules if rule.covers(name, blocks)), KEEP)


def to_json(recipe: Recipe) -> str:
    """Return a recipe as indented JSON, for `from_json`."""
    return json.dumps(dataclasses.asdict(recipe), indent=1, ensure_ascii=False) + "\n"


def load(path: Path) -> Recipe:
    """Read a recipe's file; raises `ConfigError` as `from_json` does."""
    try:
        return from_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}", hint="python -m quant try --json writes one") from None


def from_json(text: str, origin: str) -> Recipe:
    """Read a recipe.

    Raises:
        ConfigError: not JSON, a key is missing or unknown, or there is no such format.
    """
    try:
        recipe = parse(Recipe, json.loads(text), origin)
    except (ValueError, SchemaError) as error:
        raise ConfigError(f"{origin} is no recipe: {error}", hint="python -m quant try --json writes one") from None
    known = {"float32", "float16", *FORMATS}
    for rule in recipe.rules:
        if rule.format not in known or not 0 < rule.share <= 1:
            raise ConfigError(
                f"{origin}: {rule.pattern} in {rule.format}, share {rule.share}",
                wanted=f"a share above 0 and up to 1, and a format: {', '.join(sorted(known))}",
            )
    if recipe.name not in ("int8", "int4"):
        raise ConfigError(f"{origin}: a recipe named {recipe.name!r}", wanted="int8 or int4, whose limits then hold")
    return recipe


def block_count(names: Iterable[str]) -> int:
    """Return one more than the largest block number among initializer names; 0 if there are no blocks."""
    return max((int(found[1]) + 1 for found in map(_BLOCK.search, names) if found), default=0)


KEEP = Rule("*", "float32", "norms, mixing vectors, decay and biases: small, and errors there compound")

KEEP_TABLES = Rule("*.pool", "float32", "the constant matrix of average pooling")
PATHS = tuple(
    Rule(pattern, "float16", "LoRA paths: errors there compound; bfloat16 weights above 6e-5 lose nothing")
    for pattern in ("*.att.[wavg][12]", "*.time_*_w[12]")
)
_STEP = "read once per token: the cost of a decode step"
_TOWER = "read once per image"
_FIRST = "every later layer reads what the first ones write: their errors are more than half of all"
_EARLY = "later layers read what the first ones write: four bits here cost most of the error"
_HEAD = "its errors are the logits' errors"
_BODY = (
    *(f"*.att.{name}" for name in ("receptance", "key", "value", "gate", "output", "mem_read", "mem_gate")),
    *(f"*.cross.{name}" for name in ("receptance", "gate", "output")),
    *(f"*.ffn.{name}" for name in ("receptance", "key", "value")),
)
_LOGITS = "head.head"
_TOWER_MATRICES = ("tower.*", "projector.*")


def with_vision(recipe: Recipe, fmt: str = "int8-b32") -> Recipe:
    """Return a recipe that keeps the vision tower's matrices in a format, too."""
    return dataclasses.replace(recipe, rules=(KEEP_TABLES, *recipe.rules, *_rules(_TOWER_MATRICES, fmt, _TOWER)))


def _rules(patterns: tuple[str, ...], fmt: str, reason: str, share: float = 1.0) -> tuple[Rule, ...]:
    return tuple(Rule(pattern, fmt, reason, share) for pattern in patterns)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("fp32", (), "float32"),
        Recipe(
            "fp16",
            (
                KEEP_TABLES,
                *_rules((*_BODY, _LOGITS), "float16", _STEP),
                *PATHS,
                *_rules(_TOWER_MATRICES, "float16", _TOWER),
            ),
            "float16",
        ),
        Recipe(
            "int8",
            (
                *_rules(_BODY, "float16", _FIRST, share=1 / 12),
                *_rules((*_BODY, _LOGITS), "int8-b32", _STEP),
                *PATHS,
            ),
            "float16",
        ),
        Recipe(
            "int4",
            (
                *_rules(_BODY, "int8-b32", _EARLY, share=3 / 8),
                *_rules(_BODY, "int4-b32", _STEP),
                Rule(_LOGITS, "int8-b32", _HEAD),
                *PATHS,
            ),
            "float16",
        ),
    )
}
