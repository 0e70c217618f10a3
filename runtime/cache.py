"""What has been computed already: picture embeddings by their pixels, states by everything that was fed.

One per model, shared by its sessions, bounded in bytes and in entries. A state is only ever found under the digest of
all that led to it (model, start, token ids, pictures, and where the feeding was cut), and the feeding is cut at the
same places whether the cache is on or off, so a hit changes the time and nothing else.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

CACHE_BYTES = 64 << 20  # three pictures of a 1.5 B model: 13 MB of state and 8 MB of embeddings each
CACHE_ENTRIES = 64  # a camera's frames never come back: so that a small model's memory is soon flat, too
_REMEMBERED = 1024  # digests of states that were not kept


@dataclass(frozen=True)
class CacheStats:
    """What a cache did since the model was loaded."""

    hits: int
    misses: int
    evictions: int
    entries: int
    bytes: int


class Cache:
    """A bounded store that drops what was not used for longest. Thread-safe."""

    def __init__(self, max_bytes: int = CACHE_BYTES, max_entries: int = CACHE_ENTRIES) -> None:
        """Begin empty; `max_bytes` 0 turns it off."""
        self.max_bytes, self._max_entries = max_bytes, max_entries
        self._entries: OrderedDict[bytes, tuple[Any, int]] = OrderedDict()
        self._asked: OrderedDict[bytes, None] = OrderedDict()
        self._flights: dict[bytes, tuple[threading.Lock, int]] = {}
        self._lock = threading.Lock()
        self._bytes = self._hits = self._misses = self._evictions = 0

    @property
    def enabled(self) -> bool:
        """Whether anything is kept."""
        return self.max_bytes > 0

    def stats(self) -> CacheStats:
        """Return the counts."""
        with self._lock:
            return CacheStats(self._hits, self._misses, self._evictions, len(self._entries), self._bytes)

    def get(self, key: bytes) -> Any:
        """Return what is kept under a key, or None."""
        with self._lock:
            if key in self._entries:
                self._hits += 1
                self._entries.move_to_end(key)
                return self._entries[key][0]
            self._misses += 1
            return None

    def put(self, key: bytes, value: Any, nbytes: int) -> None:
        """Keep a value of `nbytes`, unless it is larger than the whole cache."""
        with self._lock:
            if nbytes > self.max_bytes:
                return
            self._bytes += nbytes - self._entries.pop(key, (None, 0))[1]
            self._entries[key] = value, nbytes
            while self._bytes > self.max_bytes or len(self._entries) > self._max_entries:
                self._bytes -= self._entries.popitem(last=False)[1][1]
                self._evictions += 1

    def asked_before(self, key: bytes) -> bool:
        """Whether this key was asked about before; from now on it was."""
        with self._lock:
            before = key in self._asked
            self._asked[key] = None
            self._asked.move_to_end(key)
            if len(self._asked) > _REMEMBERED:
                self._asked.popitem(last=False)
            return before

    @contextmanager
    def alone(self, key: bytes) -> Iterator[None]:
        """Hold a key while its value is made: whoever wants the same waits, and then finds it."""
        with self._lock:
            lock, users = self._flights.get(key, (threading.Lock(), 0))
            self._flights[key] = lock, users + 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                users = self._flights[key][1] - 1
                if users:
                    self._flights[key] = lock, users
                else:
                    del self._flights[key]


def extend(key: bytes, parts: Iterable[bytes]) -> bytes:
    """Return the digest of all that led to `key`, and then `parts`."""
    digest = hashlib.blake2b(key, digest_size=32)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
