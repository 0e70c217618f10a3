"""Trying a bundle: load it, show it a grey picture, ask one question. What happens is the answer."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime import GenerateOptions, VisualRWKV
from runtime.errors import VisualRWKVError

QUESTION = "What is this?"


@dataclass(frozen=True)
class Trial:
    """How it went; seconds, bytes."""

    good: bool
    why: str
    backend: str = ""
    reason: str = ""  # why the step does not run on the fastest backend, where it does not
    load_s: float = 0.0
    first_token_s: float = 0.0  # picture included
    rss_bytes: int = 0


def attempt(path: Path, *, threads: int | None = None) -> Trial:
    """Load a bundle and ask once. Whatever goes wrong is told, not raised.

    Args:
        path: the bundle folder, whose files were checked before.
        threads: compute threads.
    """
    began = time.perf_counter()
    try:
        with VisualRWKV.load(path, threads=threads, verify=False, undo_bytes=0) as model:
            loaded = time.perf_counter()
            session = model.session()
            if model.manifest.vision is not None:
                session.see(np.full((480, 640, 3), 128, np.uint8))
            first, rss = 0.0, 0
            for chunk in session.ask(QUESTION, options=GenerateOptions(max_tokens=4, ignore_stop=True)):
                first = first or time.perf_counter()
                rss = chunk.stats.rss_bytes if chunk.stats else rss
            backend = model.engine.backend
            reason = str(getattr(backend, "reason", ""))
            return Trial(True, "it loads and answers", backend.name, reason, loaded - began, first - loaded, rss)
    except VisualRWKVError as error:
        return Trial(False, error.found)
    except Exception as error:  # an engine or a driver that fails in a way of its own
        return Trial(False, f"{type(error).__name__}: {error}")
