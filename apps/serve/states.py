"""Kept conversations: points to go on from, under names nobody can guess.

A state never changes: going on from it makes another one. So the same name can be used twice (that is a fork), the
one before is still there (that is undo), and a request that was lost can be sent again. They are bounded in number and
in bytes; what was not used for longest goes first, and everything goes some time after its last use.

They are also found by what was said and shown, so that a client that sends the whole conversation every time, as
OpenAI's protocol has it, finds the longest part of it that the model has read already.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from apps.serve.failures import Refused
from runtime.progress import Picture, SessionSnapshot


@dataclass(frozen=True)
class Kept:
    """A conversation at one moment."""

    id: str
    snapshot: SessionSnapshot
    digest: bytes  # of all that was said and shown
    parent: str | None
    nbytes: int
    used: float  # seconds of `clock`


class States:
    """For one thread: the event loop's."""

    def __init__(
        self, count: int, max_bytes: int, seconds: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Keep at most `count` states of together `max_bytes`, each for `seconds` after its last use."""
        self._count, self._max_bytes, self._seconds, self._clock = count, max_bytes, seconds, clock
        self._kept: OrderedDict[str, Kept] = OrderedDict()  # the least recently used first
        self._by_digest: dict[bytes, str] = {}
        self.nbytes = self.evicted = self.expired = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, snapshot: SessionSnapshot, digest: bytes, parent: str | None) -> Kept | None:
        """Keep a conversation under a new name; None if there is no room for one of its size."""
        self.expire()
        nbytes = _size(snapshot)
        if nbytes > self._max_bytes or not self._count:
            return None
        kept = Kept(f"state-{secrets.token_urlsafe(24)}", snapshot, digest, parent, nbytes, self._clock())
        while len(self._kept) >= self._count or self.nbytes + nbytes > self._max_bytes:
            self._drop(next(iter(self._kept)))
            self.evicted += 1
        self._kept[kept.id] = kept
        self._by_digest[digest] = kept.id
        self.nbytes += nbytes
        return kept

    def get(self, name: str) -> Kept:
        """Return a state, which counts as a use. Raises `Refused` (404) if there is none."""
        self.expire()
        kept = self._kept.get(name)
        if kept is None:
            raise Refused(
                404,
                "state_not_found",
                "there is no such state: it was deleted, or not used for too long, or others needed its room",
                hint="send the whole conversation without state",
                param="state",
            )
        kept = self._kept[name] = replace(kept, used=self._clock())
        self._kept.move_to_end(name)
        return kept

    def find(self, digest: bytes) -> Kept | None:
        """Return a state in which exactly this was said and shown."""
        self.expire()
        name = self._by_digest.get(digest)
        return None if name is None else self.get(name)

    def fork(self, name: str) -> Kept:
        """Return the same state under a name of its own. Raises `Refused` as `get`, or (507) without room for it."""
        kept = self.get(name)
        copy = self.put(kept.snapshot, kept.digest, kept.parent)
        if copy is None:
            raise Refused(507, "no_room", "there is no room for another state")
        return copy

    def undo(self, name: str) -> Kept:
        """Delete a state and return the one before its last turn. Raises `Refused` (404) if that is not kept."""
        kept = self.get(name)
        if kept.parent is None or kept.parent not in self._kept:
            raise Refused(
                404,
                "nothing_to_undo",
                "the state before this one is not kept",
                hint="send the conversation up to there",
            )
        self._drop(name)
        return self.get(kept.parent)

    def delete(self, name: str) -> None:
        """Forget a state. Raises `Refused` (404) if there is none."""
        self.get(name)
        self._drop(name)

    def expires_in(self, kept: Kept) -> float:
        """Seconds until a state goes if nobody uses it."""
        return max(0.0, kept.used + self._seconds - self._clock())

    def is_kept(self, name: str | None) -> bool:
        """Whether a name would be found; no use of it."""
        return name in self._kept

    def expire(self) -> None:
        """Drop what was not used for too long."""
        while self._kept:
            name, kept = next(iter(self._kept.items()))
            if self.expires_in(kept) > 0:
                return
            self._drop(name)
            self.expired += 1

    def clear(self) -> None:
        """Forget everything."""
        for name in list(self._kept):
            self._drop(name)

    def _drop(self, name: str) -> None:
        kept = self._kept.pop(name)
        self.nbytes -= kept.nbytes
        if self._by_digest.get(kept.digest) == name:
            del self._by_digest[kept.digest]


def _size(snapshot: SessionSnapshot) -> int:
    progress = snapshot.progress
    pictures = [item for item in (*progress.queue, *progress.waiting.values()) if isinstance(item, Picture)]
    arrays = [*(picture.embeddings for picture in pictures), *progress.features]
    texts = sum(len(turn.question) + len(turn.answer or "") for turn in progress.history)
    return snapshot.state.nbytes + sum(array.nbytes for array in arrays) + 4 * texts
