"""Weight formats: how a float matrix becomes the initializers of one quantised matrix product, in plain NumPy.

A format is what onnxruntime's `MatMulNBits` stores: each output column is cut into blocks of inputs, and a block has
one float32 scale, of which only 11 bits are significant: an engine may hold it in 16 bits and lose nothing. "int8-b32"
is 8 bits in blocks of 32, its codes symmetric around 128. "int4-b32" is 4 bits with a zero point per block; scale and
zero point are searched for the least squared error, a fifth (Gaussian weights) to more than a quarter (heavy tails)
below rounding to the nearest with the largest weight as the scale. With accuracy_level 4 the kernel rounds activations
to 8 bits per token and block: a token's result never depends on its neighbours in a segment, which per-tensor dynamic
quantisation would break.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from runtime.errors import CheckpointError

# Ranges tried for a block, as shares of the one that clips nothing. Five times as many, and shifted zero points, gain
# 0.5 % more.
_SHARES = (1.0, 1.05, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
_CHUNK = 1 << 17  # weights at once: what fits a core's cache is quantised fastest
_HUGE = 1e18  # larger weights' squared errors could overflow
_TINY = 1e-30  # a block whose range is smaller is stored as zeros: the scale's inverse must not overflow


@dataclass(frozen=True)
class BlockFormat:
    """Codes of `bits` bits in blocks of `block` inputs."""

    bits: int  # 8: symmetric; 4: with zero points
    block: int

    @property
    def name(self) -> str:
        """As recipes and manifests write it: "int4-b32"."""
        return f"int{self.bits}-b{self.block}"

    @property
    def has_zero_points(self) -> bool:
        """Whether every block has a zero point of its own; 8-bit codes gain 3 % from it and do without."""
        return self.bits == 4

    @property
    def middle(self) -> int:
        """The code of zero where no zero point says otherwise."""
        return 1 << (self.bits - 1)

    def shapes(self, k: int, n: int) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of codes, scales and, if there are any, zero points of a [K, N] matrix."""
        blocks = -(-k // self.block)
        codes, scales = (n, blocks, self.block * self.bits // 8), (n * blocks,)
        return (codes, scales, (n * -(-blocks * self.bits // 8),)) if self.has_zero_points else (codes, scales)


FORMATS = {f.name: f for f in (BlockFormat(bits, block) for bits in (4, 8) for block in (16, 32, 64, 128))}


def quantize(weight: np.ndarray, fmt: BlockFormat) -> tuple[np.ndarray, ...]:
    """Round a [K, N] float32 matrix to the layout `com.microsoft.MatMulNBits` wants.

    Returns:
        codes [N, ceil(K / block), block * bits / 8] uint8, two 4-bit codes per byte, the first in the low half
        (value = (code - zero point) * scale; inputs past K hold the zero point),
        scales [N * ceil(K / block)] float32 and, for 4 bits,
        zero points [N * ceil(ceil(K / block) / 2)] uint8, packed like the codes.

    Raises:
        CheckpointError: the matrix holds NaN, Inf or a weight whose square would overflow.
    """
    k, n = weight.shape
    parts = tuple(np.empty(shape, np.float32 if i == 1 else np.uint8) for i, shape in enumerate(fmt.shapes(k, n)))
    rows = [part.reshape(n, -1) for part in parts]
    blocks, step = -(-k // fmt.block), min(n, max(1, _CHUNK // k))
    # Buffers for a chunk, reused: the allocator would take longer than the arithmetic. Inputs past K stay zero.
    buffers = np.zeros((3, blocks, fmt.block, step), np.float32)
    for start in range(0, n, step):
        columns = slice(start, min(start + step, n))
        chunk = Chunk(buffers[..., : columns.stop - start], fmt)
        chunk.weights.reshape(blocks * fmt.block, -1)[:k] = weight[:, columns]
        checked(chunk.weights)
        scales, zeros = chunk.search() if fmt.has_zero_points else chunk.symmetric()
        codes = chunk.round(scales, zeros).astype(np.uint8)
        rows[0][columns] = _pack(codes.reshape(blocks * fmt.block, -1).T, fmt)
        rows[1][columns] = scales[:, 0].T
        if fmt.has_zero_points:
            rows[2][columns] = _pack(zeros[:, 0].T.astype(np.uint8), fmt)
    return parts


def checked(weights: np.ndarray) -> np.ndarray:
    """Return the weights; raises `CheckpointError` for NaN, Inf and what cannot be squared."""
    if not np.abs(weights).max() < _HUGE:  # NaN compares false
        raise CheckpointError(
            f"a matrix to be quantised holds NaN, Inf or a weight above {_HUGE:.0e}",
            wanted="finite weights",
            hint="download the checkpoint again; a float16 copy of a bfloat16 model can also overflow",
        )
    return weights


def assemble(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, fmt: BlockFormat) -> tuple[np.ndarray, ...]:
    """Lay out codes [blocks * block, N] uint8, scales [blocks, N] and zero points [blocks, N] as `quantize` does."""
    n = codes.shape[1]
    packed = _pack(codes.T, fmt).reshape(n, len(scales), -1)
    parts = np.ascontiguousarray(packed), np.ascontiguousarray(scales.T).reshape(-1)
    return (*parts, _pack(zeros.T, fmt).reshape(-1)) if fmt.has_zero_points else parts


def dequantize(parts: tuple[np.ndarray, ...], k: int, fmt: BlockFormat) -> np.ndarray:
    """Return the [K, N] float32 matrix that the codes stand for; the inverse of `quantize` up to rounding."""
    n, blocks = parts[0].shape[:2]
    codes = _unpack(parts[0].reshape(n, -1), fmt).reshape(n, blocks, fmt.block).astype(np.float32)
    zeros: np.ndarray | int = fmt.middle
    if fmt.has_zero_points:
        zeros = _unpack(parts[2].reshape(n, -1), fmt)[:, :blocks, None].astype(np.float32)
    values = (codes - zeros) * parts[1].reshape(n, blocks, 1)
    return np.ascontiguousarray(values.reshape(n, -1)[:, :k].T)


class Chunk:
    """Some columns of a matrix: weights [blocks, block, n], scales and zero points [blocks, 1, n].

    `importance` [block, 1] weighs the squared errors of a block's inputs; by default all count alike.
    """

    def __init__(self, buffers: np.ndarray, fmt: BlockFormat, importance: np.ndarray | None = None) -> None:
        self._importance = importance
        self.weights, self._exact, self._codes = buffers
        self.middle, self.top = fmt.middle, 2 * fmt.middle - 1

    def symmetric(self) -> tuple[np.ndarray, np.ndarray]:
        """Return scales that clip nothing, and the middle as zero point."""
        scales = np.abs(self.weights, out=self._exact).max(1, keepdims=True) / (self.middle - 1)
        return short(np.where(scales < _TINY, 0, scales)), np.full_like(scales, self.middle)

    def search(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the scales and zero points of least squared error.

        A narrower range clips the largest weights and rounds the others more finely. The best of `_SHARES` is chosen
        per block; then, the codes held, the scale is set by least squares.
        """
        # Zero is a code of every block, so the range must hold it.
        low = np.minimum(self.weights.min(1, keepdims=True), 0)
        high = np.maximum(self.weights.max(1, keepdims=True), 0)
        full = (high - low) / self.top
        full, centre = np.where(full < _TINY, 0, full), (low + high) / 2
        best = np.full_like(full, np.inf), full.copy(), np.full_like(full, self.middle)
        for share in _SHARES:
            scales = full * np.float32(share)
            self._keep_better(best, scales, np.clip(np.rint(self.top / 2 - centre * inverse(scales)), 0, self.top))
        _, scales, zeros = best
        steps = np.subtract(self.round(scales, zeros), zeros, out=self._codes)
        products = self._sum(np.multiply(self.weights, steps, out=self._exact))
        self._keep_better(best, products * inverse(self._sum(np.square(steps, out=steps))), zeros)
        return short(scales), zeros

    def round(self, scales: np.ndarray, zeros: np.ndarray) -> np.ndarray:
        """Return the nearest codes, as floats, in a buffer."""
        np.multiply(self.weights, inverse(scales), out=self._exact)
        np.add(self._exact, zeros, out=self._exact)
        np.rint(self._exact, out=self._codes)
        return np.clip(self._codes, 0, self.top, out=self._codes)

    def _keep_better(self, best: tuple[np.ndarray, ...], scales: np.ndarray, zeros: np.ndarray) -> None:
        """Replace (squared error, scales, zero points) in place in the blocks where the new ones err less."""
        difference = np.subtract(self.round(scales, zeros), self._exact, out=self._codes)
        error = self._sum(np.square(difference, out=difference)) * np.square(scales)
        better = error < best[0]
        for old, new in zip(best, (error, scales, zeros), strict=True):
            np.copyto(old, new, where=better)

    def _sum(self, values: np.ndarray) -> np.ndarray:
        """Sum over the inputs of every block, in place."""
        if self._importance is not None:
            values *= self._importance
        return values.sum(1, keepdims=True)


def short(scales: np.ndarray) -> np.ndarray:
    """Round float32 to 11 significant bits, the precision of float16 without its range."""
    bits = np.ascontiguousarray(scales, np.float32).view(np.uint32)
    rounded: np.ndarray = ((bits + 0xFFF + (bits >> 13 & 1)) & ~np.uint32(0x1FFF)).view(np.float32)
    return rounded


def inverse(scales: np.ndarray) -> np.ndarray:
    """Return 1 / scales, and 0 where a scale is 0."""
    return np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)


def _pack(codes: np.ndarray, fmt: BlockFormat) -> np.ndarray:
    """Put the 4-bit codes of a row two to a byte; an odd row ends in a zero."""
    if fmt.bits == 8:
        return codes
    if codes.shape[1] % 2:
        codes = np.pad(codes, ((0, 0), (0, 1)))
    return codes[:, 0::2] | codes[:, 1::2] << 4


def _unpack(packed: np.ndarray, fmt: BlockFormat) -> np.ndarray:
    if fmt.bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], 2).reshape(len(packed), -1)
