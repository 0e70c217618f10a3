"""Where a server listens, and how it stops."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from apps.web.bind import address_of, background, check_bind, listen
from runtime.errors import ConfigError
from tests.apps.web.asgi import Inner

pytest.importorskip("uvicorn", reason='needs pip install ".[serve]"')
ROOT = Path(__file__).resolve().parents[3]

PROGRAM = """
from apps.web.bind import run

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        print("closed", flush=True)
        await send({"type": "lifespan.shutdown.complete"})

run(app, ready=lambda where: print("at", where, flush=True), stopping=lambda: print("stopping", flush=True))
print("after", flush=True)
"""


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_needs_no_token(host: str) -> None:
    check_bind(host, None)
    check_bind(host, "short")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "robot.local", ""])
def test_others_need_a_token(host: str) -> None:
    with pytest.raises(ConfigError, match="no token") as found:
        check_bind(host, None)
    suggested = found.value.hint.removeprefix("--token ")
    check_bind(host, suggested)
    with pytest.raises(ConfigError, match="can be guessed"):
        check_bind(host, "fifteen--chars.")


@pytest.mark.parametrize("token", ["", "with space", "schlüssel", "line\n"])
def test_a_token_can_be_sent(token: str) -> None:
    with pytest.raises(ConfigError, match="unusual"):
        check_bind("localhost", token)


def test_a_taken_port_is_said() -> None:
    with listen("127.0.0.1", 0) as first:
        first.listen()
        port = first.getsockname()[1]
        assert address_of(first) == f"http://127.0.0.1:{port}"
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            listen("127.0.0.1", port)
    with pytest.raises(ConfigError, match=r"cannot listen on no\.such\.host\.invalid:80"):
        listen("no.such.host.invalid", 80)
    with pytest.raises(ConfigError, match="port 65536"):
        listen("127.0.0.1", 65536)


def test_a_server_in_the_background() -> None:
    inner = Inner()
    with background(inner, lifespan="off") as address, urllib.request.urlopen(f"{address}/x?y=1", timeout=20) as reply:
        assert reply.read() == b"inside"
        assert "server" not in reply.headers
    assert inner.scopes[0]["path"] == "/x"
    port = int(address.rsplit(":", 1)[1])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_good_order(number: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # A parent may have left SIGINT ignored; the program must see it as a terminal would send it.
    with subprocess.Popen(
        [sys.executable, "-c", f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{PROGRAM}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline().startswith("at http://127.0.0.1:")
        server.send_signal(number)
        rest = server.stdout.read().splitlines()
    assert rest == ["stopping", "closed", "after"]
    assert server.returncode == 0
