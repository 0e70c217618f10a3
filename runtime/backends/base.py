"""The seam between the engine and whatever runs the graphs.

A backend owns memory (`Buffer`) and loads graphs (`GraphRunner`). The engine never sees a device pointer: it moves
whole arrays in and out of buffers, and a run names every input and output buffer, so nothing is allocated per token.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from runtime.spec import GraphSpec


@runtime_checkable
class Buffer(Protocol):
    """Memory of a fixed shape and dtype on the backend's device."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def nbytes(self) -> int: ...

    def read(self) -> np.ndarray:
        """Return the content on the host: a view where the device is the CPU, valid until the buffer is written."""
        ...

    def write(self, array: np.ndarray, index: tuple[int | slice, ...] = ()) -> None:
        """Copy `array` (same shape and dtype) into the buffer, or into the part of it that `index` selects."""
        ...


class GraphRunner(Protocol):
    """One loaded graph."""

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Run the graph from `inputs` into `outputs` (every name of the graph's spec), and wait for it.

        An output buffer must not be an input buffer of the same call.
        """
        ...


class Backend(Protocol):
    """Loads graphs and allocates their buffers."""

    name: str

    def allocate(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """Return a zero-filled buffer."""
        ...

    def load(self, graph: GraphSpec, path: Path) -> GraphRunner:
        """Load one ONNX file; raises `BundleError` when the engine cannot take it."""
        ...

    def close(self) -> None:
        """Release every graph. Safe to call twice."""
        ...
