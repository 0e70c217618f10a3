"""Running a torch module whose weights do not fit: each submodule's parameters exist only while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from export.checkpoint import Checkpoint
from export.weights import WeightSource, load_weight


@contextmanager
def streamed(module: torch.nn.Module, sources: dict[str, WeightSource], checkpoint: Checkpoint) -> Iterator[None]:
    """Make a module that lives on the meta device callable, one submodule's float32 weights in memory at a time.

    Args:
        module: built on the meta device; it is there again afterwards.
        sources: where each of its parameters comes from.
        checkpoint: an open checkpoint.
    """
    handles = []
    for prefix, part in module.named_modules():
        if not part._parameters:
            continue
        empty = dict(part._parameters)

        def load(part: torch.nn.Module, *_: Any, prefix: str = prefix, names: tuple[str, ...] = tuple(empty)) -> None:
            for name in names:
                weight = load_weight(checkpoint, sources[f"{prefix}.{name}" if prefix else name])
                part._parameters[name] = torch.nn.Parameter(weight, requires_grad=False)

        def drop(part: torch.nn.Module, *_: Any, empty: dict[str, Any] = empty) -> None:
            part._parameters.update(empty)

        handles += [part.register_forward_pre_hook(load), part.register_forward_hook(drop, always_call=True)]
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
