"""The torch-free runtime of VisualRWKV Edge: load a bundle, look at pictures, stream answers."""

from __future__ import annotations

from runtime.bundle import Bundle
from runtime.cache import CacheStats
from runtime.engine import Engine
from runtime.errors import RollbackError, VisualRWKVError
from runtime.guard import Watchdog
from runtime.memory import MemoryBudget
from runtime.model import VisualRWKV
from runtime.progress import SessionSnapshot
from runtime.prompt import Turn
from runtime.reply import Chunk, Stats
from runtime.sampling import GenerateOptions
from runtime.session import Session
from runtime.state import Snapshot, State

__all__ = [
    "Bundle",
    "CacheStats",
    "Chunk",
    "Engine",
    "GenerateOptions",
    "MemoryBudget",
    "RollbackError",
    "Session",
    "SessionSnapshot",
    "Snapshot",
    "State",
    "Stats",
    "Turn",
    "VisualRWKV",
    "VisualRWKVError",
    "Watchdog",
]
