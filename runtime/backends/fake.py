"""A backend without a model, for tests of everything above the seam.

Its step is a real (if useless) linear recurrence, so cut invariance, snapshots and isolation mean something: every slot
decays by half per token and takes in the token's mean. Its logits are a fixed function of the state, or, with `script`,
vote for given ids one run after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from runtime.backends.base import Buffer
from runtime.spec import GraphSpec


class FakeBuffer:
    """A NumPy array."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        """Fill with zeros."""
        self.array = np.zeros(shape, dtype)
        self.shape, self.dtype, self.nbytes = self.array.shape, self.array.dtype, self.array.nbytes

    def read(self) -> np.ndarray:
        """Return the array itself."""
        return self.array

    def write(self, array: np.ndarray, index: tuple[int | slice, ...] = ()) -> None:
        """Copy `array` in, or into the part that `index` selects."""
        np.copyto(self.array[(*index, ...)], array, casting="no")


class FakeRunner:
    """The step or the vision graph, by the names of its inputs."""

    def __init__(self, backend: FakeBackend) -> None:
        """Share the backend's script and failure switch."""
        self._backend = backend

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Advance every slot, or reduce the pixels; raises what `FakeBackend.fail` holds."""
        if self._backend.fail is not None:
            raise self._backend.fail
        if "logits" in outputs:
            self._step(inputs, outputs)
        else:
            mean = np.mean([buffer.read().mean() for buffer in inputs.values()], dtype=np.float32)
            out = outputs["embeddings"]
            out.write(np.full(out.shape, mean, np.float32) + np.arange(out.shape[1], dtype=np.float32)[:, None])

    def _step(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        tokens = inputs["embeddings"].read().mean(2)  # [B, T]
        total = np.zeros((len(tokens), 1), np.float32)
        for name in inputs:
            if f"{name}_out" in outputs:
                state = inputs[name].read()  # [L, B, ...]
                for column in tokens.T:
                    state = state * np.float32(0.5) + column.reshape(-1, *[1] * (state.ndim - 2))
                outputs[f"{name}_out"].write(state)
                total += state[0].reshape(len(tokens), -1)[:, :1]
        logits = outputs["logits"]
        if self._backend.script:
            votes = [self._backend.script.pop(0) for _ in tokens]
            logits.write(np.eye(logits.shape[1], dtype=np.float32)[votes])
        else:
            logits.write(np.cos(np.arange(logits.shape[1], dtype=np.float32) * (1 + total)))


class FakeBackend:
    """Runs no graph; every file is accepted."""

    name = "fake"

    def __init__(self, script: Sequence[int] = ()) -> None:
        """Vote for the ids of `script`, one per step; afterwards, or without one, logits follow the state."""
        self.script = list(script)
        self.fail: BaseException | None = None

    def allocate(self, shape: tuple[int, ...], dtype: str) -> FakeBuffer:
        """Return a zero-filled buffer."""
        return FakeBuffer(shape, dtype)

    def load(self, graph: GraphSpec, path: Path) -> FakeRunner:
        """Accept any graph."""
        return FakeRunner(self)

    def close(self) -> None:
        """Nothing to release."""
