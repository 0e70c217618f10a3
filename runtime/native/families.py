"""Which models the library computes: RWKV-7, RWKV-6, and HM v6.21."""

from __future__ import annotations

from runtime.native import rwkv6, rwkv7
from runtime.native.graph import Graph
from runtime.native.parts import Parts, other
from runtime.spec import GraphSpec

_FAMILIES = {family.OPERATOR: family.find_parts for family in (rwkv7, rwkv6)}


def find_parts(graph: Graph, spec: GraphSpec) -> Parts:
    """Return the parts of a step graph of any family.

    Raises:
        TargetUnavailable: it is none of them, and the message says why.
    """
    operator = spec.custom_ops[0] if len(spec.custom_ops) == 1 else ""
    if operator not in _FAMILIES:
        raise other(f"the operators {', '.join(spec.custom_ops) or 'of ONNX alone'}", " or ".join(_FAMILIES))
    return _FAMILIES[operator](graph, spec)
