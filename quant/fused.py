"""A tower's graph in the operators that onnxruntime's CPU provider has for it: `com.microsoft` contributions.

Torch traces attention, GELU and residual sums to a dozen plain nodes, each of which reads and writes what would fit no
cache. The fused ones compute the same: attention in blocks that never hold all scores (for SAM, whose scores have a
bias, one group of query rows), the others in one pass. Weights stay where they are, under their names.

Only for target "cpu": TensorRT takes the plain graph and fuses it itself. The operators are described in onnxruntime's
ContribOperators.md: MultiHeadAttention, BiasGelu, FastGelu, QuickGelu, SkipLayerNormalization.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from quant.graph import take_place

_MS = "com.microsoft"
_TANH = (math.sqrt(2 / math.pi), 0.044715)  # of the GELU's approximation


def fuse(model: ir.Model) -> int:
    """Rewrite a tower in place; return how many attentions it has. A graph without any is left as it is."""
    graph = model.graph
    found = sum(_attention(model, node) for node in _all(graph, "Softmax"))
    if not found:
        return 0
    for node in _all(graph, "Erf"):
        _gelu(node)
    for node in _all(graph, "Tanh"):
        _tanh_gelu(node)
    for node in _all(graph, "Sigmoid"):
        _quick_gelu(node)
    for node in _all(graph, "LayerNormalization"):
        _skip_norm(node)
    RemoveUnusedNodesPass()(model)
    model.opset_imports[_MS] = 1
    return found


def _all(graph: ir.Graph, kind: str) -> list[ir.Node]:
    return [node for node in graph if node.op_type == kind and node.domain == ""]


def _maker(value: ir.Value | None, *kinds: str) -> ir.Node | None:
    """The plain node that makes a value, if it is of one of these kinds."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.domain == "" and node.op_type in kinds else None


def _user(value: ir.Value, *kinds: str) -> ir.Node | None:
    """The one node that takes a value, if it is of one of these kinds."""
    users = [node for node, _ in value.uses()]
    alone = len(users) == 1 and not value.is_graph_output()
    return users[0] if alone and users[0].domain == "" and users[0].op_type in kinds else None


def _constant(value: ir.Value | None) -> float | None:
    """The number that a value always is."""
    tensor = value.const_value if value is not None else None
    return float(tensor.numpy().reshape(())) if tensor is not None and tensor.size == 1 else None


def _with_constant(node: ir.Node) -> tuple[ir.Value | None, float | None]:
    """Split a node of two inputs into the one that varies and the number."""
    first, second = node.inputs
    number = _constant(second)
    return (first, number) if number is not None else (second, _constant(first))


def _vector(node: ir.Node) -> tuple[ir.Value | None, ir.Value | None]:
    """Split an Add into what is added to, and a bias [C] that is a weight; (None, None) if there is none."""
    for value, other in ((node.inputs[1], node.inputs[0]), (node.inputs[0], node.inputs[1])):
        if value is not None and value.is_initializer() and value.shape is not None and len(value.shape) == 1:
            return other, value
    return None, None


def _fixed(value: ir.Value | None) -> list[int | None]:
    """A value's shape, None for the axes whose size the caller chooses."""
    dims = value.shape if value is not None and value.shape is not None else ()
    return [dim if isinstance(dim, int) else None for dim in dims]


def _perm(node: ir.Node | None) -> tuple[int, ...]:
    return tuple(node.attributes["perm"].as_ints()) if node is not None else ()


def _last_axis(node: ir.Node) -> bool:
    rank = len(_fixed(node.inputs[0]))
    return "axis" not in node.attributes or node.attributes["axis"].as_int() in (-1, rank - 1)


def _attention(model: ir.Model, softmax: ir.Node) -> bool:
    """softmax(q kᵀ · scale [+ bias]) v -> MultiHeadAttention."""
    weighted = _user(softmax.outputs[0], "MatMul")
    if weighted is None or weighted.inputs[0] is not softmax.outputs[0] or not _last_axis(softmax):
        return False
    product = _maker(softmax.inputs[0], "MatMul")
    if product is not None:
        return _plain(model, product, weighted)
    return _biased(softmax, weighted)


