"""Who may come in: a token, the origin of pages, the name a server is called by, and the size of what is sent.

A server on this machine is reached by every page that a browser on it has open. Without a token, three checks keep
those out: `Host` must be a name of this machine (a page that points its own name here fails), a WebSocket and every
method that changes something must come from our own page, and nothing is sent that would let another page read.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SAFE = {"GET", "HEAD", "OPTIONS"}
BODY_S = 30.0  # a body has to be here in so many seconds
LINGER_S = 2.0  # how long the rest of a refused body is read, so that its sender comes to read the answer


class Guard:
    """ASGI middleware that answers for the app whatever it must not see.

    Refusals are JSON as OpenAI's servers write it: {"error": {"message", "type", "param", "code"}}.
    """

    def __init__(
        self, app: App, *, token: str | None, origins: Sequence[str] = (), max_body: int, body_s: float = BODY_S
    ) -> None:
        """Wrap an app.

        Args:
            app: what is guarded; it sees no `?token=`.
            token: what callers must show, as `Authorization: Bearer`, in the query or in the cookie that a page gets
                when it was opened with `?token=`. None lets everybody in who calls this machine by its own name.
            origins: pages that may send to us beside our own, as "https://robots.example"; also names in `Host`.
            max_body: bytes that one request, or one message of a WebSocket, may have.
            body_s: seconds that a body may take to arrive.
        """
        self._app, self._max_body, self._body_s = app, max_body, body_s
        self._token = None if token is None else token.encode()
        self._origins = {origin.rstrip("/").lower() for origin in origins}
        self._hosts = {urlsplit(origin).hostname for origin in self._origins}
        digest = hmac.new(self._token or b"", b"visualrwkv cookie", hashlib.sha256).hexdigest()
        # Cookies do not tell ports apart: servers with different tokens on one machine need different names.
        self._cookie_name, self._cookie = f"vrwkv-{digest[:8]}", digest[8:]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on with a limit on what is received."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = _headers(scope)
        refused = self._refusal(scope, headers)
        if refused is not None:
            await refuse(scope, receive, send, *refused, linger=self._max_body)
            return
        given, query = _split_token(scope)
        if given and self._token is not None and _is_page(scope, headers):
            await self._welcome(scope, send, query)
            return
        inner = {**scope, "query_string": query} if given else scope
        if scope["type"] == "websocket":
            await self._app(inner, _Messages(self._max_body, receive, send).receive, send)
        else:
            limited = _Body(self._max_body, self._body_s, scope, receive, send)
            await self._app(inner, limited.receive, limited.send)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str, str] | None:
        """Return status, code and message of what is wrong with a request, None if nothing is."""
        host = headers.get("host", "")
        if self._token is None and not self._is_ours(host):
            message = f"this server is not called {host[:100]!r}; call it localhost or 127.0.0.1, or set a token"
            return 403, "host_not_allowed", message
        origin = headers.get("origin")
        changes = scope["type"] == "websocket" or scope["method"] not in SAFE
        if changes and origin is not None and not self._is_known(origin, host, scope):
            return 403, "origin_not_allowed", f"pages of {origin[:100]!r} may not send to this server"
        if self._token is not None and not self._is_authorised(scope, headers):
            message = "no token, or a wrong one; send 'Authorization: Bearer TOKEN', or open the page with ?token=TOKEN"
            return 401, "invalid_api_key", message
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) > self._max_body:
            return 413, "body_too_large", f"the body may have {self._max_body} bytes, not {length[:30]}"
        return None

    def _is_ours(self, host: str) -> bool:
        """Whether `Host` names this machine by itself: nobody can make DNS answer for these."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return is_loopback(name) or name in self._hosts

    def _is_known(self, origin: str, host: str, scope: Scope) -> bool:
        secure = scope.get("scheme") in ("https", "wss")
        own = f"{'https' if secure else 'http'}://{host}"
        return origin.lower() == own.lower() or origin.lower() in self._origins

    def _is_authorised(self, scope: Scope, headers: dict[str, str]) -> bool:
        assert self._token is not None
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if kind.lower() == "bearer" else ""
        asked, _ = _split_token(scope)
        cookie = _cookie(headers.get("cookie", ""), self._cookie_name)
        # All are compared, whichever is right: the time tells nothing.
        found = [_same(given, self._token), _same(asked, self._token), _same(cookie, self._cookie.encode())]
        return any(found)

    async def _welcome(self, scope: Scope, send: Send, query: bytes) -> None:
        """Keep the token in a cookie and out of the address: send the browser to the page without it."""
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        # Lax: with Strict, a link in a mail would arrive here without the cookie that has just been set.
        cookie = f"{self._cookie_name}={self._cookie}; Path=/; HttpOnly; SameSite=Lax{secure}"
        # One slash in front: "//name" would be an address of another machine.
        path = "/" + (scope.get("raw_path") or scope["path"].encode()).decode("latin-1").lstrip("/\\")
        there = path + (f"?{query.decode('latin-1')}" if query else "")
        headers = [("location", there), ("set-cookie", cookie), ("cache-control", "no-store")]
        await _answer(send, 303, headers, b"")


