"""The recurrences as operators: their torch meaning, their ONNX nodes, and the nodes' function bodies.

`OPERATORS` is the one list of them: `export.trace` reads it, and knows none by name.
"""

from __future__ import annotations

import torch

from export.ops.common import Operator
from export.ops.wkv6 import WKV6
from export.ops.wkv7 import WKV7

OPERATORS = {
    operator.name: operator
    for operator in (
        Operator(torch.ops.vrwkv.wkv6.default, WKV6),
        Operator(torch.ops.vrwkv.wkv7.default, WKV7),
    )
}