def _scaled(product: ir.Node) -> tuple[ir.Value | None, ir.Node | None, float | None]:
    """Take (q · scale) kᵀ apart: q, the transposition of k, scale."""
    scaled = _maker(product.inputs[0], "Mul")
    query, scale = _with_constant(scaled) if scaled is not None else (None, None)
    return query, _maker(product.inputs[1], "Transpose"), scale


def _plain(model: ir.Model, product: ir.Node, weighted: ir.Node) -> bool:
    """Attention over heads that were cut from [I, tokens, C] and are put together again."""
    query, keys, scale = _scaled(product)
    turned = (_maker(query, "Transpose"), keys, _maker(weighted.inputs[1], "Transpose"))
    if scale is None or [_perm(node) for node in turned] != [(0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)]:
        return False
    cut = [_maker(node.inputs[0], "Reshape") for node in turned if node is not None]
    back = _user(weighted.outputs[0], "Transpose")
    joined = _user(back.outputs[0], "Reshape") if back is not None else None
    heads = _fixed(turned[0].inputs[0])[2] if turned[0] is not None else None
    if joined is None or _perm(back) != (0, 2, 1, 3) or None in cut or heads is None:
        return False
    inputs: list[ir.Value | None] = [node.inputs[0] for node in cut if node is not None]
    inputs.append(_without_bias(inputs))
    attributes = {"num_heads": heads, "scale": scale}
    take_place(joined, ir.node("MultiHeadAttention", inputs, attributes, domain=_MS))
    return True


def _without_bias(inputs: list[ir.Value | None]) -> ir.Value | None:
    """Where q, k, v are the parts of one sum with a bias, let them be parts of what it was added to; return it."""
    split = _maker(inputs[0], "Split")
    if split is None or list(split.outputs) != inputs:
        return None
    total = _maker(split.inputs[0], "Add")
    product, bias = _vector(total) if total is not None else (None, None)
    if product is None or total is None or _user(total.outputs[0], "Split") is None:
        return None
    split.replace_input_with(0, product)
    return bias


def _biased(softmax: ir.Node, weighted: ir.Node) -> bool:
    """SAM's attention, [I * heads, tokens, D]: each head is an image of its own, with its bias of y plus that of x."""
    flat = _maker(softmax.inputs[0], "Reshape")
    both = _maker(flat.inputs[0], "Add") if flat is not None else None
    first = _maker(both.inputs[0], "Add") if both is not None else None
    shaped = _maker(first.inputs[0], "Reshape") if first is not None else None
    product = _maker(shaped.inputs[0], "MatMul") if shaped is not None else None
    if flat is None or both is None or first is None or product is None:
        return False
    query, keys, scale = _scaled(product)
    size = _fixed(softmax.inputs[0])
    if scale is None or keys is None or _perm(keys) != (0, 2, 1) or len(size) != 3 or None in size[1:]:
        return False
    graph = softmax.graph
    assert graph is not None
    shape = ir.Value(
        name=f"{softmax.outputs[0].name}_bias_shape",
        shape=ir.Shape((4,)),
        type=ir.TensorType(ir.DataType.INT64),
        const_value=ir.Tensor(np.array([-1, 1, *size[1:]], np.int64)),
    )
    graph.register_initializer(shape)
    bias = ir.node("Add", [first.inputs[1], both.inputs[1]])
    bias.outputs[0].name = f"{softmax.outputs[0].name}_bias"
    four = ir.node("Reshape", [bias.outputs[0], shape])
    four.outputs[0].name = f"{bias.outputs[0].name}_4"
    for node in (bias, four):
        graph.insert_before(weighted, node)
    inputs = [query, keys.inputs[0], weighted.inputs[1], None, None, four.outputs[0]]
    take_place(weighted, ir.node("MultiHeadAttention", inputs, {"num_heads": 1, "scale": scale}, domain=_MS))
    return True


def _activation(kind: str, source: ir.Value | None, last: ir.Node) -> None:
    """Put `kind` in the place of `last`, together with the bias that `source` is the sum with, if it is one."""
    total = _maker(source, "Add")
    x, bias = _vector(total) if total is not None else (None, None)
    if bias is None:
        inputs, kind = [source], {"BiasGelu": "Gelu"}.get(kind, kind)
    else:
        inputs = [x, bias]
    take_place(last, ir.node(kind, inputs, domain=_MS))


