"""Pictures that clients send or name: data: addresses, and public http(s) addresses where the server allows them.

Everything is bounded before it costs anything: bytes before they are read, pixels before they are decoded (from the
header). An address is fetched only if every address its name stands for is a public one, and the connection goes to
the very address that was checked, so that a name cannot be made to point elsewhere in between.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import http.client
import io
import ipaddress
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit

from PIL import Image

from apps.serve.settings import Settings
from runtime.errors import InputError
from runtime.image import FORMATS

Resolve = Callable[[str, int], list[str]]
REDIRECTS = {301, 302, 303, 307, 308}
UNICAST = ipaddress.ip_network("2000::/3")


@dataclass(frozen=True)
class Sent:
    """A picture that was sent, opened but not decoded."""

    image: Image.Image
    digest: bytes  # of the file


def open_picture(url: str, settings: Settings, *, resolve: Resolve | None = None) -> Sent:
    """Read a picture's header. May take as long as `settings.fetch_s` for an http(s) address.

    Args:
        url: data: with base64 or percent-encoding, or http(s).
        settings: the limits.
        resolve: name and port -> addresses; the system's by default.

    Raises:
        InputError: no picture, too large, or an address that may not be fetched.
    """
    scheme = url[:8].partition(":")[0].lower()
    if scheme == "data":
        data = _from_data(url)
    elif scheme in ("http", "https"):
        if not settings.allow_http:
            raise InputError("this server fetches no addresses", hint="send the picture as data:image/jpeg;base64,…")
        data = fetch(url, settings.max_body, settings.fetch_s, resolve or _resolve)
    else:
        raise InputError("a picture's address of an unknown kind", wanted="data:image/jpeg;base64,… or https://…")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own limit is above ours
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise InputError("a picture of very many pixels", wanted=f"at most {settings.max_pixels} pixels") from None
    except Exception as error:  # decoders of hostile files raise nearly anything
        raise InputError("a picture that cannot be read", hint="send a complete PNG, JPEG or WebP file") from error
    if image.width * image.height > settings.max_pixels:
        raise InputError(
            f"a picture of {image.width} x {image.height} pixels",
            wanted=f"at most {settings.max_pixels} pixels",
            hint="scale it down first: the model sees far fewer",
        )
    return Sent(image, hashlib.blake2b(data, digest_size=32).digest())


def fetch(url: str, limit: int, seconds: float, resolve: Resolve) -> bytes:
    """Return what an http(s) address holds: no redirects, at most `limit` bytes, within `seconds`.

    Raises `InputError`, which tells nothing of what a refused address would have answered.
    """
    parts, port = _split(url)
    assert parts.hostname
    end = time.monotonic() + seconds
    try:
        addresses = resolve(parts.hostname, port)
    except (OSError, UnicodeError):
        addresses = []
    if not addresses or not all(is_public(address) for address in addresses):
        raise InputError(
            f"{parts.hostname!r} is no public address", hint="send the picture as data:image/jpeg;base64,…"
        )
    connection = _Connection(parts, addresses[0], port, seconds)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"Accept": "image/*", "User-Agent": "visualrwkv-edge"})
        answer = connection.getresponse()
        if answer.status in REDIRECTS:
            raise InputError(f"{parts.hostname!r} redirects", hint="give the address where the picture is")
        if answer.status != 200:
            raise InputError(f"{parts.hostname!r} answers {answer.status}")
        data = bytearray()
        while len(data) <= limit and (piece := answer.read1(1 << 16)):
            data += piece
        if len(data) > limit or time.monotonic() > end:  # what was cut off in time looks complete
            raise InputError("the picture is too large, or comes too slowly", wanted=f"{limit} bytes, {seconds:g} s")
        return bytes(data)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise InputError(f"cannot fetch from {parts.hostname!r}", hint="send the picture as data:…") from error
    finally:
        connection.finish()


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet; one that wraps another kind of address does not."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        return ip in UNICAST and ip.is_global and ip.sixtofour is None and ip.teredo is None
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


class _Connection(http.client.HTTPConnection):
    """Connects to an address that was checked, whatever the name stands for by now; for so many seconds in all."""

    def __init__(self, parts: SplitResult, address: str, port: int, seconds: float) -> None:
        super().__init__(parts.hostname or "", port, timeout=seconds)
        self._address, self._secure = address, parts.scheme.lower() == "https"
        self._open: list[socket.socket] = []  # `sock` is gone as soon as the answer's head is there
        self._timer = threading.Timer(seconds, self._stop)
        self._timer.daemon = True

    def connect(self) -> None:
        self._timer.start()
        self.sock = socket.create_connection((self._address, self.port), self.timeout)
        if self._secure:
            context = ssl.create_default_context()
            wrapped = context.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self.sock = wrapped
            self._open.append(wrapped)
            wrapped.do_handshake()
        else:
            self._open.append(self.sock)

    def finish(self) -> None:
        """Close, and stop the clock."""
        self._timer.cancel()
        self.close()

    def _stop(self) -> None:
        """Wake whoever waits for the socket: a server can send one byte at a time for ever."""
        for opened in self._open:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(opened, socket.SHUT_RDWR)


def _split(url: str) -> tuple[SplitResult, int]:
    wrong = InputError("an address that is malformed", wanted="https://host/picture.jpg")
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url or len(url) > 2048:
        raise wrong
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme.lower()]
    except (ValueError, KeyError):
        raise wrong from None
    if not parts.hostname or "@" in parts.netloc:
        raise wrong
    return parts, port


def _resolve(host: str, port: int) -> list[str]:
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _from_data(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma:
        raise InputError("a data: address without a comma", wanted="data:image/jpeg;base64,…")
    try:
        raw = unquote_to_bytes(body) if "%" in body else body.encode("ascii")
        return base64.b64decode(raw, validate=True) if head.lower().endswith(";base64") else raw
    except (binascii.Error, ValueError):
        raise InputError("a data: address that is no base64", wanted="data:image/jpeg;base64,…") from None
