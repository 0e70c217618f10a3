"""A torch module on the meta device -> an ONNX graph whose weights are read only when the file is written.

The module is traced without any data, so a 7B model costs no more memory than a tiny one; each initializer then becomes
a lazy tensor that loads, checks and transposes one weight of the checkpoint at a time.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
import torch

from export.ops import OPERATORS
from export.ops.common import DOMAIN, VERSION
from runtime.errors import ExportError

OPSET = 18
IR_VERSION = 10  # onnxruntime 1.23 (Python 3.10, JetPack 6) reads up to 11

WeightLoader = Callable[[str], np.ndarray]


def trace(
    module: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    outputs: Sequence[str],
    dynamic: Mapping[str, Mapping[int, torch.export.Dim]],
    translations: Mapping[Any, Callable[..., Any]] = MappingProxyType({}),
) -> ir.Model:
    """Trace `module` into an ONNX model whose initializers have no data yet.

    Args:
        module: on the meta device, in eval mode.
        inputs: example tensors by graph input name, in the order of `forward`, on the meta device.
        outputs: graph output names.
        dynamic: by input name, axis -> `torch.export.Dim`; axes not named are fixed.
        translations: torch operators besides ours, and what emits their nodes.

    Raises:
        ExportError: torch could not trace the module.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                module.eval(),
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=tuple(dict(dynamic.get(name, {})) for name in inputs),
                opset_version=OPSET,
                dynamo=True,
                optimize=False,
                verbose=False,
                custom_translation_table={
                    **{one.torch_op: one.translator() for one in OPERATORS.values()},
                    **translations,
                },
            )
        except torch.onnx.errors.OnnxExporterError as error:
            cause = error.__cause__ or error  # the exporter's own text is advice, and the same for every failure
            raise ExportError(f"torch could not trace {type(module).__name__}: {str(cause).splitlines()[0]}") from error
    assert program is not None
    return program.model


def fill(model: ir.Model, load: WeightLoader) -> None:
    """Give every parameter of a traced model its data, lazily: `load(parameter name)` returns a float32 array."""
    for name, value in model.graph.initializers.items():
        if value.const_value is None or _has_data(value.const_value):
            continue
        value.const_value = ir.LazyTensor(
            functools.partial(_load, load, name),
            dtype=ir.DataType.FLOAT,
            shape=ir.Shape(value.const_value.shape.numpy()),
            name=name,
            cache=False,
        )


def _load(load: WeightLoader, name: str) -> ir.TensorProtocol:
    return ir.Tensor(load(name), name=name)


def _has_data(tensor: ir.TensorProtocol) -> bool:
    raw = getattr(tensor, "raw", None)
    return not (isinstance(raw, torch.Tensor) and raw.is_meta)


def finish(model: ir.Model) -> None:
    """Optimise a filled model in place, strip tracing notes, and attach the bodies of the operators it uses."""
    onnxscript.optimizer.optimize(model, input_size_limit=4096, output_size_limit=65536)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.metadata_props.clear()
        node.doc_string = None
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "visualrwkv-edge", None
    for name in _used(model):
        body = OPERATORS[name].function(model.opset_imports[""])
        model.functions[body.identifier()] = body
        model.opset_imports[DOMAIN] = VERSION


def custom_ops(model: ir.Model) -> tuple[str, ...]:
    """Return the names of our operators used in a model, e.g. ("vrwkv::WKV7",)."""
    return tuple(f"{DOMAIN}::{name}" for name in _used(model))


def _used(model: ir.Model) -> list[str]:
    """Return the types of our nodes in a model's graph and subgraphs, e.g. ["WKV7"]."""
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return sorted({node.op_type for node in nodes if node.domain == DOMAIN})