def _gelu(erf: ir.Node) -> None:
    """x · (0.5 · (1 + erf(x / √2))) -> BiasGelu."""
    divided = _maker(erf.inputs[0], "Div")
    source, root = _with_constant(divided) if divided is not None else (None, None)
    last = _halved(erf, source)
    if last is not None and root is not None and math.isclose(root, math.sqrt(2), rel_tol=1e-6):
        _activation("BiasGelu", source, last)


def _tanh_gelu(tanh: ir.Node) -> None:
    """x · (0.5 · (1 + tanh(√(2/π) (x + 0.044715 x³)))) -> FastGelu."""
    inner = _maker(tanh.inputs[0], "Mul")
    total, root = _with_constant(inner) if inner is not None else (None, None)
    polynomial = _maker(total, "Add")
    source, cubic = polynomial.inputs if polynomial is not None else (None, None)
    scaled = _maker(cubic, "Mul")
    cubed, factor = _with_constant(scaled) if scaled is not None else (None, None)
    power, last = _maker(cubed, "Pow"), _halved(tanh, source)
    if last is None or power is None or root is None or factor is None or _with_constant(power) != (source, 3):
        return
    if np.allclose((root, factor), _TANH, rtol=1e-6, atol=0):
        _activation("FastGelu", source, last)


def _halved(node: ir.Node, source: ir.Value | None) -> ir.Node | None:
    """The product of `source` and 0.5 · (1 + what a node makes), if that is all it is for."""
    plus = _user(node.outputs[0], "Add")
    half = _user(plus.outputs[0], "Mul") if plus is not None else None
    last = _user(half.outputs[0], "Mul") if half is not None else None
    if source is None or plus is None or half is None or last is None or source not in last.inputs:
        return None
    return last if _with_constant(plus)[1] == 1 and _with_constant(half)[1] == 0.5 else None


def _quick_gelu(sigmoid: ir.Node) -> None:
    """x · σ(1.702 x) -> QuickGelu."""
    scaled = _maker(sigmoid.inputs[0], "Mul")
    source, alpha = _with_constant(scaled) if scaled is not None else (None, None)
    last = _user(sigmoid.outputs[0], "Mul")
    if source is not None and alpha is not None and last is not None and source in last.inputs:
        take_place(last, ir.node("QuickGelu", [source], {"alpha": alpha}, domain=_MS))


def _skip_norm(norm: ir.Node) -> None:
    """LN(x + (y + bias)) -> SkipLayerNormalization, which hands out the sum as well."""
    total = _maker(norm.inputs[0], "Add")
    if total is None or len(norm.inputs) != 3 or not _last_axis(norm):
        return
    if any(value is None or value.is_initializer() for value in total.inputs):
        return
    shape = _fixed(total.outputs[0])
    if len(shape) != 3 or any(_fixed(value) != shape for value in total.inputs):  # or something is broadcast
        return
    x, y, bias = (*total.inputs, None)
    for one, other in ((x, y), (y, x)):
        inner = _maker(other, "Add")
        if inner is None or other is None or len(other.uses()) != 1:
            continue
        product, vector = _vector(inner)
        if vector is not None:
            x, y, bias = one, product, vector
            break
    graph, made = norm.graph, total.outputs[0]
    assert graph is not None
    new = ir.Node(
        _MS,
        "SkipLayerNormalization",
        [x, y, norm.inputs[1], norm.inputs[2], bias],
        [norm.attributes["epsilon"]],
        num_outputs=4,
    )
    for old, index in ((norm.outputs[0], 0), (made, 3)):
        value = new.outputs[index]
        value.name, value.shape, value.type = old.name, old.shape, old.type
    for index in (1, 2):
        new.outputs[index].name = ""
    graph.insert_before(total, new)
    for old, index in ((norm.outputs[0], 0), (made, 3)):
        ir.convenience.replace_all_uses_with(old, new.outputs[index], replace_graph_outputs=True)
    graph.remove([norm, total], safe=True)
