"""One recurrence alone as a graph: traced, finished, saved and run on onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor

from export.ops.wkv6 import wkv6
from export.ops.wkv7 import wkv7
from export.trace import finish, trace

Run = Callable[[Sequence[Tensor]], tuple[np.ndarray, np.ndarray]]
INPUTS = {"WKV6": ("r", "k", "v", "w", "u", "state"), "WKV7": ("r", "w", "k", "v", "a", "b", "state")}


class Wkv6(torch.nn.Module):
    def __init__(self, head: int) -> None:
        super().__init__()
        self.head = head

    def forward(self, r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return wkv6(r, k, v, w, u, state, self.head)


class Wkv7(torch.nn.Module):
    def __init__(self, head: int) -> None:
        super().__init__()
        self.head = head

    def forward(
        self, r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        return wkv7(r, w, k, v, a, b, state, self.head)


def save_alone(name: str, path: Path, *, heads: int = 2, head: int = 64) -> Path:
    """Write the graph of one recurrence ("WKV6" or "WKV7") whose B and T are free."""
    batch, length = torch.export.Dim("B"), torch.export.Dim("T")
    shapes = {"u": (heads, head), "state": (2, heads, head, head)}
    axes: dict[str, dict[int, torch.export.Dim]] = {"u": {}, "state": {0: batch}}
    names = INPUTS[name]
    model = trace(
        Wkv6(head) if name == "WKV6" else Wkv7(head),
        # One tensor each: torch takes one that is given twice for one input.
        {one: torch.empty(shapes.get(one, (2, 5, heads * head)), device="meta") for one in names},
        ("y", "state_out"),
        {one: axes.get(one, {0: batch, 1: length}) for one in names},
    )
    finish(model)
    ir.save(model, path)
    return path


def open_alone(path: Path) -> Run:
    """Open what `save_alone` wrote; the result takes the inputs in order and returns y and state_out."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options)
    names = [one.name for one in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> tuple[np.ndarray, np.ndarray]:
        y, state = session.run(None, dict(zip(names, (t.numpy() for t in inputs), strict=True)))
        return y, state

    return run
