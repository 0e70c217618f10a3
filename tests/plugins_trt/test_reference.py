"""The NumPy references mean what the exporter's operators mean."""

from __future__ import annotations

import numpy as np
import torch

from export.arch.hybrid import read_state as torch_read_state
from export.ops import wkv6 as torch_wkv6
from export.ops import wkv7 as torch_wkv7
from plugins_trt.read_state.reference import read_state
from plugins_trt.wkv6.reference import wkv6
from plugins_trt.wkv7.reference import wkv7
from tests.plugins_trt.series import wkv6_inputs, wkv7_inputs


def test_wkv7() -> None:
    inputs = wkv7_inputs("plain", 2, 9)
    for got, wanted in zip(wkv7(*inputs), torch_wkv7.wkv7(*map(torch.from_numpy, inputs), 64), strict=True):
        np.testing.assert_allclose(got, wanted.numpy(), rtol=0, atol=1e-10)


def test_wkv6() -> None:
    inputs = wkv6_inputs("strong decay", 2, 9)
    for got, wanted in zip(wkv6(*inputs), torch_wkv6.wkv6(*map(torch.from_numpy, inputs), 64), strict=True):
        np.testing.assert_allclose(got, wanted.numpy(), rtol=0, atol=1e-10)


def test_read_state() -> None:
    g = np.random.default_rng(0)
    q, gate, y = (g.standard_normal((2, 3, 128)) for _ in range(3))
    state = g.standard_normal((2, 2, 64, 64))
    found = torch_read_state(torch.from_numpy(q), torch.from_numpy(state)).numpy()
    amount = 1 / (1 + np.exp(-gate))
    np.testing.assert_allclose(read_state(q, amount, y, state), y * (1 - amount) + found * amount, rtol=0, atol=1e-10)
    amount = np.maximum(gate, 0)
    wanted = y * np.maximum(1 - amount, 0) + found * amount
    np.testing.assert_allclose(read_state(q, amount, y, state), wanted, rtol=0, atol=1e-10)
