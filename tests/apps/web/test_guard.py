"""Who may come in."""

from __future__ import annotations

import asyncio

import pytest

from apps.web.guard import Guard, Message, Receive, Scope, Send, is_loopback
from tests.apps.web.asgi import Inner, call, guarded

TOKEN = "0123456789abcdefghij"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "127.0.0.1:80", "[::1]:8000", "127.8.9.10", "LOCALHOST"]
)
def test_without_a_token_this_machine_is_let_in(host: str) -> None:
    guard, _ = guarded()
    assert call(guard, host=host).body == b"inside"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "", "192.168.1.5", "localhost.evil.example", "[::"]
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_a_name_that_points_here_is_refused(host: str, kind: str) -> None:
    guard, inner = guarded()
    reply = call(guard, host=host, kind=kind, extensions={"websocket.http.response": {}})
    assert (reply.status, reply.code, inner.scopes) == (403, "host_not_allowed", [])


def test_names_of_allowed_origins_may_be_called() -> None:
    guard, _ = guarded(origins=["https://robots.example/"])
    assert call(guard, host="robots.example").status == 200
    assert call(guard, host="other.example").status == 403


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8000", 200),
        ("https://robots.example", 200),
        ("HTTPS://ROBOTS.EXAMPLE", 200),
        ("http://localhost:9000", 403),  # another server on this machine
        ("http://evil.example", 403),
        ("https://localhost:8000", 403),
        ("null", 403),  # a sandboxed frame
        ("", 403),
    ],
)
def test_pages_of_others_may_change_nothing(origin: str, status: int) -> None:
    guard, inner = guarded(origins=["https://robots.example"])
    assert call(guard, "POST", headers={"Origin": origin}, body=[b"x"]).status == status
    assert call(guard, "DELETE", headers={"Origin": origin}).status == status
    assert call(guard, "GET", headers={"Origin": origin}).status == 200  # what it answers, the browser keeps from them
    before = len(inner.scopes)
    call(guard, kind="websocket", headers={"Origin": origin})
    assert (len(inner.scopes) > before) == (status == 200)


def test_a_token_is_asked_for_everywhere() -> None:
    guard, inner = guarded(TOKEN)
    for method, path in (("GET", "/"), ("POST", "/v1/x"), ("GET", "/healthz"), ("OPTIONS", "/"), ("HEAD", "/")):
        reply = call(guard, method, path)
        assert (reply.status, reply.code) == (401, "invalid_api_key")
        assert reply.headers["www-authenticate"] == "Bearer"
        assert TOKEN not in reply.body.decode()
    assert not inner.scopes
    assert call(guard, "POST", "/v1/x", headers=BEARER).body == b"inside"
    assert call(guard, headers={"Authorization": f"bearer {TOKEN}"}, host="robot.local").status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer \xff\xfe"},
        {"Cookie": f"vrwkv={TOKEN}"},
        {"Cookie": "\x00;;==, ;"},
        {"Cookie": ""},
    ],
)
def test_a_wrong_token_is_refused(headers: dict[str, str]) -> None:
    guard, inner = guarded(TOKEN)
    for path in ("/", "/?token=", "/?token=wrong", f"/?token={TOKEN}x", "/?Token=" + TOKEN, "/?x=" + TOKEN):
        assert call(guard, path=path, headers=headers).status == 401
    assert not inner.scopes


def test_a_browser_keeps_the_token_as_a_cookie() -> None:
    guard, inner = guarded(TOKEN)
    reply = call(guard, path=f"/page?a=1&token={TOKEN}&b=%20", headers={"Accept": "text/html,*/*"})
    assert (reply.status, reply.headers["location"]) == (303, "/page?a=1&b=+")
    cookie, *flags = reply.headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(flags)
    assert TOKEN not in cookie
    assert not inner.scopes
    assert call(guard, path="/page", headers={"Cookie": f"other=1; {cookie}"}).body == b"inside"
    call(guard, kind="websocket", headers={"Cookie": cookie})
    assert len(inner.scopes) == 2
    other, _ = guarded(TOKEN + "2")
    assert call(other, headers={"Cookie": cookie}).status == 401


