"""What the sessions of one model have in common, besides the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from runtime.cache import Cache
from runtime.guard import Watchdog
from runtime.metrics import Metrics
from runtime.undo import UNDO_BYTES


@dataclass(frozen=True)
class Shared:
    """Given to every session by `VisualRWKV`; a session opened without one caches nothing."""

    cache: Cache = field(default_factory=lambda: Cache(0))
    undo_bytes: int = UNDO_BYTES  # per session
    watchdog: Watchdog = field(default_factory=Watchdog)
    metrics: Metrics = field(default_factory=Metrics)
    backend: str = ""  # name of what computes the states, for saved ones
    admit: Callable[[object], None] = lambda session: None  # raises `ConfigError` if there is no memory for one more
