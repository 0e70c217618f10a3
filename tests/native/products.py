"""One product of the native library, from a float matrix, and what it should give in float64."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

from quant.weights import FORMATS, dequantize, quantize
from runtime.native.library import FORMATS as KINDS
from runtime.native.library import Source, library


@dataclass(frozen=True)
class Stored:
    """A matrix [k, n] in a format: the arrays that stand for it, and their exact value."""

    format: str
    block: int
    parts: tuple[np.ndarray, ...]
    exact: np.ndarray  # [k, n] float64

    def multiply(self, x: np.ndarray, isa: str, layout: int) -> tuple[np.ndarray, int]:
        """Return x [rows, k] times the matrix by the library, [rows, n], and the bytes of weights read."""
        k, n = self.exact.shape
        x = np.ascontiguousarray(x, np.float32)
        out = np.full((len(x), n), np.nan, np.float32)
        pointers = [part.ctypes.data for part in self.parts] + [None, None]
        source = Source(KINDS[self.format], False, k, n, self.block, *pointers[:3])
        read = library().vrwkv_multiply(
            isa.encode(), ctypes.byref(source), layout, x.ctypes.data, len(x), out.ctypes.data
        )
        assert read >= 0, f"no {isa} here"
        return out, read


def store(weight: np.ndarray, name: str) -> Stored:
    """Store a float32 matrix as "float32", "float16" or a name of `quant.weights.FORMATS`."""
    if name in ("float32", "float16"):
        kept = np.ascontiguousarray(weight, name)
        return Stored(name, 0, (kept,), kept.astype(np.float64))
    fmt = FORMATS[name]
    parts = quantize(weight, fmt)
    return Stored(f"int{fmt.bits}", fmt.block, parts, dequantize(parts, len(weight), fmt).astype(np.float64))


def activations(rng: np.random.Generator, rows: int, k: int, zeros: float = 0.7) -> np.ndarray:
    """Return [rows, k] float32, of which a share is exactly zero, as behind a squared ReLU."""
    x = rng.standard_normal((rows, k)).astype(np.float32) ** 2
    x[rng.random((rows, k)) < zeros] = 0
    return x
