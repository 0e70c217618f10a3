"""The WKV-7 node's body of standard operators, on onnxruntime, against the token-by-token recurrence in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from export.ops.wkv7 import wkv7
from tests.export.recurrences import Run, open_alone, save_alone

HEAD = 64


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return open_alone(save_alone("WKV7", tmp_path_factory.mktemp("wkv7") / "wkv7.onnx", head=HEAD))


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
