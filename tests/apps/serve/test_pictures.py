"""Pictures of strangers: bombs, lies, and addresses that are none of theirs."""

from __future__ import annotations

import base64
import contextlib
import http.server
import io
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from apps.serve import pictures
from apps.serve.pictures import fetch, is_public, open_picture
from apps.serve.settings import Settings
from runtime.errors import InputError
from tests.apps.serve.conftest import Server, data_url, frame_at, show

LIMITS = Settings()
HTTP = replace(LIMITS, allow_http=True, fetch_s=2.0)


def png(width: int, height: int, *, data: bytes = b"") -> bytes:
    """A PNG file that says to be so large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def data_of(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def test_data_addresses() -> None:
    url = data_url(frame_at(0.8))
    found = open_picture(url, LIMITS)
    assert found.image.size == (512, 512)
    assert open_picture(url.replace("data:image/png", "DATA:application/x;charset=x", 1), LIMITS).digest == found.digest
    gif = io.BytesIO()
    Image.new("P", (3, 2)).save(gif, "gif")
    escaped = "".join(f"%{byte:02x}" for byte in gif.getvalue())
    assert open_picture(f"data:image/gif,{escaped}", LIMITS).image.size == (3, 2)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("data:image/png;base64", "without a comma"),
        ("data:image/png;base64,!!!!", "no base64"),
        ("data:image/png;base64,é", "no base64"),
        ("data:,", "cannot be read"),
        (data_of(b"GIF89a"), "cannot be read"),
        (data_of(b"%PDF-1.4 not a picture"), "cannot be read"),
        (data_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "cannot be read"),  # would start a program
        (data_of(png(20_000, 20_000)), "very many pixels"),
        (data_of(png(10_000, 10_000)), "10000 x 10000 pixels"),
        (data_of(png(2**31 - 1, 2**31 - 1)), "pixels"),
        (data_of(png(4473, 4473)), "4473 x 4473 pixels"),
        ("file:///etc/passwd", "unknown kind"),
        ("/etc/passwd", "unknown kind"),
        ("ftp://example.com/x.png", "unknown kind"),
        ("gopher://127.0.0.1:6379/_x", "unknown kind"),
        ("", "unknown kind"),
        ("https://example.com/x.png", "fetches no addresses"),
    ],
)
def test_what_is_no_picture(url: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        open_picture(url, LIMITS)


def test_bombs_are_refused_over_http(server: Server) -> None:
    """Refused by their header: a gigabyte of zeros in a megabyte is never unpacked."""
    zeros = zlib.compress(bytes(30_000_000), 9)
    for content in (png(20_000, 20_000, data=zeros), png(100_000, 5_000, data=zeros)):
        assert server.refused(show("What is it?", data_of(content))) == (400, "invalid_value")
    cut_short = data_of(png(4000, 4000, data=zeros[:1000]))  # says what is allowed, holds less
    assert server.refused(show("What is it?", cut_short)) == (400, "invalid_value")
    many = [data_url(frame_at(0.8)[:8, :8])] * 17
    assert server.refused(show("What are these?", *many)) == (400, "too_many_images")
    assert server.refused(show("What is it?", "http://127.0.0.1:22/")) == (400, "invalid_value")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::", "::1", "::ffff:127.0.0.1",
        "::ffff:169.254.169.254", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1",
        "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::", "fec0::1", "::7f00:1", "localhost", "", "1.2.3",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)
    with pytest.raises(InputError, match="no public address"):
        open_picture("http://robots.example/x.png", HTTP, resolve=lambda host, port: ["8.8.8.8", address])


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_that_are(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://user:pass@example.com/",
        "http://exa mple.com/",
        "http://example.com\\@evil.example/",
        "http://example.com/\r\nHost: evil",
        "http://example.com:99999/",
        "http://example.com:x/",
        "http:///x.png",
        "http://[::1/x.png",
        "https://example.com/" + "x" * 3000,
        "http://ｅxample.com/",
    ],
)
def test_malformed_addresses(url: str) -> None:
    with pytest.raises(InputError, match="malformed"):
        open_picture(url, HTTP, resolve=lambda host, port: ["8.8.8.8"])


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:1/", "http://localhost/", "http://[::1]/", "http://0/", "http://2130706433/", "http://0x7f.1/",
     "http://169.254.169.254/latest/meta-data/"],
)  # fmt: skip
def test_this_machine_is_never_asked(url: str) -> None:
    with pytest.raises(InputError, match="no public address"):
        open_picture(url, HTTP)


class Site(http.server.BaseHTTPRequestHandler):
    """A site that may be good, slow, large, or send one elsewhere."""

    def do_GET(self) -> None:
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "http://169.254.169.254/")
            self.end_headers()
        elif self.path == "/drip":
            self.send_response(200)
            self.end_headers()
            for _ in range(1000):
                self.wfile.write(b"x")
                time.sleep(0.02)
        elif self.path == "/head":
            while True:
                self.wfile.write(b"HTTP/1.1 200 OK and")
                time.sleep(0.02)
        elif self.path == "/large":
            self.send_response(200)
            self.end_headers()
            for _ in range(1000):
                self.wfile.write(bytes(1 << 16))
        elif self.path == "/picture?size=1":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.headers["Host"].encode())
        else:
            self.send_error(404)

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the other side has hung up, as it should
            super().handle()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A site on this machine that passes for a public one; returns its port."""
    monkeypatch.setattr(pictures, "is_public", lambda address: address == "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def here(host: str, port: int) -> list[str]:
    return ["127.0.0.1"]


def test_a_picture_is_fetched_from_the_address_that_was_checked(site: int) -> None:
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return here(host, port)

    data = fetch(f"http://robots.example:{site}/picture?size=1", 1000, 5, resolve)
    assert data == f"robots.example:{site}".encode()
    assert asked == ["robots.example"]  # once: nothing can change in between


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("redirect", "redirects"),
        ("missing", "answers 404"),
        ("large", "too large"),
        ("drip", "slowly"),
        ("head", "cannot|slowly"),
    ],
)
def test_what_a_site_may_not_do(site: int, path: str, says: str) -> None:
    began = time.monotonic()
    with pytest.raises(InputError, match=says):
        fetch(f"http://robots.example:{site}/{path}", 1 << 20, 0.5, here)
    assert time.monotonic() - began < 15


def test_a_site_that_is_not_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="cannot fetch"):
            patch.setattr(pictures, "is_public", lambda address: True)
            fetch(f"http://robots.example:{taken.getsockname()[1]}/", 1000, 1, here)
    with pytest.raises(InputError, match="no public address"):
        fetch("https://robots.example/", 1000, 1, lambda host, port: [])
