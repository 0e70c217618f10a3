"""Recipes: which weight gets which format, and why. Data, not code paths."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Rule:
    """The first rule whose pattern matches an initializer's name decides its format."""

    pattern: str  # shell style, on the initializer's name
    format: str  # "float32", "float16" or "int8-b32"
    reason: str


@dataclass(frozen=True)
class Recipe:
    """An ordered list of rules for the matrices of a graph; everything no rule names stays float32."""

    name: str
    rules: tuple[Rule, ...]
    embedding: Literal["float32", "float16"]  # of the token embedding table

    def rule(self, name: str) -> Rule:
        """Return the rule for an initializer."""
        for rule in self.rules:
            if fnmatch.fnmatchcase(name, rule.pattern):
                return rule
        return KEEP


KEEP = Rule("*", "float32", "norms, mixing vectors, LoRA paths, decay and biases: small, and errors there compound")

KEEP_TABLES = Rule("*.pool", "float32", "the constant matrix of average pooling")
_STEP = "read once per token: the cost of a decode step"
_TOWER = "read once per image"
_STEP_MATRICES = (
    *(f"*.att.{name}" for name in ("receptance", "key", "value", "output")),
    "*.ffn.key",
    "*.ffn.value",
    "head.head",
)
_TOWER_MATRICES = ("tower.*", "projector.*")

RECIPES = {
    "fp32": Recipe("fp32", (), "float32"),
    "fp16": Recipe(
        "fp16",
        (
            KEEP_TABLES,
            *(Rule(p, "float16", _STEP) for p in _STEP_MATRICES),
            *(Rule(p, "float16", _TOWER) for p in _TOWER_MATRICES),
        ),
        "float16",
    ),
    "int8": Recipe("int8", tuple(Rule(p, "int8-b32", _STEP) for p in _STEP_MATRICES), "float16"),
}