def test_the_redirect_stays_on_this_machine() -> None:
    guard, _ = guarded(TOKEN)
    for path in (f"//evil.example/?token={TOKEN}", f"/\\evil.example?token={TOKEN}"):
        location = call(guard, path=path, headers={"Accept": "text/html"}).headers["location"]
        assert location.startswith("/evil.example")


def test_the_app_never_sees_the_token_in_the_address() -> None:
    guard, inner = guarded(TOKEN)
    assert call(guard, path=f"/metrics?token={TOKEN}&x=y").body == b"inside"
    call(guard, path=f"/live?token={TOKEN}", kind="websocket")
    assert [scope["query_string"] for scope in inner.scopes] == [b"x=y", b""]


@pytest.mark.parametrize("size", [0, 1, 999, 1000])
def test_bodies_up_to_the_limit_pass(size: int) -> None:
    guard, inner = guarded()
    call(guard, "POST", body=[b"x" * (size // 2), b"x" * (size - size // 2)], headers={"Content-Length": str(size)})
    assert inner.bodies == [b"x" * size]


@pytest.mark.parametrize("length", ["1001", "9" * 30, "-1", "ten", "1e3", "10, 10"])
def test_a_body_that_says_to_be_too_large_is_not_read(length: str) -> None:
    guard, inner = guarded()
    reply = call(guard, "POST", headers={"Content-Length": length}, body=[b"x"])
    assert (reply.status, reply.code, inner.scopes) == (413, "body_too_large", [])


def test_a_chunked_body_is_counted() -> None:
    guard, inner = guarded()
    reply = call(guard, "POST", headers={"Transfer-Encoding": "chunked"}, body=[b"x" * 400] * 50)
    assert (reply.status, reply.code) == (413, "body_too_large")
    assert len([m for m in reply.messages if m["type"] == "http.response.start"]) == 1  # the app's answer goes nowhere
    assert len(inner.bodies[0]) <= 1000


def test_a_body_that_does_not_arrive_is_not_waited_for() -> None:
    inner = Inner()
    guard = Guard(inner, token=None, max_body=1000, body_s=0.05)
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"localhost")]}
    asyncio.run(guard(scope, receive, send))
    assert [m["status"] for m in sent if "status" in m] == [408]


def test_after_the_body_the_app_may_wait_for_the_client_to_leave() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["body"] == b"all"
        assert (await receive())["type"] == "http.disconnect"
        left.append(True)

    async def receive() -> Message:
        if not asked:
            asked.append(True)
            return {"type": "http.request", "body": b"all", "more_body": False}
        await asyncio.sleep(0.1)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        raise AssertionError("nobody is there")

    asked: list[bool] = []
    left: list[bool] = []
    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"localhost")]}
    asyncio.run(Guard(app, token=None, max_body=3, body_s=0.01)(scope, receive, send))
    assert left


@pytest.mark.parametrize(("size", "closed"), [(1000, False), (1001, True)])
def test_a_message_that_is_too_long_closes_the_socket(size: int, closed: bool) -> None:
    guard, inner = guarded()
    reply = call(guard, kind="websocket", body=[b"x" * 5, b"x" * size, b"x"])
    codes = [message.get("code") for message in reply.messages]
    assert codes == ([1009] if closed else [])
    assert len(inner.bodies) == (1 if closed else 3)


def test_a_socket_is_refused_as_the_server_can() -> None:
    guard, inner = guarded(TOKEN)
    reply = call(guard, kind="websocket")
    assert [(m["type"], m["code"]) for m in reply.messages] == [("websocket.close", 1008)]
    reply = call(guard, kind="websocket", extensions={"websocket.http.response": {}})
    assert (reply.status, reply.messages[0]["type"]) == (401, "websocket.http.response.start")
    assert not inner.scopes


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("::1", True), ("127.0.0.2", True), ("0.0.0.0", False), ("::", False), ("robot", False)],
)
def test_what_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
