"""The WKV-6 node's body of standard operators, on onnxruntime, against the token-by-token recurrence in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from export.ops.wkv6 import wkv6
from tests.export.recurrences import Run, open_alone, save_alone

# Log decays a model can give: none, hardly any, usual, and -exp(w) of a large w, to where float32 itself overflows.
DECAYS = (0.0, -1e-6, -0.3, -6.0, -50.0, -95.0, -1e4, -1e30, -math.inf)
Open = Callable[[int, int], Run]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Open:
    """Return the graph of so many heads of such a size, made once."""
    graphs: dict[tuple[int, int], Run] = {}

    def get(heads: int, head: int) -> Run:
        if (heads, head) not in graphs:
            path = tmp_path_factory.mktemp("wkv6") / "wkv6.onnx"
            graphs[heads, head] = open_alone(save_alone("WKV6", path, heads=heads, head=head))
        return graphs[heads, head]

    return get


def inputs_of(
    batch: int, length: int, *, heads: int = 2, head: int = 64, seed: int = 0, one_key: bool = False
) -> list[Tensor]:
    """Random inputs, log decays from -1e-4 to -1e3; `one_key` repeats one key: identical image patches."""
    g = torch.Generator().manual_seed(seed)
    r, k, v, w = (torch.randn(batch, length, heads * head, generator=g) for _ in range(4))
    if one_key:
        k = k[:, :1].expand_as(k).contiguous()
    u = torch.randn(heads, head, generator=g)
    return [r, k, v, -torch.exp(2 * w - 1), u, torch.randn(batch, heads, head, head, generator=g)]


def assert_same(found: tuple[np.ndarray, np.ndarray], inputs: list[Tensor], head: int = 64) -> None:
    """Hold every element against float64, to 5e-6 of what it would be if nothing in its sum cancelled."""
    r, k, v, w, u, state = (x.double() for x in inputs)
    wanted = wkv6(r, k, v, w, u, state, head)
    bounds = wkv6(r.abs(), k.abs(), v.abs(), w, u.abs(), state.abs(), head)
    for name, array, exact, bound in zip(("y", "state_out"), found, wanted, bounds, strict=True):
        assert np.isfinite(array).all(), f"{name} is not finite"
        error = np.abs(array - exact.numpy())
        assert (error <= 5e-6 * bound.numpy() + 1e-16).all(), f"{name} is {(error / bound.numpy()).max():.1e} off"


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 63, 256, 577])
@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("heads", [1, 2])
def test_body_matches_the_recurrence(opened: Open, heads: int, batch: int, length: int) -> None:
    inputs = inputs_of(batch, length, heads=heads)
    assert_same(opened(heads, 64)(inputs), inputs)


@pytest.mark.parametrize("length", [1, 17, 577])
def test_repeated_keys(opened: Open, length: int) -> None:
    inputs = inputs_of(1, length, one_key=True)
    inputs[3] = inputs[3] * 1e-3  # hardly any decay: the state grows with every token
    assert_same(opened(2, 64)(inputs), inputs)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("length", [1, 2, 16, 65])
def test_any_decay(opened: Open, length: int, decay: float) -> None:
    r, k, v, w, u, state = inputs_of(2, length)
    inputs = [r, k, v, torch.full_like(w, decay), u, state]
    assert_same(opened(2, 64)(inputs), inputs)


@pytest.mark.parametrize("strong", [-50.0, -1e4, -1e30, -math.inf])
def test_mild_decay_after_a_strong_one_stays_exact(opened: Open, strong: float) -> None:
    """Differences of cumulative sums fail here: beside -1e4, float32 rounds a mild decay to three decimals."""
    r, k, v, w, u, state = inputs_of(1, 80)
    w = torch.where(torch.rand(w.shape, generator=torch.Generator().manual_seed(1)) < 0.2, strong, -0.01)
    inputs = [r, k, v, w, u, state]
    assert_same(opened(2, 64)(inputs), inputs)


@pytest.mark.parametrize("cuts", [(17, 47), (64,), (1,) * 64, (16, 48), (63, 1), (5, 1, 30, 28)])
@pytest.mark.parametrize("strong", [False, True])
def test_cutting_a_segment_changes_nothing(opened: Open, cuts: tuple[int, ...], strong: bool) -> None:
    inputs = inputs_of(1, 64, seed=1)
    if strong:
        inputs[3] = inputs[3] * 100
    run = opened(2, 64)
    assert_same(in_parts(run, inputs, cuts), inputs)
    whole, parts = run(inputs), in_parts(run, inputs, cuts)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5 * np.abs(one).max(), rtol=0)


def in_parts(run: Run, inputs: list[Tensor], cuts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Run segments of the given lengths one after the other, the state carried."""
    *series, u, state = inputs
    parts, start = [], 0
    for length in cuts:
        y, out = run([*(x[:, start : start + length].contiguous() for x in series), u, state])
        parts.append(y)
        state, start = torch.from_numpy(out), start + length
    return np.concatenate(parts, 1), state.numpy()


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 2),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    seed=st.integers(0, 2**31),
    decays=st.lists(st.sampled_from(DECAYS), min_size=1, max_size=4),
    scales=st.tuples(*(st.sampled_from((0.01, 1.0, 100.0)) for _ in range(4))),
)
def test_any_mixture(
    opened: Open, batch: int, lengths: list[int], seed: int, decays: list[float], scales: tuple[float, ...]
) -> None:
    r, k, v, w, u, state = inputs_of(batch, sum(lengths), head=8, seed=seed)
    choice = torch.randint(len(decays), w.shape, generator=torch.Generator().manual_seed(seed))
    w = torch.tensor(decays)[choice]
    inputs = [*(x * scale for x, scale in zip((r, k, v), scales, strict=False)), w, u, state * scales[3]]
    run = opened(2, 8)
    assert_same(run(inputs), inputs, head=8)
    assert_same(in_parts(run, inputs, tuple(lengths)), inputs, head=8)
