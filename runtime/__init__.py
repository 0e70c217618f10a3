"""The torch-free runtime of VisualRWKV Edge: load a bundle, look at pictures, stream answers."""

from __future__ import annotations

from runtime.bundle import Bundle
from runtime.engine import Engine
from runtime.errors import VisualRWKVError
from runtime.model import VisualRWKV
from runtime.sampling import GenerateOptions
from runtime.session import Chunk, Session, SessionSnapshot, Stats, Turn
from runtime.state import Snapshot, State

__all__ = [
    "Bundle",
    "Chunk",
    "Engine",
    "GenerateOptions",
    "Session",
    "SessionSnapshot",
    "Snapshot",
    "State",
    "Stats",
    "Turn",
    "VisualRWKV",
    "VisualRWKVError",
]
