"""Is this graph the RWKV-6, or the HM v6.21, that the C++ computes? If so, its sizes and its weights in order.

The slots, the kinds and numbers of operators, the constants of the formulas and every weight's shape must be those of
`export/arch/rwkv6.py` and `export/arch/hybrid.py`. In narrow models the exporter folds the fixed amounts of a layer's
blends into a constant with a name of its own; they are then found by their shape.
"""

from __future__ import annotations

import math

from runtime.native.graph import Graph
from runtime.native.parts import (
    HEAD,
    LONGEST_RANK,
    Parts,
    Shape,
    Vector,
    Weight,
    check_operators,
    check_rest,
    check_tensor,
    find_hidden,
    find_matrix,
    find_vector,
    other,
    read_shape,
    shape_of,
)
from runtime.native.rwkv7 import FAMILY as RWKV7
from runtime.spec import GraphSpec, TensorSpec

OPERATOR, FAMILY = "vrwkv::WKV6", RWKV7 + 1
IMAGE, SCAN = "image_state", "scan"  # inputs that some models have
_STREAMS, _MEMORY = 5, 2  # blends of the time mix, w k v r g; and of what reads the image state, r g
_FFN_MULTIPLE = 32

# In the order of the enumerations in src/parts.h.
_VECTORS = (
    *("ln1_weight", "ln1_bias", "ln2_weight", "ln2_bias", "att.ln_x_weight", "att.ln_x_bias"),
    *("ffn.time_maa_k", "ffn.time_maa_r", "att.time_maa_x"),
)
_SHARED = ("att.receptance", "att.key", "att.value", "att.output", "ffn.key", "ffn.value", "ffn.receptance")


def find_parts(graph: Graph, spec: GraphSpec) -> Parts:
    """Return the parts of a graph.

    Raises:
        TargetUnavailable: the graph is something else, and the message says what.
    """
    shape = read_shape(spec, OPERATOR, "RWKV-6", (IMAGE, SCAN))
    inputs = {tensor.name: tensor for tensor in spec.inputs}
    image, sigmoid = IMAGE in inputs, "blocks.0.att.mem_gate_bias" in graph.tensors
    _check_inputs(inputs, shape)
    title = f"{shape.layers} layers of {'RWKV-6 that read an image state' if image else 'RWKV-6'}"
    check_operators(graph, _operators(shape.layers, image, sigmoid, SCAN in inputs), title)
    ranks = shape_of(graph, "blocks.0.att.time_maa_w2")[1], shape_of(graph, "blocks.0.att.time_decay_w1")[1]
    if max(ranks) > LONGEST_RANK:
        raise other(f"LoRA ranks of {ranks}", f"at most {LONGEST_RANK}")
    hidden = find_hidden(graph, "blocks.0.ffn.key", _FFN_MULTIPLE)
    reader = _Layers(graph, shape, hidden, ranks, image)
    vectors, matrices = reader.vectors(sigmoid), reader.matrices()
    parts = Parts(FAMILY, shape.layers, shape.width, hidden, shape.vocabulary, (*ranks, 0, 0), vectors, matrices)
    check_rest(graph, parts, {1.0}, title)
    return parts


def _check_inputs(inputs: dict[str, TensorSpec], shape: Shape) -> None:
    """What some models read beside embeddings and state."""
    if IMAGE in inputs:
        states = shape.layers if inputs[IMAGE].shape[:1] == (shape.layers,) else 1
        check_tensor(inputs[IMAGE], shape.tensor(IMAGE, (states, "B", "heads", HEAD, HEAD)))
    if SCAN in inputs:
        orders = inputs[SCAN].shape[0] if inputs[SCAN].shape else 0
        check_tensor(inputs[SCAN], TensorSpec(SCAN, "int64", (orders, "T")))
        if not isinstance(orders, int) or not 0 < orders <= 64:
            raise other(f"{orders} orders of scanning", "1 to 64")


def _operators(layers: int, image: bool, sigmoid: bool, scan: bool) -> dict[str, int]:
    """What the layers compute: `image` as in HM, `sigmoid` as in its old checkpoints."""
    return (
        dict.fromkeys(("WKV6", "Exp", "Neg"), layers)
        | {"LayerNormalization": 3 * layers + 1, "MatMul": (17 if image else 12) * layers + 1}
        | {"Sigmoid": (2 + sigmoid) * layers, "Relu": (3 if image and not sigmoid else 1) * layers}
        | {"Tanh": (2 + image) * layers, "Sub": (2 + image) * layers}
        | {"Mul": (9 + 3 * image) * layers, "Add": (9 + 3 * image + sigmoid) * layers}
        | (dict.fromkeys(("ScatterElements", "GatherElements"), 1) if scan else {})
    )


