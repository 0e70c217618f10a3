"""Blocks traced once: the graph computes what the module does, and what tracing it whole would give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from export.repeat import trace_repeated
from export.trace import fill, finish, trace
from runtime.errors import ExportError

SIZES = {"B": (2, 3, 64), "T": (17, 23, 1024)}
INPUTS: dict[str, tuple[int | str, ...]] = {"x": ("B", "T", 8), "state": (3, "B", 8)}


class Layer(nn.Module):
    def __init__(self, first: bool = False, size: int = 8) -> None:
        super().__init__()
        self.first = first
        self.weight = nn.Parameter(torch.empty(size, size))

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.tanh(x @ self.weight) + state[:, None]
        return (x + 1 if self.first else x), x[:, -1] * 2


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(first=True), Layer(), Layer()])
        self.last = nn.Parameter(torch.empty(8))

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        states = []
        for layer, one in zip(self.layers, state.unbind(), strict=True):
            x, one = layer(x, one)
            states.append(one)
        return x * self.last, torch.stack(states)


def weights_of(module: nn.Module) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {name: rng.standard_normal(p.shape).astype(np.float32) / 3 for name, p in module.named_parameters()}


def run(model: ir.Model, weights: dict[str, np.ndarray], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    fill(model, lambda name: weights[name])
    finish(model)
    session = ort.InferenceSession(ir.serde.serialize_model(model).SerializeToString())
    return list(session.run(None, feeds))


def traced(module: nn.Module) -> ir.Model:
    return trace_repeated(module, INPUTS, dict.fromkeys(INPUTS, torch.float32), ("y", "state_out"), SIZES)


def test_it_computes_what_the_module_does(tmp_path: Path) -> None:
    with torch.device("meta"):
        module = Model()
    weights = weights_of(module)
    rng = np.random.default_rng(4)
    for batch, length in ((1, 1), (2, 17), (3, 5)):
        feeds = {
            "x": rng.standard_normal((batch, length, 8)).astype(np.float32),
            "state": rng.standard_normal((3, batch, 8)).astype(np.float32),
        }
        found = run(traced(module), weights, feeds)
        real = Model()
        real.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
        with torch.no_grad():
            wanted = real(torch.from_numpy(feeds["x"]), torch.from_numpy(feeds["state"]))
        for ours, theirs in zip(found, wanted, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)


def test_every_weight_keeps_its_name_and_every_placeholder_is_replaced() -> None:
    with torch.device("meta"):
        module = Model()
    model = traced(module)
    assert set(model.graph.initializers) >= set(weights_of(module))
    assert all(node.op_type != "Block" for node in model.graph)
    assert "forward" not in vars(module.layers[0])  # the modules are themselves again


def test_only_distinct_kinds_are_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    import export.repeat

    calls = []

    def counted(module: nn.Module, *arguments: object) -> ir.Model:
        calls.append(type(module).__name__)
        return trace(module, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(export.repeat, "trace", counted)
    monkeypatch.setattr(export.repeat, "_traced", {})
    with torch.device("meta"):
        module = Model()
    traced(module)
    assert calls == ["Model", "Layer", "Layer"]  # the first layer differs from the two others
    traced(module)
    assert calls[3:] == ["Model"]  # and both kinds are known by now


class Doubling(nn.Module):
    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([x, x], -1), state


def test_a_block_that_changes_shapes_is_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Doubling()])

        def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            x, one = self.layers[0](x, state[0])
            return x, one[None]

    with pytest.raises(ExportError, match=r"layers\.0 makes"):
        traced(Odd())


def test_a_block_used_twice_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Layer()])

        def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            for _ in range(2):
                x, one = self.layers[0](x, state[0])
            return x, one[None]

    with torch.device("meta"):
        module = Twice()
    with pytest.raises(ExportError, match=r"2\.0 times"):
        traced(module)
