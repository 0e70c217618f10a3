"""How much memory a model takes, known before any of it is allocated."""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np

from runtime.errors import ConfigError
from runtime.scheduler import MAX_BATCH
from runtime.spec import Manifest, SlotSpec
from runtime.undo import undo_steps

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes a model holds with a number of open sessions; `str()` is a table.

    It counts what the SDK allocates and maps, to the byte; the interpreter and the engine's own workspace come on top.
    """

    weights: int
    vision: int
    embedding_table: int  # memory-mapped: at most this, and pages the system can take back
    start: int  # the baked state of the bundle
    cache: int  # at most
    sessions: int
    state: int  # per session: every slot, the carried ones twice
    undo: int  # per session
    steps: int  # of sessions that decode together (`runtime.lanes`), at most

    @property
    def per_session(self) -> int:
        """Bytes that a session holds by itself."""
        return self.state + self.undo

    @property
    def total(self) -> int:
        """All of it."""
        shared = self.weights + self.vision + self.embedding_table + self.start + self.cache
        return shared + self.sessions * self.per_session + self.steps

    def __str__(self) -> str:
        rows = [
            ("language model weights", self.weights),
            ("vision encoder weights", self.vision),
            ("embedding table (mapped)", self.embedding_table),
            ("baked state", self.start),
            ("cache (at most)", self.cache),
            (f"state, {self.sessions} x {self.state}", self.sessions * self.state),
            (f"undo, {self.sessions} x {self.undo}", self.sessions * self.undo),
            ("steps taken together (at most)", self.steps),
            ("total", self.total),
        ]
        return "\n".join(f"{label:<34}{size:>16} bytes {size / 1e6:>11.2f} MB" for label, size in rows)


def budget(manifest: Manifest, *, sessions: int, cache_bytes: int, undo_bytes: int) -> MemoryBudget:
    """Return what a model will take, from its manifest alone. Raises `ConfigError` for numbers below zero."""
    for name, value in (("sessions", sessions), ("cache_bytes", cache_bytes), ("undo_bytes", undo_bytes)):
        if type(value) is not int or value < 0:
            raise ConfigError(f"{name} is {value!r}", wanted="a whole number, 0 or more")
    once = snapshot_bytes(manifest.slots)
    carried = snapshot_bytes(tuple(slot for slot in manifest.slots if slot.role == "carried"))
    declared = manifest.budget
    return MemoryBudget(
        weights=declared.weights,
        vision=declared.vision,
        embedding_table=declared.embedding_table,
        start=manifest.files[manifest.warm.file].bytes if manifest.warm else 0,
        cache=cache_bytes,
        sessions=sessions,
        state=once + carried,
        undo=undo_steps(undo_bytes, once) * once,
        steps=min(sessions, MAX_BATCH) * (once + carried + 4 * manifest.vocab_size) if sessions > 1 else 0,
    )


def snapshot_bytes(slots: tuple[SlotSpec, ...]) -> int:
    """Bytes of one value of every slot, for one sequence."""
    return sum(prod(slot.resolve(1)) * np.dtype(slot.dtype).itemsize for slot in slots)


def parse_bytes(value: int | str | None) -> int | None:
    """Turn 2000000000, "2GB" or "512 MiB" into bytes; None stays None. Raises `ConfigError` for anything else."""
    if value is None or (type(value) is int and value > 0):
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", value.lower()) if isinstance(value, str) else None
    if not found or found[2] not in _UNITS or not float(found[1]):
        raise ConfigError(f"a memory limit of {value!r}", wanted='bytes, or text such as "2GB" or "512MiB"')
    return round(float(found[1]) * _UNITS[found[2]])


class MemoryLimit:
    """Refuses what would not fit, before it is allocated. Thread-safe."""

    def __init__(self, limit: int | None, budget_of: Callable[[int], MemoryBudget]) -> None:
        """Keep `budget_of(sessions).total` within `limit` bytes."""
        self._limit, self._budget_of = limit, budget_of
        self._open: weakref.WeakSet[object] = weakref.WeakSet()
        self._lock = threading.Lock()

    def check(self, sessions: int) -> None:
        """Raise `ConfigError`, with the whole table, if so many sessions would not fit."""
        needed = self._budget_of(sessions)
        if self._limit is not None and needed.total > self._limit:
            raise ConfigError(
                f"{sessions} session{'s' * (sessions != 1)} of this model need {needed.total} bytes:\n{needed}",
                wanted=f"at most memory_limit = {self._limit} bytes",
                hint="fewer sessions, a smaller cache_bytes or undo_bytes, or a bundle of lower precision",
            )

    def admit(self, session: object) -> None:
        """Count a session until it is dropped; raise `ConfigError` if it does not fit beside the others."""
        with self._lock:
            self.check(len(self._open) + 1)
            self._open.add(session)
