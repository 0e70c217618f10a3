"""Which checkpoint tensors make up a module's parameter, and in which layout.

Modules declare their parameters together with where they come from, so that they can be built on the meta
device, checked against a checkpoint by name and shape, and filled one tensor at a time. Matrices are kept
[in, out] and applied as `x @ W`: the ONNX graph then has named MatMul initializers, which every quantising
tool understands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from export.checkpoint import Checkpoint
from runtime.errors import CheckpointError, ExportError

_FINITE_CHUNK = 1 << 22

Layout = Literal["as_is", "transpose", "positions", "tokens", "relative", "pooling"]


@dataclass(frozen=True)
class WeightSource:
    """Where a parameter of `shape` comes from.

    Layouts (several keys of the first two are joined along the last axis, e.g. separate q, k, v):
        as_is: stored in the same order; axes of length 1 do not matter.
        transpose: stored [out, in].
        positions: stored [.., rows, C], on a square grid that is resampled to `shape` = [cells, C] if it
            differs; a class position in front is dropped.
        tokens: class token and registers, [rows, C]; a third key, a position table, adds its first row to the
            class token.
        relative: SAM's table [2 S - 1, D], gathered into `shape` = [S, D, S]: entry [y, :, y'] is row y - y'
            + S - 1.
        pooling: no key; the matrix of adaptive average pooling, `shape` = [pooled, side].
    """

    keys: tuple[str, ...]
    layout: Layout
    shape: tuple[int, ...]

    def mismatches(self, shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, str]]:
        """Return (key, wanted shape) of the stored tensors that exist but do not fit."""
        return [
            (key, wanted)
            for index, key in enumerate(self.keys)
            if key in shapes and (wanted := self._wanted(index, shapes[key]))
        ]

    def _wanted(self, index: int, stored: tuple[int, ...]) -> str:
        """Return the shape that key `index` should have where `stored` is another, else ""."""
        squeezed = tuple(axis for axis in stored if axis != 1)
        if self.layout == "positions":
            rows = math.prod(stored[:-1])
            fits = bool(stored) and stored[-1] == self.shape[-1] and _grid(rows) > 0
            return "" if fits else f"[1, n * n, {self.shape[-1]}]"
        if self.layout == "tokens":
            rows = math.prod(stored[:-1])
            fits = bool(stored) and stored[-1] == self.shape[-1] and rows >= 1
            fits = fits and (index == 2 or rows == (1 if index == 0 else self.shape[0] - 1))
            return "" if fits else f"[1, {1 if index == 0 else self.shape[0] - 1}, {self.shape[-1]}]"
        if self.layout == "relative":
            wanted: tuple[int, ...] = (2 * self.shape[0] - 1, self.shape[1])
        else:
            wanted = (*self.shape[:-1], self.shape[-1] // len(self.keys))
            wanted = wanted[::-1] if self.layout == "transpose" else wanted
        return "" if squeezed == tuple(axis for axis in wanted if axis != 1) else str(list(wanted))


class Loadable(nn.Module):
    """A module whose parameters know their source."""

    def __init__(self) -> None:
        super().__init__()
        self._own_sources: dict[str, WeightSource] = {}

    def declare(self, name: str, shape: tuple[int, ...], *keys: str, layout: Layout = "as_is") -> None:
        """Add an uninitialised float32 parameter `name` that is made from checkpoint tensors `keys`."""
        self.register_parameter(name, nn.Parameter(torch.empty(shape, dtype=torch.float32), requires_grad=False))
        self._own_sources[name] = WeightSource(keys, layout, shape)

    def declare_norm(self, name: str, width: int, prefix: str) -> None:
        """Add `{name}_weight` and `{name}_bias` [width] from `{prefix}weight` and `{prefix}bias`."""
        self.declare(f"{name}_weight", (width,), f"{prefix}weight")
        self.declare(f"{name}_bias", (width,), f"{prefix}bias")

    def declare_linear(self, name: str, inputs: int, outputs: int, prefixes: Sequence[str]) -> None:
        """Add `{name}_weight` [inputs, outputs] and `{name}_bias` [outputs]; several prefixes are joined."""
        self.declare(f"{name}_weight", (inputs, outputs), *(f"{p}weight" for p in prefixes), layout="transpose")
        self.declare(f"{name}_bias", (outputs,), *(f"{p}bias" for p in prefixes))

    def sources(self) -> dict[str, WeightSource]:
        """Return the source of every parameter of this module and those inside it, by parameter name."""
        return {
            f"{path}.{name}" if path else name: source
            for path, module in self.named_modules()
            if isinstance(module, Loadable)
            for name, source in module._own_sources.items()
        }


def load_weight(checkpoint: Checkpoint, source: WeightSource) -> torch.Tensor:
    """Return a parameter: float32, contiguous, in the module's layout, perhaps mapped (don't write to it).

    Raises:
        CheckpointError: a tensor is missing, has another shape, or holds NaN or Inf.
        ExportError: a parameter got a shape it should not have (an error in this exporter).
    """
    tensors = [finite(checkpoint, key) for key in source.keys]
    wrong = source.mismatches({key: tuple(tensor.shape) for key, tensor in zip(source.keys, tensors, strict=True)})
    for key, wanted in wrong:
        raise CheckpointError(f"{key} has shape {list(checkpoint.tensor(key).shape)}", wanted=wanted)
    made = _make(source, tensors).to(torch.float32).contiguous()
    if tuple(made.shape) != source.shape:
        raise ExportError(f"{source.keys} became {tuple(made.shape)}", wanted=str(source.shape))
    return made


def finite(checkpoint: Checkpoint, key: str) -> torch.Tensor:
    """Return a stored tensor; raises `CheckpointError` when it holds NaN or Inf."""
    tensor = checkpoint.tensor(key)
    # In pieces: a whole 65536 x 2048 table would need masks of hundreds of megabytes.
    if not all(bool(torch.isfinite(part).all()) for part in torch.split(tensor.reshape(-1), _FINITE_CHUNK)):
        raise CheckpointError(
            f"{checkpoint.name}: {key} holds NaN or Inf",
            wanted="finite weights",
            hint="download the checkpoint again; a float16 copy of a bfloat16 model can also overflow",
        )
    return tensor


def materialise(module: Loadable, checkpoint: Checkpoint) -> None:
    """Load every parameter of `module` (which may be on the meta device) as float32 on the CPU."""
    for name, source in module.sources().items():
        path, _, leaf = name.rpartition(".")
        setattr(
            module.get_submodule(path),
            leaf,
            nn.Parameter(load_weight(checkpoint, source), requires_grad=False),
        )


def _make(source: WeightSource, tensors: list[torch.Tensor]) -> torch.Tensor:
    shape = source.shape
    if source.layout == "as_is":
        part = (*shape[:-1], shape[-1] // len(tensors))
        return torch.cat([t.reshape(part) for t in tensors], -1) if len(tensors) > 1 else tensors[0].reshape(shape)
    if source.layout == "transpose":
        matrices = [t.reshape(-1, shape[0]).to(torch.float32).T for t in tensors]
        return torch.cat(matrices, -1) if len(matrices) > 1 else matrices[0]
    if source.layout == "positions":
        return _resample(tensors[0].to(torch.float32).reshape(-1, shape[-1]), shape[0])
    if source.layout == "tokens":
        rows = [t.to(torch.float32).reshape(-1, shape[-1]) for t in tensors]
        first = rows[0] + rows[2][:1] if len(rows) > 2 else rows[0]
        return torch.cat([first, rows[1]])
    if source.layout == "relative":
        side = shape[0]
        offset = torch.arange(side)[:, None] - torch.arange(side)[None, :] + side - 1
        return tensors[0][offset].transpose(1, 2)
    return _pooling_matrix(*shape)


def _grid(rows: int) -> int:
    """Side of the grid of a position table, with or without a class row; 0 if it is not square."""
    side = math.isqrt(rows)
    return side if side * side in (rows, rows - 1) else 0


def _resample(table: torch.Tensor, cells: int) -> torch.Tensor:
    """Fit a position table [rows, C] to another square grid as timm does: bicubic, antialiased, float32."""
    side = _grid(len(table))
    table = table[len(table) - side * side :]
    if side * side == cells:
        return table
    target = math.isqrt(cells)
    image = table.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=(target, target), mode="bicubic", antialias=True, align_corners=False)
    return image.permute(0, 2, 3, 1).reshape(cells, -1)


def _pooling_matrix(pooled: int, side: int) -> torch.Tensor:
    """Row r averages the inputs floor(r side / pooled) .. ceil((r + 1) side / pooled) - 1."""
    matrix = torch.zeros(pooled, side)
    for row in range(pooled):
        start, end = row * side // pooled, -(-(row + 1) * side // pooled)
        matrix[row, start:end] = 1 / (end - start)
    return matrix
