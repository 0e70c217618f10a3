"""Nothing is reachable without the key; nothing malformed, oversized or forged gets further than an error."""

from __future__ import annotations

import gzip
import json
import socket
from typing import Any

import pytest

from runtime import VisualRWKV
from tests.apps.serve.conftest import MODEL, Serve, Server

KEY = "a-key-of-twenty-four-chars"
STATE = "state-" + "a" * 32
ROUTES = [
    ("POST", "/v1/chat/completions"),
    ("GET", "/v1/models"),
    ("GET", f"/v1/models/{MODEL}"),
    ("GET", f"/v1/states/{STATE}"),
    ("DELETE", f"/v1/states/{STATE}"),
    ("POST", f"/v1/states/{STATE}/fork"),
    ("POST", f"/v1/states/{STATE}/undo"),
    ("GET", "/metrics"),
    ("GET", "/healthz"),
    ("GET", "/openapi.json"),
]


@pytest.fixture(scope="module")
def closed(serve: Serve, demo: VisualRWKV) -> Server:
    return serve(demo, key=KEY, max_body=1 << 16, slots=1)


def test_nothing_without_the_key(closed: Server) -> None:
    document = closed.call("GET", "/openapi.json", headers={"Authorization": f"Bearer {KEY}"})[1]
    known = {(m.upper(), path) for path, item in document["paths"].items() for m in item}
    listed = {(m, path.replace(STATE, "{state}").replace(f"/models/{MODEL}", "/models/{name}")) for m, path in ROUTES}
    assert known <= listed  # whoever adds a route adds it here
    assert document["security"] == [{"key": []}]
    for method, path in [*ROUTES, ("GET", "/"), ("GET", "/docs"), ("OPTIONS", "/v1/models"), ("TRACE", "/")]:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}, {"Cookie": KEY}):
            status, found, _ = closed.call(method, path, {} if method == "POST" else None, headers=headers)
            assert (status, found["error"]["code"]) == (401, "invalid_api_key"), (method, path)


def test_everything_with_it(closed: Server) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    statuses = {path: closed.call(method, path, {}, headers=headers)[0] for method, path in ROUTES}
    assert 401 not in statuses.values() and 403 not in statuses.values()
    assert closed.chat("Hello", max_tokens=1, headers=headers)[0] == 200


def test_the_wrong_key_is_an_error_of_the_client(closed: Server) -> None:
    openai = pytest.importorskip("openai", reason='needs pip install "openai>=2"')
    asked: Any = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    for key, error in (("wrong", openai.AuthenticationError), (KEY, None)):
        with openai.OpenAI(base_url=f"{closed.address}/v1", api_key=key, max_retries=0) as client:
            if error:
                with pytest.raises(error):
                    client.chat.completions.create(**asked)
            else:
                assert client.chat.completions.create(**asked).choices


def test_pages_of_others_cannot_ask(server: Server) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
    for headers, code in (
        ({"Origin": "http://evil.example"}, "origin_not_allowed"),
        ({"Origin": "null"}, "origin_not_allowed"),
        ({"Host": "evil.example"}, "host_not_allowed"),
    ):
        status, found, _ = server.call("POST", "/v1/chat/completions", body, headers=headers)
        assert (status, found["error"]["code"]) == (403, code)


def test_allowed_pages_can(serve: Serve, demo: VisualRWKV) -> None:
    page = "https://robots.example"
    server = serve(demo, origins=(page,), slots=1)
    asking = {"Origin": page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    status, _, headers = server.call("OPTIONS", "/v1/chat/completions", headers=asking)
    assert (status, headers["access-control-allow-origin"]) == (200, page)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    status, _, headers = server.call("POST", "/v1/chat/completions", body, headers={"Origin": page})
    assert (status, headers["access-control-allow-origin"]) == (200, page)
    other = server.call("POST", "/v1/chat/completions", body, headers={"Origin": "https://evil.example"})
    assert other[0] == 403 and "access-control-allow-origin" not in other[2]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe\x00",
        b"{" * 100_000,
        b"[" * 60_000,
        b'{"model":' * 5_000,
        b'{"a":' + b"9" * 50_000 + b"}",
        b'{"model":"model","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
        b'{"model":"model","messages":[{"role":"user","content":"x"}],"temperature":1e999}',
        b'{"model":"model","messages":[{"role":"user","content":"x"}],"seed":' + b"9" * 400 + b"}",
        gzip.compress(b'{"model":"model"}'),
    ],
    ids=range(14),
)
def test_malformed_bodies(server: Server, raw: bytes) -> None:
    status, found, _ = server.call("POST", "/v1/chat/completions", raw=raw)
    assert status == 400
    assert found["error"]["type"] == "invalid_request_error" and len(found["error"]["message"]) < 1000


def test_text_that_is_no_text(server: Server) -> None:
    raw = json.dumps(
        {
            "model": MODEL,
            "max_tokens": 2,
            "messages": [{"role": "user", "content": "\ud800 \x00 \U0001f600"}],
        }
    )
    assert server.call("POST", "/v1/chat/completions", raw=raw.encode())[0] in (200, 400)


def test_other_content_types_are_refused(server: Server) -> None:
    raw = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):  # what any page may send
        assert server.call("POST", "/v1/chat/completions", raw=raw, headers={"Content-Type": kind})[0] == 400


def test_oversized_bodies(closed: Server) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x" * (1 << 16)}]}
    status, found, _ = closed.call("POST", "/v1/chat/completions", body, headers=headers)
    assert (status, found["error"]["code"]) == (413, "body_too_large")
    host, port = closed.address.removeprefix("http://").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\n"
    with socket.create_connection((host, int(port)), 20) as connection:
        connection.sendall(f"{head}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(20):
            connection.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "path",
    ["/v1/models/../../../etc/passwd", "/v1/models/..%2f..%2fetc%2fpasswd", "/..%2f..%2fetc/passwd", "//etc/passwd",
     "/v1/states/..%2f..%2f..%2fetc%2fpasswd", "/static/../../pyproject.toml", "/%00", "/v1/models/%ff%fe"],
)  # fmt: skip
def test_paths_lead_nowhere(server: Server, path: str) -> None:
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 20) as connection:  # as it is: no client tidies it up
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while piece := connection.recv(4096):
            answer += piece
    assert answer.split()[1] in (b"404", b"400")
    assert b"root:" not in answer and b"visualrwkv-edge" not in answer


def test_unknown_routes_look_like_other_errors(server: Server) -> None:
    for method, path, status in (("GET", "/v2", 404), ("PUT", "/v1/models", 405), ("GET", "/v1/chat/completions", 405)):
        found = server.call(method, path)
        assert (found[0], set(found[1]["error"])) == (status, {"message", "type", "param", "code"})
