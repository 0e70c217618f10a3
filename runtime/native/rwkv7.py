"""Is this graph the RWKV-7 that the C++ computes? If so, its sizes and its weights in order.

The slots, the kinds and numbers of operators, the constants of the formulas and every weight's shape must be those of
`export/arch/rwkv7.py`.
"""

from __future__ import annotations

import math

from runtime.native.graph import Graph
from runtime.native.parts import (
    HEAD,
    LONGEST_RANK,
    Parts,
    Vector,
    Weight,
    check_operators,
    check_rest,
    find_hidden,
    find_matrix,
    find_vector,
    other,
    read_shape,
    shape_of,
)
from runtime.spec import GraphSpec

OPERATOR, FAMILY = "vrwkv::WKV7", 0
PATHS = "wavg"  # LoRA paths, in the order of the C++

# In the order of the enumerations in src/parts.h; None: what only RWKV-6 has.
_VECTORS = (
    *("ln1_weight", "ln1_bias", "ln2_weight", "ln2_bias", "att.ln_x_weight", "att.ln_x_bias", "ffn.x_k", None),
    *(f"att.x_{stream}" for stream in "rwkvag"),
    *("att.w0", "att.a0", "att.v0", "att.k_k", "att.k_a", "att.r_k"),
)
_MATRICES = (
    *("att.receptance", "att.key", "att.value", "att.output", "ffn.key", "ffn.value", None),
    *(f"att.{path}1" for path in PATHS),
    *(f"att.{path}2" for path in PATHS),
)
_ONLY_LATER = ("att.v0", "att.v1", "att.v2")  # layer 0 has no earlier value to mix with
_CONSTANTS = {-math.exp(-0.5), 1.0, 1e-12}  # scale of the log decay; of the learning rate; least length of a key


def find_parts(graph: Graph, spec: GraphSpec) -> Parts:
    """Return the parts of a graph.

    Raises:
        TargetUnavailable: the graph is something else, and the message says what.
    """
    shape = read_shape(spec, OPERATOR, "RWKV-7")
    layers, width = shape.layers, shape.width
    title = f"{layers} layers of RWKV-7"
    check_operators(
        graph,
        dict.fromkeys(("WKV7", "Tanh", "Relu", "ReduceL2", "Clip", "Div", "Neg", "ReduceSum"), layers)
        | {"Sigmoid": 4 * layers - 1, "LayerNormalization": 3 * layers + 1, "MatMul": 14 * layers - 1}
        | {"Mul": 19 * layers - 1, "Add": 16 * layers - 2, "Sub": 4 * layers - 1},
        title,
    )
    ranks = tuple(shape_of(graph, f"blocks.{layers - 1}.att.{path}1")[1] for path in PATHS)
    if max(ranks) > LONGEST_RANK:
        raise other(f"LoRA ranks of {ranks}", f"at most {LONGEST_RANK}")
    hidden = find_hidden(graph, f"blocks.{layers - 1}.ffn.key", HEAD)
    shapes = _matrix_shapes(width, hidden, ranks)
    vectors: list[Vector | None] = []
    matrices: list[Weight | None] = []
    for layer in range(layers):
        block = f"blocks.{layer}."
        absent = (None, *_ONLY_LATER) if layer == 0 else (None,)
        vectors += [None if name in absent else find_vector(graph, f"{block}{name}", width) for name in _VECTORS]
        for name in _MATRICES:
            if name is None or name in absent:
                matrices.append(None)
            else:
                matrices.append(find_matrix(graph, block + name, *shapes[name], path=name[-1] in "12"))
    vectors += [find_vector(graph, f"head.ln_out_{part}", width) for part in ("weight", "bias")]
    matrices.append(find_matrix(graph, "head.head", width, shape.vocabulary))
    parts = Parts(FAMILY, layers, width, hidden, shape.vocabulary, ranks, tuple(vectors), tuple(matrices))
    check_rest(graph, parts, _CONSTANTS, title)
    return parts


def _matrix_shapes(width: int, hidden: int, ranks: tuple[int, ...]) -> dict[str, tuple[int, int]]:
    shapes = {f"att.{name}": (width, width) for name in ("receptance", "key", "value", "output")}
    for path, rank in zip(PATHS, ranks, strict=True):
        shapes |= {f"att.{path}1": (width, rank), f"att.{path}2": (rank, width)}
    return shapes | {"ffn.key": (width, hidden), "ffn.value": (hidden, width)}
