"""What the tests of the native step feed, and how they compare states."""

from __future__ import annotations

import numpy as np

from runtime.engine import Engine
from runtime.state import State

SLOTS = ("att_shift", "ffn_shift", "wkv")


def tokens(engine: Engine, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, engine.manifest.vocab_size - 1, count)


def new_state(engine: Engine, batch: int = 1, seed: int = 0) -> State:
    """A state before the first token; a model that reads an image state has a random one."""
    state, rng = engine.new_state(batch), np.random.default_rng(seed)
    for slot in engine.manifest.slots:
        if slot.role == "context":
            state.write(slot.name, rng.standard_normal(slot.resolve(batch)).astype(np.float32))
    return state


def apart(one: State, other: State) -> float:
    return max(float(np.abs(one.array(slot) - other.array(slot)).max()) for slot in SLOTS)


def same(one: State, other: State) -> bool:
    return all(np.array_equal(one.array(slot), other.array(slot)) for slot in SLOTS)
