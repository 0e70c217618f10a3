"""Memory on the GPU for `runtime.backends.cuda`: buffers whose blocks are used again.

What is given back is kept for the next buffer of its shape, the lowest number first. So the fork of a session lies
where the last fork lay, and the recordings made then fit again. How much is kept is bounded.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

_SPARE = 64 << 20  # bytes kept for later; 1.5B's two buffer sets are 26 MB


@dataclass(frozen=True, eq=False)
class Block:
    """An onnxruntime value on the device."""

    number: int
    value: Any
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class DeviceBuffer:
    """A block, until it is given back."""

    def __init__(self, block: Block) -> None:
        """Take a block over."""
        self.block = block

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions."""
        return self.block.shape

    @property
    def dtype(self) -> np.dtype:
        """Element type."""
        return self.block.dtype

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.block.nbytes

    def read(self) -> np.ndarray:
        """Return the content, copied to the host."""
        content: np.ndarray = self.block.value.numpy()
        return content

    def write(self, array: np.ndarray, index: tuple[int | slice, ...] = ()) -> None:
        """Copy `array` in, or into the part that `index` selects (which reads the rest first)."""
        whole = self.read() if index else np.empty(self.shape, self.dtype)
        np.copyto(whole[(*index, ...)], array, casting="no")
        self.block.value.update_inplace(whole)


class DeviceMemory:
    """Allocates blocks, and keeps those that are given back."""

    def __init__(self, ort: Any, device: tuple[str, int], released: Callable[[int], None]) -> None:
        """Allocate by `ort.OrtValue`; `released` is told the number of every block that is let go for good."""
        self._ort, self._device, self._released = ort, device, released
        self._returned: deque[Block] = deque()  # by finalizers, which run anywhere, even inside of `allocate`
        self._spare: OrderedDict[int, Block] = OrderedDict()  # the longest unused first
        self._lock = threading.Lock()
        self._made = 0

    def allocate(self, shape: tuple[int, ...], dtype: str) -> DeviceBuffer:
        """Return a zero-filled buffer."""
        kind = np.dtype(dtype)
        with self._lock:
            self._take_back()
            fitting = [n for n, block in self._spare.items() if block.shape == shape and block.dtype == kind]
            block = self._spare.pop(min(fitting)) if fitting else None
            if block is None:
                self._made += 1
                value = self._ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, kind), *self._device)
                block = Block(self._made, value, shape, kind)
            else:
                block.value.update_inplace(np.zeros(shape, kind))
        buffer = DeviceBuffer(block)
        weakref.finalize(buffer, self._returned.append, block).atexit = False
        return buffer

    def close(self) -> None:
        """Let everything go that nobody uses."""
        with self._lock:
            self._take_back()
            self._shrink(0)

    def _take_back(self) -> None:
        while self._returned:
            block = self._returned.popleft()
            self._spare[block.number] = block
        self._shrink(_SPARE)

    def _shrink(self, limit: int) -> None:
        kept = sum(block.nbytes for block in self._spare.values())
        while kept > limit:
            number, block = self._spare.popitem(last=False)
            kept -= block.nbytes
            self._released(number)
