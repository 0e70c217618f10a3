"""One WebSocket: what a page sends is done, what happens is sent to the page."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from apps.page import messages
from apps.page.about import describe
from apps.page.answers import answer
from apps.page.room import Room, Tab
from apps.page.rooms import Rooms
from runtime.errors import InputError, VisualRWKVError
from runtime.reply import resident_bytes

OUTBOX = 512  # messages that may wait for a slow page; figures are left out sooner
TICK_S = 0.5  # between two looks at the figures
PREVIEW_S = 0.1  # between two pictures of the robot's camera
REPLACED, FULL, IMPOLITE = 4001, 4003, 4008  # codes the connection is closed with

_log = logging.getLogger(__name__)


class Link:
    """The connection of one page; `run` it once."""

    def __init__(self, socket: WebSocket, rooms: Rooms, boot: str) -> None:
        """`boot` tells one start of the server from another."""
        self._socket, self._rooms, self._boot = socket, rooms, boot
        self._outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue(OUTBOX)
        self._sending = asyncio.Lock()
        self._more = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._acting = asyncio.Lock()
        self._room: Room

    async def run(self) -> None:
        """Talk until one side has had enough."""
        await self._socket.accept()
        with contextlib.suppress(WebSocketDisconnect):
            hello = await self._first()
            if hello is None:
                return
            try:
                self._room, known = await self._rooms.enter(hello.room, self)
            except VisualRWKVError as error:
                await self._send({"type": "refused", **messages.explain(error)})
                await self._close(FULL)
                return
            try:
                await self._send(describe(self._room, self._boot, known))
                for job in (self._write(), self._tick(), self._preview()):
                    self._start(job)
                await self._read()
            finally:
                self._rooms.leave(self._room, self)
                await self._end()

    async def replaced(self) -> None:
        """Another page has taken the room over: this one is told, and closed."""
        await self._close(REPLACED)

    def tell(self, message: dict[str, object]) -> None:
        """Send a message soon; without room in the outbox the page is told nothing, and sees it at its next visit."""
        with contextlib.suppress(asyncio.QueueFull):
            self._outbox.put_nowait(message)

    async def _first(self) -> messages.Hello | None:
        try:
            raw = await asyncio.wait_for(self._socket.receive(), 10.0)
            message = messages.read(raw.get("text") or "")
        except (InputError, asyncio.TimeoutError):
            message = None
        if isinstance(message, messages.Hello):
            return message
        await self._close(IMPOLITE)
        return None

    async def _read(self) -> None:
        """Take what the page sends. One thing is done after the other; only answers run beside."""
        while True:
            raw = await self._socket.receive()
            if raw["type"] == "websocket.disconnect":
                return
            try:
                if raw.get("bytes") is not None:
                    self._room.page.put(raw["bytes"])
                    await self._outbox.put({"type": "ack"})
                else:
                    await self._do(messages.read(raw.get("text") or ""))
            except VisualRWKVError as error:
                await self._outbox.put({"type": "error", "tab": 0, **messages.explain(error)})

    async def _do(self, message: messages.Message) -> None:
        room = self._room
        if isinstance(message, messages.More):
            self._more.set()
        elif isinstance(message, messages.Ask):
            self._start(self._answer(room.tab(message.tab), message))
        elif isinstance(message, messages.Watch):
            await self._act(room.watch, room.tab(message.tab), message.camera)
        elif isinstance(message, messages.Act):
            tab = room.tab(message.tab)
            if message.what == "stop":
                tab.session.cancel()
            elif message.what == "fork":
                other = await self._act(room.fork, tab)
                await self._outbox.put({"type": "forked", "from": tab.number, **other.describe()})
            else:
                call = {"undo": room.undo, "reset": room.reset, "close": room.close_tab}[message.what]
                await self._act(call, tab)
                past = {"undo": "undone", "reset": "cleared", "close": "closed"}[message.what]
                await self._outbox.put({"type": past, "tab": tab.number})
        if not isinstance(message, messages.More):
            await self._outbox.put(self._figures())

    async def _act(self, call: Callable[..., Any], *arguments: Any) -> Any:
        async with self._acting:
            return await asyncio.to_thread(call, *arguments)

    async def _answer(self, tab: Tab, ask: messages.Ask) -> None:
        async with contextlib.aclosing(answer(self._room, tab, ask)) as said:
            async for message in said:
                await self._outbox.put(message)
            await self._outbox.put(self._figures())

    async def _tick(self) -> None:
        """Send the figures where they have changed, and what happened to cameras."""
        robot, told, last = self._rooms.robot, 0, ""
        while True:
            await asyncio.sleep(TICK_S)
            for tab in list(self._room.tabs.values()):
                if tab.watching is not None and tab.watching.ended:
                    error = tab.watching.error
                    await self._act(tab.end_watch)
                    text = f"{tab.name} has stopped watching" + (f": {error.found}" if error else "")
                    await self._outbox.put({"type": "notice", "text": text})
            for number, text in robot.notices(told) if robot else []:
                told = number
                await self._outbox.put({"type": "notice", "text": text})
            figures = self._figures()
            text = json.dumps(figures)
            if text != last and self._outbox.qsize() < OUTBOX // 2:
                last = text
                await self._outbox.put(figures)

    async def _preview(self) -> None:
        """Send pictures of the robot's camera, each when the page has drawn the one before."""
        robot, number = self._rooms.robot, -1
        while robot is not None:
            await self._more.wait()
            picture = await asyncio.to_thread(robot.preview, number)
            if picture is not None:
                number, data = picture
                self._more.clear()
                await self._send(data)
            await asyncio.sleep(PREVIEW_S)

    async def _write(self) -> None:
        while True:
            await self._send(await self._outbox.get())

    async def _send(self, message: dict[str, Any] | bytes) -> None:
        async with self._sending:
            if self._socket.application_state is WebSocketState.DISCONNECTED:
                raise WebSocketDisconnect
            if isinstance(message, bytes):
                await self._socket.send_bytes(message)
            else:
                await self._socket.send_text(json.dumps(message))

    async def _close(self, code: int) -> None:
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # the page was faster
            await self._socket.close(code)

    def _figures(self) -> dict[str, Any]:
        # In steps of 64 KiB: a page that nothing happens on is sent nothing.
        tabs = [tab.describe() for tab in list(self._room.tabs.values())]
        return {"type": "figures", "memory": resident_bytes() >> 16 << 16, "tabs": tabs}

    def _start(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, WebSocketDisconnect):
            _log.error("a page's task failed", exc_info=error)
            self.tell({"type": "error", "tab": 0, "found": "the server failed at this", "wanted": "", "hint": ""})

    async def _end(self) -> None:
        """The page has gone: end its answers, and its watches, whose pictures came from it or went to it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._rooms.visitor(self._room) is None:
            for tab in list(self._room.tabs.values()):
                if tab.camera == "page":
                    await self._act(tab.end_watch)
