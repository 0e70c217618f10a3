"""Muon: momentum whose matrices are made orthogonal by Newton-Schulz steps (Jordan et al., 2024)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic Newton-Schulz


def orthogonalised(x: Tensor, steps: int = 5) -> Tensor:
    """[n, a, b] with a <= b -> the same shape with singular values near 1; bf16 is enough and fast."""
    p, q, r = COEFFICIENTS
    x = (x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)).bfloat16()
    for _ in range(steps):
        gram = x @ x.mT
        x = p * x + (q * gram + r * gram @ gram) @ x
    return x.float()


class Muon(torch.optim.Optimizer):
    """For matrices only; matrices of equal shape are orthogonalised in one batch."""

    def __init__(self, params: Any, lr: float = 0.01, momentum: float = 0.95, decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update."""
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[tuple[Tensor, Tensor, bool]]] = defaultdict(list)
            for p in (p for p in group["params"] if p.grad is not None):
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - group["momentum"])
                update, tall = p.grad.lerp(mean, group["momentum"]), p.shape[0] > p.shape[1]
                shapes[tuple(sorted(p.shape))].append((p, update.mT if tall else update, tall))
            for members in shapes.values():
                for (p, _, tall), u in zip(
                    members, orthogonalised(torch.stack([u for _, u, _ in members])), strict=True
                ):
                    scale = group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5
                    p.mul_(1 - group["lr"] * group["decay"]).add_(u.mT if tall else u, alpha=-scale)
