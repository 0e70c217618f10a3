"""Tracing a deep model at the cost of a shallow one: blocks that differ in their weights only are traced once.

A model's blocks are the elements of its `nn.ModuleList`s. The model is traced with every block replaced by one
placeholder operator; one block of each kind is traced by itself; then its nodes are copied into the place of every
placeholder, under that block's weights. The result is the graph that tracing the whole model would give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from export.ops.common import DOMAIN
from export.trace import trace
from runtime.errors import ExportError

Shapes = list[tuple[int, ...]]

_KEPT = 16  # traced blocks, which hold no weights: the next export of a model of the same sizes finds them
_traced: dict[str, ir.Model] = {}


@torch.library.custom_op("vrwkv::block", mutates_args=())
def placeholder(inputs: list[Tensor], outputs: int, name: str) -> list[Tensor]:
    """Stand for the block `name`; its outputs have the shapes of its first inputs."""
    raise ExportError(f"the placeholder of {name} was run", wanted="to be replaced while the model is traced")


@placeholder.register_fake
def _(inputs: list[Tensor], outputs: int, name: str) -> list[Tensor]:
    return [torch.empty_like(x) for x in inputs[:outputs]]


@dataclass
class _Block:
    """One block of the model, and what it is called with for two sizes of every dynamic axis."""

    module: nn.Module
    inputs: tuple[Shapes, Shapes]
    outputs: int

    @property
    def kind(self) -> str:
        """Equal for blocks whose graphs differ in their weights only."""
        return f"{_kind(self.module)} {self.inputs}"


def trace_repeated(
    module: nn.Module,
    inputs: Mapping[str, tuple[int | str, ...]],
    dtypes: Mapping[str, torch.dtype],
    outputs: Sequence[str],
    sizes: Mapping[str, tuple[int, int, int]],
) -> ir.Model:
    """Trace a module as `export.trace.trace` does, its repeated blocks once.

    Args:
        module: on the meta device.
        inputs: shape by graph input name, in the order of `forward`, with letters for dynamic axes.
        dtypes: by graph input name.
        outputs: graph output names.
        sizes: by letter: two different example sizes and the largest allowed one.

    Raises:
        ExportError: torch could not trace the module, or a block's outputs do not look like its first inputs.
    """
    examples = [_examples(inputs, dtypes, {k: size[i] for k, size in sizes.items()}) for i in (0, 1)]
    blocks = _observe(module, [list(example.values()) for example in examples])
    dims = {letter: torch.export.Dim(letter, min=1, max=most) for letter, (_, _, most) in sizes.items()}
    dynamic = {
        name: {axis: dims[size] for axis, size in enumerate(shape) if isinstance(size, str)}
        for name, shape in inputs.items()
    }
    with _replaced(blocks):
        model = trace(module, examples[0], outputs, dynamic, {torch.ops.vrwkv.block.default: _emit})
    for node in list(model.graph):
        if node.domain == DOMAIN and node.op_type == "Block":
            name = node.attributes["name"].as_string()
            block = blocks[name]
            if block.kind not in _traced:
                _traced[block.kind] = _trace_block(block, sizes)
            _splice(model, node, _traced[block.kind], name)
    while len(_traced) > _KEPT:
        del _traced[next(iter(_traced))]
    return model


def _examples(
    inputs: Mapping[str, tuple[int | str, ...]], dtypes: Mapping[str, torch.dtype], sizes: Mapping[str, int]
) -> dict[str, Tensor]:
    return {
        name: torch.empty([sizes[s] if isinstance(s, str) else s for s in shape], dtype=dtypes[name], device="meta")
        for name, shape in inputs.items()
    }


def _observe(module: nn.Module, runs: list[list[Tensor]]) -> dict[str, _Block]:
    """Run the module on the meta device and note what its blocks take and return."""
    names = {
        f"{path}.{index}": block
        for path, parts in module.named_modules()
        if isinstance(parts, nn.ModuleList)
        for index, block in parts.named_children()
    }
    outer = {n: b for n, b in names.items() if not any(n.startswith(f"{other}.") for other in names)}
    seen: dict[str, list[tuple[Shapes, Shapes]]] = {name: [] for name in outer}
    handles = [
        block.register_forward_hook(
            lambda _, args, out, name=name: seen[name].append((_shapes(args), _shapes(_as_tuple(out))))
        )
        for name, block in outer.items()
    ]
    try:
        with torch.no_grad():
            for run in runs:
                module.eval()(*run)
    finally:
        for handle in handles:
            handle.remove()
    blocks = {}
    for name, calls in seen.items():
        if len(calls) != len(runs):
            raise ExportError(f"{name} is called {len(calls) / len(runs)} times", wanted="blocks that are used once")
        for given, made in calls:
            if made != given[: len(made)]:
                raise ExportError(f"{name} makes {made} of {given}", wanted="outputs with the shapes of the inputs")
        blocks[name] = _Block(outer[name], (calls[0][0], calls[1][0]), len(calls[0][1]))
    return blocks


def _shapes(tensors: Sequence[Tensor]) -> Shapes:
    return [tuple(tensor.shape) for tensor in tensors]


def _as_tuple(made: Any) -> tuple[Tensor, ...]:
    return made if isinstance(made, tuple) else (made,)


def _kind(module: nn.Module) -> str:
    own = {k: v for k, v in vars(module).items() if not k.startswith("_") and k != "training"}
    weights = {name: tuple(p.shape) for name, p in module.named_parameters(recurse=False)}
    parts = {name: _kind(part) for name, part in module.named_children()}
    return f"{type(module).__qualname__}{own}{weights}{parts}"


@contextmanager
def _replaced(blocks: Mapping[str, _Block]) -> Iterator[None]:
    """Let every block be a placeholder."""

    def stand_in(name: str, outputs: int) -> Callable[..., Any]:
        def forward(*inputs: Tensor) -> Any:
            made = placeholder(list(inputs), outputs, name)
            return tuple(made) if outputs > 1 else made[0]

        return forward

    for name, block in blocks.items():
        block.module.forward = stand_in(name, block.outputs)
    try:
        yield
    finally:
        for block in blocks.values():
            del block.module.forward


def _emit(inputs: Sequence[Any], outputs: int, name: str) -> Any:
    """Translate a placeholder to one node."""
    from onnxscript import values as onnxscript_values

    schema = _schema(len(inputs), outputs)
    made = onnxscript_values.Op(onnxscript_values.Opset(DOMAIN, 1), "Block", schema)(*inputs, name=name)
    return made if isinstance(made, (tuple, list)) else (made,)


def _schema(inputs: int, outputs: int) -> Any:
    import onnx

    formal, kinds = onnx.defs.OpSchema.FormalParameter, onnx.defs.OpSchema.AttrType
    return onnx.defs.OpSchema(
        "Block",
        DOMAIN,
        1,
        inputs=[formal(f"x{i}", "T") for i in range(inputs)],
        outputs=[formal(f"y{i}", "T") for i in range(outputs)],
        type_constraints=[("T", ["tensor(float)"], "float32 only")],
        attributes=[onnx.defs.OpSchema.Attribute("name", kinds.STRING, "the block", required=True)],
    )


def _trace_block(block: _Block, sizes: Mapping[str, tuple[int, int, int]]) -> ir.Model:
    """Trace one block by itself; axes that changed alike in the two runs share a dimension."""
    most = max(largest for _, _, largest in sizes.values())
    dims: dict[tuple[int, int], Any] = {}
    examples, dynamic = {}, {}
    for index, (first, second) in enumerate(zip(*block.inputs, strict=True)):
        name = f"input{index}"
        axes = {axis: pair for axis, pair in enumerate(zip(first, second, strict=True)) if pair[0] != pair[1]}
        for pair in axes.values():
            dims.setdefault(pair, torch.export.Dim(f"d{len(dims)}", min=1, max=most * 64))
        examples[name] = torch.empty(first, device="meta")
        dynamic[name] = {axis: dims[pair] for axis, pair in axes.items()}
    return trace(block.module, examples, [f"output{index}" for index in range(block.outputs)], dynamic)


def _splice(model: ir.Model, node: ir.Node, body: ir.Model, name: str) -> None:
    """Put a copy of `body` in the place of a placeholder, its weights and values renamed after the block."""
    values: dict[ir.Value | None, ir.Value | None] = {None: None}
    values.update(zip(body.graph.inputs, node.inputs, strict=True))
    for weight, value in body.graph.initializers.items():
        copy = ir.Value(name=f"{name}.{weight}", shape=value.shape, type=value.type, const_value=value.const_value)
        model.graph.register_initializer(copy)
        values[value] = copy
    for old in body.graph:
        new = ir.Node(
            old.domain,
            old.op_type,
            [values[value] for value in old.inputs],
            list(old.attributes.values()),
            overload=old.overload,
            num_outputs=len(old.outputs),
        )
        for before, after in zip(old.outputs, new.outputs, strict=True):
            after.name, after.shape, after.type = f"{name}.{before.name}", before.shape, before.type
            values[before] = after
        model.graph.insert_before(node, new)
    made = [values[value] for value in body.graph.outputs]
    for before, result in zip(node.outputs, made, strict=True):
        assert result is not None
        ir.convenience.replace_all_uses_with(before, result, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
    model.opset_imports.update(body.opset_imports)
