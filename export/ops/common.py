"""What the recurrences share: their ONNX domain, and the way from a torch operator to a bare node and its body."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir
import onnxscript
import torch
from onnxscript import values as onnxscript_values

DOMAIN = "vrwkv"
VERSION = 1
PLUGIN_ATTRIBUTES = {"plugin_namespace": DOMAIN, "plugin_version": "1"}  # how TensorRT finds the plugin
OUTPUTS = ("y", "state_out")
VRWKV = onnxscript_values.Opset(DOMAIN, VERSION)


@dataclass(frozen=True)
class Operator:
    """A recurrence in its two forms; the node's type and inputs are those of its body."""

    torch_op: torch._ops.OpOverload
    body: onnxscript.OnnxFunction

    @property
    def name(self) -> str:
        """Return the node's type, e.g. "WKV7"."""
        return str(self.body.name)

    @property
    def schema(self) -> onnx.defs.OpSchema:
        """Return the ONNX schema, which the exporter needs to place the bare node: float32, and three attributes."""
        one = onnx.defs.OpSchema.FormalParameter
        attribute, kinds = onnx.defs.OpSchema.Attribute, onnx.defs.OpSchema.AttrType
        return onnx.defs.OpSchema(
            self.name,
            DOMAIN,
            VERSION,
            inputs=[one(name, "T") for name in self.body.to_function_proto().input],
            outputs=[one(name, "T") for name in OUTPUTS],
            type_constraints=[("T", ["tensor(float)"], "float32 only")],
            attributes=[
                attribute("head_size", kinds.INT, "channels per head", required=True),
                *(attribute(name, kinds.STRING, "selects the plugin", required=True) for name in PLUGIN_ATTRIBUTES),
            ],
        )

    def translator(self) -> Callable[..., Any]:
        """Return what turns the torch call into one bare node; a body given here already would be inlined away."""
        node = onnxscript_values.Op(VRWKV, self.name, self.schema)

        def emit(*arguments: Any) -> Any:
            *tensors, head_size = arguments
            return node(*tensors, head_size=head_size, **PLUGIN_ATTRIBUTES)

        return emit  # a plain function: the exporter leaves a mark on it, which a bound method refuses

    def function(self, opset: int) -> ir.Function:
        """Return the body as a model-local function whose standard operators are those of `opset`."""
        function = ir.serde.deserialize_function(self.body.to_function_proto())
        function.opset_imports[""] = opset
        return function
