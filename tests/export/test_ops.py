"""The WKV-7 node's body of standard operators, on onnxruntime, against the token-by-token recurrence in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor

from export.ops import DOMAIN, wkv7
from export.trace import finish, trace

HEAD = 64
NAMES = ("r", "w", "k", "v", "a", "b", "state")
Run = Callable[[list[Tensor]], tuple[np.ndarray, np.ndarray]]


class Wkv(torch.nn.Module):
    def forward(
        self, r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        return wkv7(r, w, k, v, a, b, state, HEAD)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    batch, length = torch.export.Dim("B"), torch.export.Dim("T")
    inputs = {name: torch.empty(2, 5, 2 * HEAD, device="meta") for name in NAMES[:6]}
    inputs["state"] = torch.empty(2, 2, HEAD, HEAD, device="meta")
    dynamic = {**{name: {0: batch, 1: length} for name in NAMES[:6]}, "state": {0: batch}}
    model = trace(Wkv(), inputs, ("y", "state_out"), dynamic)
    finish(model)
    path = tmp_path_factory.mktemp("wkv") / "wkv.onnx"
    ir.save(model, path)
    return path


@pytest.fixture(scope="module")
def run(model_file: Path) -> Run:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(model_file), options)

    def call(inputs: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
        y, state = session.run(None, dict(zip(NAMES, (t.numpy() for t in inputs), strict=True)))
        return y, state

    return call


def inputs_of(batch: int, length: int, *, constant_key: bool = False, seed: int = 0) -> list[Tensor]:
    """Random inputs; `constant_key` repeats one key with hardly any decay: identical image patches."""
    g = torch.Generator().manual_seed(seed)
    r, w, k, v, key = (torch.randn(batch, length, 2, HEAD, generator=g) for _ in range(5))
    if constant_key:
        key = key[:, :1].expand_as(key)
    kappa = torch.nn.functional.normalize(key, dim=-1)
    decay = -0.6065 * torch.sigmoid(2 * w - (4 if constant_key else 0))
    rate = torch.sigmoid(torch.randn(kappa.shape, generator=g) + (3 if constant_key else 0))
    flat = [t.reshape(batch, length, -1).contiguous() for t in (r, decay, k, v, -kappa, kappa * rate)]
    return [*flat, torch.randn(batch, 2, HEAD, HEAD, generator=g)]


def test_it_is_one_plain_onnx_node_with_a_body(model_file: Path) -> None:
    model = onnx.load(model_file)
    onnx.checker.check_model(model, full_check=True)
    (node,) = (n for n in model.graph.node if n.domain == DOMAIN)
    assert node.op_type == "WKV7"
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attributes == {"head_size": HEAD, "plugin_namespace": b"vrwkv", "plugin_version": b"1"}
    assert [(f.domain, f.name) for f in model.functions] == [(DOMAIN, "WKV7")]
    assert model.ir_version == 10
    assert {(o.domain, o.version) for o in model.opset_import} >= {("", 18), (DOMAIN, 1)}


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 32, 33, 63, 65, 256])
@pytest.mark.parametrize("constant_key", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_body_matches_the_recurrence(run: Run, batch: int, length: int, constant_key: bool) -> None:
    inputs = inputs_of(batch, length, constant_key=constant_key)
    wanted_y, wanted_state = wkv7(*(t.double() for t in inputs), HEAD)
    y, state = run(inputs)
    scale = float(wanted_y.abs().max())
    np.testing.assert_allclose(y, wanted_y.numpy(), atol=2e-6 * scale, rtol=0)
    np.testing.assert_allclose(state, wanted_state.numpy(), atol=2e-5, rtol=0)


@pytest.mark.parametrize("constant_key", [False, True])
@pytest.mark.parametrize("cuts", [(17, 47), (64,), (1,) * 64, (16, 48), (63, 1)])
def test_cutting_a_segment_changes_nothing(run: Run, cuts: tuple[int, ...], constant_key: bool) -> None:
    *series, state = inputs_of(1, 64, constant_key=constant_key, seed=1)
    whole_y, whole_state = run([*series, state])
    parts, start = [], 0
    for length in cuts:
        y, out = run([*(t[:, start : start + length].contiguous() for t in series), state])
        parts.append(y)
        state, start = torch.from_numpy(out), start + length
    np.testing.assert_allclose(np.concatenate(parts, 1), whole_y, atol=1e-4, rtol=0)
    np.testing.assert_allclose(state.numpy(), whole_state, atol=2e-5, rtol=0)


def test_extreme_decay_stays_finite(run: Run) -> None:
    r, w, k, v, a, b, state = inputs_of(1, 65)
    for decay in (0.0, -0.6065):
        y, out = run([r, torch.full_like(w, decay), k, v, a, b, state])
        assert np.isfinite(y).all()
        assert np.isfinite(out).all()
