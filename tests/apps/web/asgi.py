"""Calling an ASGI app by hand: exact headers, bodies in exact pieces."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from apps.web.guard import App, Guard, Message, Receive, Scope, Send


@dataclass
class Reply:
    """What came back."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    messages: list[Message] = field(default_factory=list)

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["error"]["code"])


class Inner:
    """An app that reads everything and says what it was asked."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        if scope["type"] == "websocket":
            while (message := await receive())["type"] != "websocket.disconnect":
                if message["type"] == "websocket.receive":
                    self.bodies.append((message.get("text") or "").encode() or message["bytes"])
            return
        body = b""
        while (message := await receive())["type"] != "http.disconnect":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"inside"})


def guarded(token: str | None = None, origins: Iterable[str] = (), max_body: int = 1000) -> tuple[Guard, Inner]:
    inner = Inner()
    return Guard(inner, token=token, origins=tuple(origins), max_body=max_body), inner


def call(
    app: App,
    method: str = "GET",
    path: str = "/",
    *,
    host: str = "localhost:8000",
    headers: dict[str, str] | None = None,
    body: Iterable[bytes] = (),
    kind: str = "http",
    extensions: Any = None,
) -> Reply:
    """One request; the path may have a query. Header names may be of any case."""
    path, _, query = path.partition("?")
    scope: dict[str, Any] = {
        "type": kind,
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in {"Host": host, **(headers or {})}.items()],
        "extensions": extensions,
    }
    pieces = list(body)
    if kind == "http":
        queue = [{"type": "http.request", "body": b, "more_body": i + 1 < len(pieces)} for i, b in enumerate(pieces)]
        queue = queue or [{"type": "http.request", "body": b"", "more_body": False}]
    else:
        queue = [{"type": "websocket.connect"}, *({"type": "websocket.receive", "bytes": b} for b in pieces)]
    reply = Reply()

    async def receive() -> Message:
        return queue.pop(0) if queue else {"type": f"{kind}.disconnect", "code": 1005}

    async def send(message: Message) -> None:
        reply.messages.append(message)
        if message["type"].endswith(".start"):
            reply.status = message["status"]
            reply.headers = {k.decode().lower(): v.decode("latin-1") for k, v in message["headers"]}
        reply.body += message.get("body", b"")

    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    return reply
