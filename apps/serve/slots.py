"""How many may ask at a time: a few answers are computed, some more requests wait, all others are sent away.

The door counts a request from its first byte, before its body is read: memory is bounded by the same number.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from apps.serve.failures import Refused
from apps.web.guard import App, Receive, Scope, Send, refuse
from runtime import Session

FIRST_GUESS_S = 1.0  # of how long an answer takes


class Slots:
    """The sessions that answers are computed in, and the queue before them. For one event loop."""

    def __init__(self, sessions: Sequence[Session], queue_s: float) -> None:
        """Lend out `sessions`; who waits for `queue_s` seconds is sent away."""
        self.count, self._queue_s = len(sessions), queue_s
        self._free = list(sessions)
        self._waiting: deque[asyncio.Future[Session]] = deque()
        self._answer_s = FIRST_GUESS_S
        self.waited_s = 0.0  # by all, in all
        self.lent = 0  # times a session was

    @property
    def answering(self) -> int:
        """Sessions in use."""
        return self.count - len(self._free)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[Session]:
        """Wait for a session and hold it. Raises `Refused` (429) if that takes too long."""
        began = time.monotonic()
        session = await self._take()
        start = time.monotonic()
        self.waited_s, self.lent = self.waited_s + start - began, self.lent + 1
        try:
            yield session
        finally:
            self._answer_s += 0.1 * (time.monotonic() - start - self._answer_s)
            self._give(session)

    def busy(self, waiting: int | None = None) -> Refused:
        """Return what those are told who are sent away."""
        ahead = (self.waiting if waiting is None else waiting) + 1
        retry = min(60, max(1, math.ceil(ahead * self._answer_s / self.count)))
        return Refused(429, "too_many_requests", "the server is busy", hint=f"come again in {retry} s", retry_s=retry)

    async def _take(self) -> Session:
        if self._free and not self._waiting:
            return self._free.pop()
        place: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await asyncio.wait((place,), timeout=self._queue_s)
            if not place.done():
                raise self.busy()
            return place.result()
        except BaseException:
            if place in self._waiting:
                self._waiting.remove(place)
            elif place.done():  # given to somebody who leaves in this moment
                self._give(place.result())
            raise

    def _give(self, session: Session) -> None:
        if self._waiting:
            self._waiting.popleft().set_result(session)
        else:
            self._free.append(session)


class Door:
    """ASGI middleware that lets so many requests to `path` in; those beyond are told when to come again."""

    def __init__(self, app: App, slots: Slots, waiting: int, path: str, linger: int) -> None:
        """Let in as many as `slots` has, and `waiting` more; of those sent away, `linger` bytes are read."""
        self._app, self._slots, self._waiting, self._path, self._linger = app, slots, waiting, path, linger
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let in, or send away."""
        if scope["type"] != "http" or scope["path"] != self._path:
            await self._app(scope, receive, send)
            return
        if self._inside >= self._slots.count + self._waiting:
            busy = self._slots.busy(self._inside - self._slots.count)
            text = f"{busy.found}; {busy.hint}"
            await refuse(
                scope,
                receive,
                send,
                429,
                busy.code,
                text,
                kind="rate_limit_error",
                headers=busy.headers,
                linger=self._linger,
            )
            return
        self._inside += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._inside -= 1
