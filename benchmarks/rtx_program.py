"""What is inside a TensorRT-RTX engine that no GPU here could load: the tensors that its programs declare.

An engine built ahead of time carries one program for each optimisation profile, in a text that says of every tensor
its sizes, its type, and whether it is a constant with a payload. That text is nobody's interface, so every reading is
made safe by a count of what must be there: an engine whose text has changed fails instead of passing.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

_TENSOR = re.compile(
    rb"[^_]tensor=\{(?P<head>[^{}]*)dims=\{(?P<dims>[^{}]*)\}(?P<middle>[^{}]*)stride_order=\{[^{}]*\}"
    rb" *strides=\{[^{}]*\} *type=(?P<type>\w+)"
)
_REGION = re.compile(rb"region *= *\{ *name=(devmem\w*) size=(\d+)")
_PAYLOAD = re.compile(rb"const_payload_size=(\d+)")
_NAME = re.compile(rb'name="([^"]*)"')
_PLACE = re.compile(rb'region="?([\w-]+)')
_CODES = ("int4", "int8", "uint8")


@dataclass(frozen=True)
class ProgramTensor:
    """One tensor of a program."""

    name: str
    dims: tuple[int, ...]  # empty where an axis is only known when it runs
    type: str  # "half", "float", "int8", "int4", ...
    payload: int  # bytes of a constant; 0 for what is computed
    region: str  # constants: "PROGRAM-consts"

    @property
    def count(self) -> int:
        """Numbers in it; 0 where an axis is only known when it runs."""
        return math.prod(self.dims) if self.dims else 0


def tensors(engine: bytes) -> list[ProgramTensor]:
    """Return every tensor that the programs of an engine declare."""
    found = []
    for match in _TENSOR.finditer(engine):
        words = match["dims"].split()
        dims = tuple(map(int, words)) if all(word.isdigit() for word in words) else ()
        text = match["head"] + match["middle"]
        payload, name, place = _PAYLOAD.search(text), _NAME.search(text), _PLACE.search(text)
        found.append(
            ProgramTensor(
                name[1].decode() if name else "",
                dims,
                match["type"].decode(),
                int(payload[1]) if payload else 0,
                place[1].decode() if place else "",
            )
        )
    return found


def scratch_bytes(engine: bytes) -> int:
    """Return the bytes of device memory that the programs reserve beside inputs, outputs and weights."""
    return sum(int(match[2]) for match in _REGION.finditer(engine))


def constants(found: Iterable[ProgramTensor], kind: str, smallest: int = 0) -> Counter[int]:
    """Return how many constants of a type there are by count of numbers, in the program that has most of them."""
    programs: dict[str, Counter[int]] = {}
    for one in found:
        if one.payload and one.type == kind and one.count >= smallest:
            programs.setdefault(one.region, Counter())[one.count] += 1
    most: Counter[int] = Counter()
    for counted in programs.values():
        most |= counted
    return most


def widened(found: Iterable[ProgramTensor], counts: Iterable[int]) -> Counter[int]:
    """Return how many tensors in device memory hold as many floats as a matrix does and are computed, by that count.

    A weight that is turned into floats before its product, as a DequantizeLinear that is not fused is, shows here.
    What has no place in memory lives inside a kernel.
    """
    sizes = set(counts)
    computed = (one for one in found if not one.payload and one.region.startswith("devmem"))
    return Counter(one.count for one in computed if one.count in sizes and one.type not in _CODES)
