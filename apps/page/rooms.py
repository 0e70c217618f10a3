"""Who is there: a room for every open page. A page that lost its connection finds its tabs again."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Protocol

from apps.page.cameras import RobotCamera
from apps.page.room import Room
from runtime import GenerateOptions, VisualRWKV
from runtime.errors import StateError
from runtime.spec import Padding

MAX_ROOMS = 4
KEEP_S = 900.0  # how long a room waits for its page to come back


class Visitor(Protocol):
    """The connection of a page."""

    async def replaced(self) -> None:
        """Another page has taken the room over."""
        ...

    def tell(self, message: dict[str, object]) -> None:
        """Send a message soon."""
        ...


class Rooms:
    """All rooms. Used in the event loop; what blocks runs in threads."""

    def __init__(
        self,
        model: VisualRWKV,
        options: GenerateOptions,
        padding: Padding | None = None,
        robot: RobotCamera | None = None,
        *,
        most: int = MAX_ROOMS,
        keep_s: float = KEEP_S,
    ) -> None:
        self.model, self.robot = model, robot
        self._options, self._padding = options, padding
        self._most, self._keep_s = most, keep_s
        self._rooms: dict[str, Room] = {}
        self._visitors: dict[str, Visitor] = {}
        self._left: dict[str, float] = {}  # when the page of a room went away
        self._lock = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._rooms)

    def find(self, key: str) -> Room | None:
        """Return a room by the key its page was told."""
        return self._rooms.get(key)

    def visitor(self, room: Room) -> Visitor | None:
        """Return the page that is in a room now."""
        return self._visitors.get(room.key)

    async def enter(self, key: str, visitor: Visitor) -> tuple[Room, bool]:
        """Return the room of a key, or a new one; and whether it was there already.

        Raises `StateError` where no room is free, and `ConfigError` where there is no memory for one.
        """
        async with self._lock:
            await self._make_way(key)
            room, known = self._rooms.get(key), key in self._rooms
            if room is None:
                options, padding = self._options, self._padding
                fresh = secrets.token_urlsafe(24)
                room = await asyncio.to_thread(Room, fresh, self.model, options, padding, self.robot)
                self._rooms[fresh] = room
            before = self._visitors.get(room.key)
            self._visitors[room.key] = visitor
            self._left.pop(room.key, None)
        if before is not None:
            await before.replaced()
        return room, known

    def leave(self, room: Room, visitor: Visitor) -> None:
        """The page of a room has gone; the room waits for it."""
        if self._visitors.get(room.key) is visitor:
            del self._visitors[room.key]
            self._left[room.key] = time.monotonic()

    async def close(self) -> None:
        """End everything."""
        async with self._lock:
            for key in list(self._rooms):
                await self._drop(key)

    def cancel(self) -> None:
        """End all answers at their next token: the server stops."""
        for room in self._rooms.values():
            for tab in list(room.tabs.values()):
                tab.session.cancel()

    async def _make_way(self, key: str) -> None:
        """Drop rooms that have waited too long, and the one that has waited longest where all are taken."""
        now = time.monotonic()
        for old in [k for k, left in self._left.items() if now - left > self._keep_s and k != key]:
            await self._drop(old)
        if key in self._rooms or len(self._rooms) < self._most:
            return
        if not self._left:
            raise StateError(
                f"{self._most} pages are open already, each with a state of its own",
                hint="close one of them, then try again",
            )
        await self._drop(min(self._left, key=self._left.__getitem__))

    async def _drop(self, key: str) -> None:
        room = self._rooms.pop(key)
        self._left.pop(key, None)
        await asyncio.to_thread(room.close)