class _Layers:
    """Reads all layers' weights, in the order of the C++."""

    def __init__(self, graph: Graph, shape: Shape, hidden: int, ranks: tuple[int, int], image: bool) -> None:
        self.graph, self.shape, self.hidden, self.ranks, self.image = graph, shape, hidden, ranks, image

    def vectors(self, sigmoid: bool) -> tuple[Vector | None, ...]:
        """Return the vectors of every layer, then those of the last norm."""
        out: list[Vector | None] = []
        for layer in range(self.shape.layers):
            block = f"blocks.{layer}."
            out += [self._vector(block + name) for name in _VECTORS]
            out += self._amounts(block, "att.time_maa", _STREAMS)
            out += self._amounts(block, "att.time_mem", _MEMORY) if self.image else [None] * _MEMORY
            out += [self._vector(block + name) for name in ("att.time_decay", "att.time_faaaa")]
            out.append(self._vector(f"{block}att.mem_gate_bias") if sigmoid else None)
        return (*out, self._vector("head.ln_out_weight"), self._vector("head.ln_out_bias"))

    def matrices(self) -> tuple[Weight | None, ...]:
        """Return the matrices of every layer, then the head."""
        width, (mix, decay) = self.shape.width, self.ranks
        shapes = {"ffn.key": (width, self.hidden), "ffn.value": (self.hidden, width)}
        out: list[Weight | None] = []
        for layer in range(self.shape.layers):
            block = f"blocks.{layer}."
            out += [find_matrix(self.graph, block + name, *shapes.get(name, (width, width))) for name in _SHARED]
            att = f"{block}att."
            out.append(self._path(f"{att}time_maa_w1", width, _STREAMS * mix))
            out.append(self._path(f"{att}time_mem_w1", width, _MEMORY * mix) if self.image else None)
            out += self._stack(f"{att}time_maa_w2", _STREAMS)
            out += self._stack(f"{att}time_mem_w2", _MEMORY) if self.image else [None] * _MEMORY
            out.append(self._path(f"{att}time_decay_w1", width, decay))
            out.append(self._path(f"{att}time_decay_w2", decay, width))
            out.append(self._square(f"{att}gate"))
            out += [self._square(f"{att}mem_{name}") if self.image else None for name in ("read", "gate")]
        return (*out, find_matrix(self.graph, "head.head", width, self.shape.vocabulary))

    def _vector(self, name: str) -> Vector:
        return find_vector(self.graph, name, self.shape.width)

    def _path(self, name: str, k: int, n: int) -> Weight:
        return find_matrix(self.graph, name, k, n, path=True)

    def _square(self, name: str) -> Weight:
        return find_matrix(self.graph, name, self.shape.width, self.shape.width)

    def _amounts(self, block: str, name: str, count: int) -> list[Vector]:
        """Return the fixed amounts of `count` blends of a layer, side by side in one initializer."""
        tensors, width = self.graph.tensors, self.shape.width
        if f"{block}{name}" in tensors:
            found = [tensors[f"{block}{name}"]]
        else:
            shape = (count, 1, width)
            found = [t for t in tensors.values() if t.shape == shape and t.name.startswith(block)]
        if len(found) != 1 or found[0].dtype != "float32" or math.prod(found[0].shape) != count * width:
            raise other(f"{len(found)} weights like {block}{name}", f"one, {count * width} float32")
        return [Vector(found[0].name, i * width) for i in range(count)]

    def _stack(self, name: str, count: int) -> list[Weight]:
        """Return `count` matrices that lie in one initializer."""
        (rank, _), width = self.ranks, self.shape.width
        tensor = self.graph.tensors.get(name)
        if tensor is None or tensor.dtype != "float32" or tensor.shape != (count, rank, width):
            raise other(f"{name} is {tensor and tensor.shape}", f"float32 {[count, rank, width]}")
        return [Weight("float32", rank, width, 0, name, start=i * rank * width) for i in range(count)]