class _Body:
    """Counts the bytes of a request and the time they take; too many of either end it, whatever the app would say."""

    def __init__(self, limit: int, seconds: float, scope: Scope, receive: Receive, send: Send) -> None:
        self._left, self._limit, self._seconds = limit, limit, seconds
        self._scope, self._receive, self._send = scope, receive, send
        self._started = self._over = self._complete = False
        self._end = 0.0

    async def receive(self) -> Message:
        if self._over:
            return {"type": "http.disconnect"}
        if self._complete:  # what is waited for now is that the client leaves
            return await self._receive()
        self._end = self._end or asyncio.get_running_loop().time() + self._seconds
        try:
            left = max(0.0, self._end - asyncio.get_running_loop().time())
            message = await asyncio.wait_for(self._receive(), left)
        except asyncio.TimeoutError:
            return await self._stop(408, "body_too_slow", f"the body may take {self._seconds:g} seconds")
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            return await self._stop(413, "body_too_large", f"the body may have {self._limit} bytes")
        self._complete = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if not self._over:
            self._started = True
            await self._send(message)

    async def _stop(self, status: int, code: str, text: str) -> Message:
        self._over = True
        if not self._started:
            await refuse(self._scope, self._receive, self._send, status, code, text, linger=self._limit)
        return {"type": "http.disconnect"}


class _Messages:
    """Closes a WebSocket (code 1009) at the first message that is too long."""

    def __init__(self, limit: int, receive: Receive, send: Send) -> None:
        self._limit, self._receive, self._send = limit, receive, send

    async def receive(self) -> Message:
        message = await self._receive()
        text, data = message.get("text"), message.get("bytes")
        size = max(len(data or b""), len(text.encode("utf-8", "replace")) if text else 0)
        if size > self._limit:
            await self._send({"type": "websocket.close", "code": 1009, "reason": "message too long"})
            return {"type": "websocket.disconnect", "code": 1009}
        return message


def is_loopback(host: str) -> bool:
    """Whether a host name or address, without port or brackets, is this machine's own by definition."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def error_body(message: str, *, kind: str, code: str | None = None, param: str | None = None) -> bytes:
    """Return an error as OpenAI's servers write it, JSON in UTF-8."""
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}}).encode()


async def refuse(
    scope: Scope,
    receive: Receive,
    send: Send,
    status: int,
    code: str,
    message: str,
    *,
    kind: str = "",
    headers: Sequence[tuple[str, str]] = (),
    linger: int = 0,
) -> None:
    """Answer a request, or a WebSocket that is not open yet, with an error.

    Args:
        scope: of the request, like `receive` and `send`.
        status: of HTTP.
        code: the error's code, for programs.
        message: for people.
        kind: the error's type; told from the status by default.
        headers: to be sent as well.
        linger: bytes of the request's body that are read and dropped. A client that is still sending when the
            connection is closed would see that, and not the answer.
    """
    kind = kind or ("authentication_error" if status == 401 else "invalid_request_error")
    own = [("content-type", "application/json"), ("connection", "close"), ("cache-control", "no-store"), *headers]
    if status == 401:
        own.append(("www-authenticate", "Bearer"))
    body = error_body(message, kind=kind, code=code)
    if scope["type"] == "http":
        await _answer(send, status, own, body, last=False)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_drop(receive, linger), LINGER_S)
        await send({"type": "http.response.body", "body": b""})
        return
    await receive()  # websocket.connect
    if "websocket.http.response" in (scope.get("extensions") or {}):
        await _answer(send, status, own, body, "websocket.http.response")
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": code})


async def _drop(receive: Receive, limit: int) -> None:
    more = True
    while more and limit > 0:
        message = await receive()
        limit -= len(message.get("body", b""))
        more = message.get("more_body", False)


async def _answer(
    send: Send,
    status: int,
    headers: Sequence[tuple[str, str]],
    body: bytes,
    kind: str = "http.response",
    *,
    last: bool = True,
) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    raw.append((b"content-length", str(len(body)).encode()))
    await send({"type": f"{kind}.start", "status": status, "headers": raw})
    await send({"type": f"{kind}.body", "body": body, "more_body": not last})


def _headers(scope: Scope) -> dict[str, str]:
    """Return the headers by name; of one that is sent twice, the last."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _split_token(scope: Scope) -> tuple[str, bytes]:
    """Return the token in the query, and the query without it."""
    raw: bytes = scope.get("query_string", b"")
    if b"token=" not in raw:
        return "", raw
    pairs = parse_qsl(raw.decode("latin-1"), keep_blank_values=True)
    given = next((value for name, value in pairs if name == "token"), "")
    return given, urlencode([pair for pair in pairs if pair[0] != "token"]).encode()


def _is_page(scope: Scope, headers: dict[str, str]) -> bool:
    return scope["type"] == "http" and scope["method"] == "GET" and "text/html" in headers.get("accept", "")


def _cookie(text: str, name: str) -> str:
    try:
        morsel = SimpleCookie(text).get(name)
    except CookieError:
        return ""
    return morsel.value if morsel else ""


def _same(given: str, wanted: bytes) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted)
