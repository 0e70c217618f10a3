"""The recurrences as nodes of a graph: what is written, and a traced module that uses them against torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor

from export.ops import OPERATORS
from export.ops.common import DOMAIN
from export.ops.wkv6 import wkv6
from export.ops.wkv7 import wkv7
from export.trace import custom_ops, fill, finish, trace
from tests.export.recurrences import INPUTS, save_alone

HEAD, WIDTH, VOCABULARY = 8, 16, 11


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_it_is_one_plain_onnx_node_with_a_body(tmp_path: Path, name: str) -> None:
    model = onnx.load(save_alone(name, tmp_path / "alone.onnx", head=HEAD))
    onnx.checker.check_model(model, full_check=True)
    (node,) = model.graph.node
    assert (node.domain, node.op_type) == (DOMAIN, name)
    assert tuple(node.input) == INPUTS[name]
    assert list(node.output) == ["y", "state_out"]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attributes == {"head_size": HEAD, "plugin_namespace": b"vrwkv", "plugin_version": b"1"}
    assert [(f.domain, f.name) for f in model.functions] == [(DOMAIN, name)]
    assert tuple(model.functions[0].input) == INPUTS[name]
    assert set(model.functions[0].attribute) == set(attributes)
    assert {(o.domain, o.version) for o in model.functions[0].opset_import} >= {("", 18)}
    assert model.ir_version == 10
    assert {(o.domain, o.version) for o in model.opset_import} >= {("", 18), (DOMAIN, 1)}


class Tiny(torch.nn.Module):
    """Token ids -> a recurrence per entry of `kinds` -> features; the state of all of them is [L, B, H, N, N]."""

    def __init__(self, kinds: tuple[str, ...]) -> None:
        super().__init__()
        self.kinds = kinds
        shapes = {"emb": (VOCABULARY, WIDTH), "mix": (len(kinds), 6, WIDTH, WIDTH), "bonus": (WIDTH // HEAD, HEAD)}
        for name, shape in shapes.items():
            self.register_parameter(name, torch.nn.Parameter(torch.empty(shape)))

    def forward(self, ids: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        x, states = self.emb[ids], []
        for layer, kind in enumerate(self.kinds):
            r, k, v, w, a, b = (x @ self.mix[layer, i] for i in range(6))
            if kind == "WKV6":
                y, out = wkv6(r, k, v, -torch.exp(w), self.bonus, state[layer], HEAD)
            elif kind == "WKV7":
                y, out = wkv7(r, -torch.sigmoid(w), k, v, -torch.sigmoid(a), torch.sigmoid(b), state[layer], HEAD)
            else:
                y, out = r * k, state[layer]
            x = x + y
            states.append(out)
        return x, torch.stack(states)


@pytest.mark.parametrize("kinds", [("WKV6", "WKV6"), ("WKV6", "WKV7"), ("none",)])
def test_a_traced_module_equals_torch(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    with torch.device("meta"):
        module = Tiny(kinds)
        ids, state = torch.empty(2, 3, dtype=torch.int64), torch.empty(len(kinds), 2, 2, HEAD, HEAD)
    batch, length = torch.export.Dim("B"), torch.export.Dim("T")
    model = trace(
        module, {"ids": ids, "state": state}, ("x", "out"), {"ids": {0: batch, 1: length}, "state": {1: batch}}
    )
    g = torch.Generator().manual_seed(0)
    weights = {name: 0.3 * torch.randn(p.shape, generator=g) for name, p in module.named_parameters()}
    fill(model, lambda name: weights[name].numpy())
    finish(model)
    used = sorted({kind for kind in kinds if kind in OPERATORS})
    assert custom_ops(model) == tuple(f"{DOMAIN}::{kind}" for kind in used)
    ir.save(model, tmp_path / "tiny.onnx")

    written = onnx.load(tmp_path / "tiny.onnx")
    onnx.checker.check_model(written, full_check=True)
    assert sorted(f.name for f in written.functions) == used, "a body that nothing uses, or a node without one"
    assert (DOMAIN in {o.domain for o in written.opset_import}) == bool(used)

    module = Tiny(kinds)
    module.load_state_dict(weights)
    session = ort.InferenceSession(str(tmp_path / "tiny.onnx"))
    for size in [(1, 1), (1, 2), (2, 16), (3, 33)]:
        ids = torch.randint(VOCABULARY, size, generator=g)
        state = torch.randn(len(kinds), size[0], 2, HEAD, HEAD, generator=g)
        with torch.no_grad():
            wanted = module(ids, state)
        found = session.run(None, {"ids": ids.numpy(), "state": state.numpy()})
        for array, exact in zip(found, wanted, strict=True):
            np.testing.assert_allclose(array, exact.numpy(), atol=1e-5 * float(exact.abs().max()), rtol=0)
