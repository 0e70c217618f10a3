"""A torch module on the meta device -> an ONNX graph whose weights are read only when the file is written.

The module is traced without any data, so a 7B model costs no more memory than a tiny one; each initializer then becomes
a lazy tensor that loads, checks and transposes one weight of the checkpoint at a time.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
import torch
from onnxscript import values as onnxscript_values

from export.ops import DOMAIN, PLUGIN_ATTRIBUTES, WKV7, schema
from runtime.errors import ExportError

OPSET = 18
IR_VERSION = 10  # onnxruntime 1.23 (Python 3.10, JetPack 6) reads up to 11

WeightLoader = Callable[[str], np.ndarray]

_node = onnxscript_values.Op(onnxscript_values.Opset(DOMAIN, 1), "WKV7", schema())


def _emit_wkv7(r: Any, w: Any, k: Any, v: Any, a: Any, b: Any, state: Any, head_size: int) -> Any:
    """Translate the torch operator to one bare node; the body is attached after optimisation, or it is inlined away."""
    return _node(r, w, k, v, a, b, state, head_size=head_size, **PLUGIN_ATTRIBUTES)


def trace(
    module: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    outputs: Sequence[str],
    dynamic: Mapping[str, Mapping[int, torch.export.Dim]],
) -> ir.Model:
    """Trace `module` into an ONNX model whose initializers have no data yet.

    Args:
        module: on the meta device, in eval mode.
        inputs: example tensors by graph input name, in the order of `forward`, on the meta device.
        outputs: graph output names.
        dynamic: by input name, axis -> `torch.export.Dim`; axes not named are fixed.

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
                custom_translation_table={torch.ops.vrwkv.wkv7.default: _emit_wkv7},
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ExportError(f"torch could not trace {type(module).__name__}: {str(error).splitlines()[0]}") from error
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
    """Optimise a filled model in place, strip tracing notes, and attach the bodies of our operators."""
    onnxscript.optimizer.optimize(model, input_size_limit=4096, output_size_limit=65536)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.metadata_props.clear()
        node.doc_string = None
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "visualrwkv-edge", None
    if any(node.domain == DOMAIN for node in model.graph):
        body = ir.serde.deserialize_function(WKV7.to_function_proto())
        body.opset_imports[""] = model.opset_imports[""]
        model.functions[body.identifier()] = body
        model.opset_imports[DOMAIN] = 1


def custom_ops(model: ir.Model) -> tuple[str, ...]:
    """Return the names of our operators used in a model, e.g. ("vrwkv::WKV7",)."""
    return tuple(sorted({f"{node.domain}::{node.op_type}" for node in model.graph if node.domain == DOMAIN}))
