"""The parts of a model that the C++ wants to know, and how they are found in a graph and checked.

Nothing is guessed: what a family expects (`rwkv7`, `rwkv6`) is there under its name and in its shape, in any mixture of
the weight formats of `quant`, and there is nothing else.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from runtime.errors import TargetUnavailable
from runtime.native.graph import Graph
from runtime.spec import GraphSpec, TensorSpec

HEAD = 64  # channels of a head: the C++ knows no other
LONGEST_RANK = 8192
_MOST_LAYERS, _MOST_WIDTH, _MOST_HIDDEN, _MOST_VOCABULARY = 256, 1 << 15, 1 << 17, 1 << 20
_EPSILONS = {1e-5, 64e-5}
_MOVING = {"Slice", "Squeeze", "Unsqueeze", "Concat", "Reshape", "Transpose", "Gather"}
_MOVING |= {"Shape", "Range", "Expand", "Cast", "Constant", "Identity"}
_SLOTS = ("att_shift", "ffn_shift", "wkv")


@dataclass(frozen=True)
class Vector:
    """As many values of an initializer as the model is wide."""

    data: str
    start: int = 0  # values of the initializer before it


@dataclass(frozen=True)
class Weight:
    """A matrix [k, n] as the bundle has it."""

    format: str  # "float32", "float16", "int8", "int4"
    k: int
    n: int
    block: int
    data: str  # names of initializers
    scale: str = ""
    zero: str = ""
    start: int = 0  # values of `data` before it, where several matrices share it


@dataclass(frozen=True)
class Parts:
    """What the C++ wants to know; None where a layer has nothing. The orders are those of src/parts.h."""

    family: int
    layers: int
    width: int
    hidden: int
    vocabulary: int
    ranks: tuple[int, ...]
    vectors: tuple[Vector | None, ...]
    matrices: tuple[Weight | None, ...]


@dataclass(frozen=True)
class Shape:
    """Sizes that the manifest tells."""

    layers: int
    width: int
    vocabulary: int

    def tensor(self, name: str, axes: tuple[int | str, ...], dtype: str = "float32") -> TensorSpec:
        """Return what a graph's tensor should be; "heads" stands for the number of heads."""
        return TensorSpec(name, dtype, tuple(self.width // HEAD if axis == "heads" else axis for axis in axes))


def read_shape(spec: GraphSpec, operator: str, title: str, more: Iterable[str] = ()) -> Shape:
    """Return the sizes of a step graph with the usual inputs and outputs; `more` inputs are the caller's to check.

    Raises:
        TargetUnavailable: it is not of that kind.
    """
    inputs = {tensor.name: tensor for tensor in spec.inputs}
    outputs = {tensor.name: tensor for tensor in spec.outputs}
    if spec.custom_ops != (operator,):
        raise other(f"the operators {', '.join(spec.custom_ops) or 'of ONNX alone'}", f"{operator}, of {title}")
    found = set(inputs) - set(more)
    if found != {"embeddings", *_SLOTS} or set(outputs) != {"logits", *(f"{slot}_out" for slot in _SLOTS)}:
        raise other(f"the inputs {', '.join(inputs)}", f"embeddings, {', '.join(_SLOTS)}")
    wkv, logits = inputs["wkv"].shape, outputs["logits"].shape
    sizes = [size for size in (*wkv[:1], *wkv[2:], *logits[1:]) if isinstance(size, int)]
    if len(wkv) != 5 or len(logits) != 2 or len(sizes) != 5:
        raise other(f"slots of shape {wkv} and logits of shape {logits}", "[L, B, H, N, N] and [B, V]")
    layers, heads, _, _, vocabulary = sizes
    shape = Shape(layers, heads * HEAD, vocabulary)
    check_tensor(inputs["embeddings"], shape.tensor("embeddings", ("B", "T", shape.width)))
    check_tensor(outputs["logits"], shape.tensor("logits", ("B", vocabulary)))
    for slot in _SLOTS:
        axes: tuple[int | str, ...] = ("B", "heads", HEAD, HEAD) if slot == "wkv" else ("B", shape.width)
        check_tensor(inputs[slot], shape.tensor(slot, (layers, *axes)))
        check_tensor(outputs[f"{slot}_out"], shape.tensor(f"{slot}_out", (layers, *axes)))
    if not (0 < layers <= _MOST_LAYERS and 0 < shape.width <= _MOST_WIDTH and 0 < vocabulary <= _MOST_VOCABULARY):
        raise other(f"{layers} layers, width {shape.width}, {vocabulary} tokens", "a model of a size that exists")
    return shape


def check_tensor(found: TensorSpec, wanted: TensorSpec) -> None:
    """Raise `TargetUnavailable` where the manifest declares another tensor."""
    if found != wanted:
        raise other(f"{found.name}, {found.dtype} {list(found.shape)}", f"{wanted.dtype} {list(wanted.shape)}")


def check_operators(graph: Graph, wanted: Mapping[str, int], title: str) -> None:
    """Compare what computes something with what the layers of an architecture compute."""
    found = Counter({name: count for name, count in graph.operators.items() if name not in _MOVING})
    found["MatMul"] += found.pop("MatMulNBits", 0)
    expected = Counter(dict(wanted))
    if found != expected:
        names = sorted(name for name in found | expected if found[name] != expected[name])
        raise other(
            ", ".join(f"{found[name]} x {name}" for name in names),
            ", ".join(f"{expected[name]}" for name in names) + f" in {title}",
        )
    if not all(any(math.isclose(one, known, rel_tol=1e-6) for known in _EPSILONS) for one in graph.epsilons):
        raise other(f"norms with epsilons {sorted(graph.epsilons)}", f"{sorted(_EPSILONS)}")


def check_rest(graph: Graph, parts: Parts, constants: set[float], title: str) -> None:
    """Whatever float the graph has beside the weights must be a constant of the formulas."""
    used = {vector.data for vector in parts.vectors if vector}
    used |= {name for weight in parts.matrices if weight for name in (weight.data, weight.scale, weight.zero)}
    for name, tensor in graph.tensors.items():
        if name in used or tensor.dtype in ("int32", "int64"):
            continue
        values = graph.read(name).astype(np.float64).reshape(-1) if tensor.nbytes < 4096 else np.zeros(0)
        if len(values) and all(any(math.isclose(x, known, rel_tol=1e-6) for known in constants) for x in set(values)):
            continue
        raise other(f"the weight {name!r}", f"those of {title}")


def find_vector(graph: Graph, name: str, width: int) -> Vector:
    """Return `width` float32 values."""
    shape = shape_of(graph, name)
    if math.prod(shape) != width or graph.tensors[name].dtype != "float32":
        raise other(f"{name} is {graph.tensors[name].dtype} {list(shape)}", f"{width} float32")
    return Vector(name)


def find_matrix(graph: Graph, name: str, k: int, n: int, *, path: bool = False) -> Weight:
    """Return the matrix [k, n]; `path`: one of a LoRA path, which is not quantised."""
    weight = stored_matrix(graph, name)
    if (weight.k, weight.n) != (k, n):
        raise other(f"{name} is {weight.k} x {weight.n}", f"{k} x {n}")
    if path and not weight.format.startswith("float"):
        raise other(f"{name} is {weight.format}", "LoRA paths in float32 or float16")
    return weight


def find_hidden(graph: Graph, name: str, multiple: int) -> int:
    """Return how wide the feed-forward is, by its matrix `name`."""
    hidden = stored_matrix(graph, name).n
    if hidden % multiple or hidden > _MOST_HIDDEN:
        raise other(f"an FFN {hidden} wide", f"a multiple of {multiple}")
    return hidden


def stored_matrix(graph: Graph, name: str) -> Weight:
    """Return the matrix `name` in whatever format it is stored; its parts have the sizes that the C++ will read."""
    for stored, kind in ((name, "float32"), (f"{name}_fp16", "float16")):
        tensor = graph.tensors.get(stored)
        if tensor is not None and tensor.dtype == kind and len(tensor.shape) == 2:
            return Weight(kind, *tensor.shape, block=0, data=stored)
    product = graph.products.get(f"{name}_codes")
    if product is None:
        raise other(f"no matrix {name}", "float32, float16, or MatMulNBits with 4 or 8 bits")
    k, n, block, parts = product.k, product.n, product.block, product.inputs
    if product.bits not in (4, 8) or block not in (16, 32, 64, 128) or not (0 < k < 1 << 24 and 0 < n < 1 << 24):
        raise other(f"{name} has {product.bits} bits in blocks of {block}", "4 or 8 bits, blocks of 16 to 128")
    blocks, halves = -(-k // block), product.bits == 4
    wanted = [("uint8", n * blocks * block * product.bits // 8), ("float32", n * blocks)]
    wanted += [("uint8", n * -(-blocks // 2))] if halves else []
    found = [graph.tensors.get(part) for part in parts]
    sizes = [(t.dtype, math.prod(t.shape)) for t in found if t is not None]
    if sizes != wanted:
        raise other(f"{name} is stored as {sizes}", f"{wanted}")
    data, scale, zero = (*parts, "")[:3]
    return Weight("int4" if halves else "int8", k, n, block, data, scale, zero)


def shape_of(graph: Graph, name: str) -> tuple[int, ...]:
    """Return the shape of an initializer, of two axes or more."""
    tensor = graph.tensors.get(name) or graph.tensors.get(f"{name}_fp16")
    if tensor is None or not tensor.shape or 0 in tensor.shape:
        raise other(f"no weight {name}", "the names of export/arch")
    return tensor.shape if len(tensor.shape) > 1 else (1, *tensor.shape)


def other(found: str, wanted: str) -> TargetUnavailable:
    """Return the error that says what makes this graph another one."""
    return TargetUnavailable(
        f"the native step does not know this graph: {found}", wanted=wanted, hint='device="onnxruntime" runs it'
    )
