"""Is this graph the RWKV-7 that the C++ computes? If so, its sizes and its weights in order.

Nothing is guessed: the slots, the kinds and numbers of operators, the constants of the formulas and every weight's
shape must be those of `export/arch/rwkv7.py`, in any mixture of the weight formats of `quant`.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from runtime.errors import TargetUnavailable
from runtime.native.graph import Graph
from runtime.spec import GraphSpec, TensorSpec

HEAD = 64  # channels of a head: the C++ knows no other
PATHS = "wavg"  # LoRA paths, in the order of the C++
_MOST_LAYERS, _MOST_WIDTH, _MOST_HIDDEN, _MOST_VOCABULARY = 256, 1 << 15, 1 << 17, 1 << 20

# In the order of the enumerations in src/model.h.
_VECTORS = (
    *("ln1_weight", "ln1_bias", "ln2_weight", "ln2_bias"),
    *(f"att.x_{stream}" for stream in "rwkvag"),
    *("att.w0", "att.a0", "att.v0", "att.k_k", "att.k_a", "att.r_k"),
    *("att.ln_x_weight", "att.ln_x_bias", "ffn.x_k"),
)
_MATRICES = (
    *("att.w1", "att.a1", "att.v1", "att.g1"),
    *("att.receptance", "att.key", "att.value"),
    *("att.w2", "att.a2", "att.v2", "att.g2"),
    *("att.output", "ffn.key", "ffn.value"),
)
_ONLY_LATER = ("att.v0", "att.v1", "att.v2")  # layer 0 has no earlier value to mix with
_EPSILONS = {1e-5, 64e-5}
_CONSTANTS = {-math.exp(-0.5), 1.0, 1e-12}  # scale of the log decay; of the learning rate; least length of a key
_MOVING = {"Slice", "Squeeze", "Unsqueeze", "Concat", "Reshape", "Gather", "Shape", "Cast", "Constant", "Identity"}


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


@dataclass(frozen=True)
class Parts:
    """What the C++ wants to know. Names are of initializers; None where layer 0 has nothing."""

    layers: int
    width: int
    hidden: int
    vocabulary: int
    ranks: tuple[int, ...]  # of the w, a, v, g paths
    vectors: tuple[str | None, ...]
    matrices: tuple[Weight | None, ...]


def find_parts(graph: Graph, spec: GraphSpec) -> Parts:
    """Return the parts of a graph.

    Raises:
        TargetUnavailable: the graph is something else, and the message says what.
    """
    layers, width, vocabulary = _sizes(spec)
    _check_operators(graph, layers)
    ranks = tuple(_shape(graph, f"blocks.{layers - 1}.att.{path}1")[1] for path in PATHS)
    if max(ranks) > 8192:
        raise _other(f"LoRA ranks of {ranks}", "at most 8192")
    hidden = _weight(graph, f"blocks.{layers - 1}.ffn.key").n
    if hidden % HEAD or hidden > _MOST_HIDDEN:
        raise _other(f"an FFN {hidden} wide", f"a multiple of {HEAD}")
    shapes = _matrix_shapes(width, hidden, ranks)
    vectors: list[str | None] = []
    matrices: list[Weight | None] = []
    for layer in range(layers):
        for name in _VECTORS:
            absent = layer == 0 and name in _ONLY_LATER
            vectors.append(None if absent else _vector(graph, f"blocks.{layer}.{name}", width))
        for name in _MATRICES:
            absent = layer == 0 and name in _ONLY_LATER
            matrices.append(None if absent else _checked(graph, f"blocks.{layer}.{name}", *shapes[name]))
    vectors += [_vector(graph, f"head.ln_out_{part}", width) for part in ("weight", "bias")]
    matrices.append(_checked(graph, "head.head", width, vocabulary))
    _check_rest(graph, layers, vectors, matrices)
    return Parts(layers, width, hidden, vocabulary, ranks, tuple(vectors), tuple(matrices))


def _sizes(spec: GraphSpec) -> tuple[int, int, int]:
    inputs = {tensor.name: tensor for tensor in spec.inputs}
    outputs = {tensor.name: tensor for tensor in spec.outputs}
    if spec.custom_ops != ("vrwkv::WKV7",):
        raise _other(f"the operators {', '.join(spec.custom_ops) or 'of ONNX alone'}", "vrwkv::WKV7, of RWKV-7")
    slots = ("att_shift", "ffn_shift", "wkv")
    if set(inputs) != {"embeddings", *slots} or set(outputs) != {"logits", *(f"{slot}_out" for slot in slots)}:
        raise _other(f"the inputs {', '.join(inputs)}", f"embeddings, {', '.join(slots)}")
    wkv, logits = inputs["wkv"].shape, outputs["logits"].shape
    sizes = [size for size in (*wkv[:1], *wkv[2:], *logits[1:]) if isinstance(size, int)]
    if len(wkv) != 5 or len(logits) != 2 or len(sizes) != 5:
        raise _other(f"slots of shape {wkv} and logits of shape {logits}", "[L, B, H, N, N] and [B, V]")
    layers, heads, _, _, vocabulary = sizes
    width = heads * HEAD
    wanted: dict[str, tuple[int | str, ...]] = {
        "embeddings": ("B", "T", width),
        "att_shift": (layers, "B", width),
        "ffn_shift": (layers, "B", width),
        "wkv": (layers, "B", heads, HEAD, HEAD),
        "logits": ("B", vocabulary),
    }
    for name, shape in wanted.items():
        for tensor in (inputs.get(name), outputs.get(name), outputs.get(f"{name}_out")):
            _check_tensor(tensor, shape)
    if not (0 < layers <= _MOST_LAYERS and 0 < width <= _MOST_WIDTH and 0 < vocabulary <= _MOST_VOCABULARY):
        raise _other(f"{layers} layers, width {width}, {vocabulary} tokens", "a model of a size that exists")
    return layers, width, vocabulary


def _check_tensor(tensor: TensorSpec | None, shape: tuple[int | str, ...]) -> None:
    if tensor is not None and (tensor.shape != shape or tensor.dtype != "float32"):
        raise _other(f"{tensor.name} is {tensor.dtype} {list(tensor.shape)}", f"float32 {list(shape)}")


def _check_operators(graph: Graph, layers: int) -> None:
    """Compare what computes something with what the layers of this architecture compute."""
    found = Counter({name: count for name, count in graph.operators.items() if name not in _MOVING})
    found["MatMul"] += found.pop("MatMulNBits", 0)
    wanted = Counter(
        dict.fromkeys(("WKV7", "Tanh", "Relu", "ReduceL2", "Clip", "Div", "Neg", "ReduceSum"), layers)
        | {"Sigmoid": 4 * layers - 1, "LayerNormalization": 3 * layers + 1, "MatMul": 14 * layers - 1}
        | {"Mul": 19 * layers - 1, "Add": 16 * layers - 2, "Sub": 4 * layers - 1}
    )
    if found != wanted:
        names = sorted(name for name in found | wanted if found[name] != wanted[name])
        raise _other(
            ", ".join(f"{found[name]} x {name}" for name in names),
            ", ".join(f"{wanted[name]}" for name in names) + f" in {layers} layers of RWKV-7",
        )
    if not all(any(math.isclose(one, known, rel_tol=1e-6) for known in _EPSILONS) for one in graph.epsilons):
        raise _other(f"norms with epsilons {sorted(graph.epsilons)}", f"{sorted(_EPSILONS)}")


def _check_rest(graph: Graph, layers: int, vectors: list[str | None], matrices: list[Weight | None]) -> None:
    """Whatever float the graph has beside the weights must be a constant of the formulas."""
    used = {name for name in vectors if name}
    used |= {name for weight in matrices if weight for name in (weight.data, weight.scale, weight.zero)}
    for name, tensor in graph.tensors.items():
        if name in used or tensor.dtype in ("int32", "int64"):
            continue
        values = graph.read(name).astype(np.float64).reshape(-1) if tensor.nbytes < 4096 else np.zeros(0)
        if len(values) and all(any(math.isclose(x, known, rel_tol=1e-6) for known in _CONSTANTS) for x in set(values)):
            continue
        raise _other(f"the weight {name!r}", f"those of {layers} layers of RWKV-7")


def _matrix_shapes(width: int, hidden: int, ranks: tuple[int, ...]) -> dict[str, tuple[int, int]]:
    shapes = {f"att.{name}": (width, width) for name in ("receptance", "key", "value", "output")}
    for path, rank in zip(PATHS, ranks, strict=True):
        shapes |= {f"att.{path}1": (width, rank), f"att.{path}2": (rank, width)}
    return shapes | {"ffn.key": (width, hidden), "ffn.value": (hidden, width)}


def _vector(graph: Graph, name: str, width: int) -> str:
    shape = _shape(graph, name)
    if math.prod(shape) != width or graph.tensors[name].dtype != "float32":
        raise _other(f"{name} is {graph.tensors[name].dtype} {list(shape)}", f"{width} float32")
    return name


def _checked(graph: Graph, name: str, k: int, n: int) -> Weight:
    weight = _weight(graph, name)
    if (weight.k, weight.n) != (k, n):
        raise _other(f"{name} is {weight.k} x {weight.n}", f"{k} x {n}")
    if name.split(".")[-1][1:] in ("1", "2") and not weight.format.startswith("float"):
        raise _other(f"{name} is {weight.format}", "LoRA paths in float32 or float16")
    return weight


def _weight(graph: Graph, name: str) -> Weight:
    """Return the matrix `name` in whatever format it is stored; its parts have the sizes that the C++ will read."""
    for stored, kind in ((name, "float32"), (f"{name}_fp16", "float16")):
        tensor = graph.tensors.get(stored)
        if tensor is not None and tensor.dtype == kind and len(tensor.shape) == 2:
            return Weight(kind, *tensor.shape, block=0, data=stored)
    product = graph.products.get(f"{name}_codes")
    if product is None:
        raise _other(f"no matrix {name}", "float32, float16, or MatMulNBits with 4 or 8 bits")
    k, n, block, parts = product.k, product.n, product.block, product.inputs
    if product.bits not in (4, 8) or block not in (16, 32, 64, 128) or not (0 < k < 1 << 24 and 0 < n < 1 << 24):
        raise _other(f"{name} has {product.bits} bits in blocks of {block}", "4 or 8 bits, blocks of 16 to 128")
    blocks, halves = -(-k // block), product.bits == 4
    wanted = [("uint8", n * blocks * block * product.bits // 8), ("float32", n * blocks)]
    wanted += [("uint8", n * -(-blocks // 2))] if halves else []
    found = [graph.tensors.get(part) for part in parts]
    sizes = [(t.dtype, math.prod(t.shape)) for t in found if t is not None]
    if sizes != wanted:
        raise _other(f"{name} is stored as {sizes}", f"{wanted}")
    return Weight("int4" if halves else "int8", k, n, block, *parts)


def _shape(graph: Graph, name: str) -> tuple[int, ...]:
    tensor = graph.tensors.get(name) or graph.tensors.get(f"{name}_fp16")
    if tensor is None or not tensor.shape or 0 in tensor.shape:
        raise _other(f"no weight {name}", "the names of export/arch/rwkv7.py")
    return tensor.shape if len(tensor.shape) > 1 else (1, *tensor.shape)


def _other(found: str, wanted: str) -> TargetUnavailable:
    return TargetUnavailable(
        f"the native step does not know this graph: {found}", wanted=wanted, hint='device="onnxruntime" runs it'
    )
