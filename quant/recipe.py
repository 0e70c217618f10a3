"""Recipes: which weight gets which format, and why. Data, not code paths.

What was measured, as relative error of the logits (benchmarks/quant_error.py; random-weight RWKV-7 of 2, 12 and 24
layers, the trained demo model):
- One 8-bit product errs by 0.5 % through its weights and 0.5 % through its activations, which the kernel rounds to 8
  bits too. Deep random models multiply that: 24 layers in plain int8-b32 end at 5.1 % (demo 1.2 %).
- The first layer makes more than half of the squared error, in the demo model as well, and every further layer less:
  all others read what it writes. In float32 it takes a third off, for 9 % more bytes in 24 layers; for as many bytes,
  blocks of 16 everywhere take an eighth off. Zero points take off 3 %.
- With 4 bits it pays more: the first quarter of the layers in 8 bits makes 17 % of 44 % for 13 % more bytes (demo:
  6.6 % of 11.5 %). The first layer and all matrices of attention in 8 bits, more bytes still, make 28 %.
Towers stay in float32: they are products of many rows, where 8 bits are no faster without VNNI and slower with AVX2.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

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


def block_count(names: Iterable[str]) -> int:
    """Return one more than the largest block number among initializer names; 0 if there are no blocks."""
    return max((int(found[1]) + 1 for found in map(_BLOCK.search, names) if found), default=0)


KEEP = Rule("*", "float32", "norms, mixing vectors, LoRA paths, decay and biases: small, and errors there compound")

KEEP_TABLES = Rule("*.pool", "float32", "the constant matrix of average pooling")
_STEP = "read once per token: the cost of a decode step"
_TOWER = "read once per image"
_FIRST = "every later layer reads what layer 0 writes: its errors are more than half of all"
_EARLY = "later layers read what the first ones write: four bits here cost most of the error"
_HEAD = "its errors are the logits' errors"
_BODY = (
    *(f"*.att.{name}" for name in ("receptance", "key", "value", "gate", "output", "mem_read", "mem_gate")),
    *(f"*.cross.{name}" for name in ("receptance", "gate", "output")),
    *(f"*.ffn.{name}" for name in ("receptance", "key", "value")),
)
_LOGITS = "head.head"
_TOWER_MATRICES = ("tower.*", "projector.*")


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
                *_rules(_TOWER_MATRICES, "float16", _TOWER),
            ),
            "float16",
        ),
        Recipe(
            "int8",
            (
                *_rules(_BODY, "float32", _FIRST, share=1 / 32),
                *_rules((*_BODY, _LOGITS), "int8-b32", _STEP),
            ),
            "float16",
        ),
        Recipe(
            "int4",
            (
                *_rules(_BODY, "int8-b32", _EARLY, share=1 / 4),
                *_rules(_BODY, "int4-b32", _STEP),
                Rule(_LOGITS, "int8-b32", _HEAD),
            ),
            "float16",
        ),
    )
}
