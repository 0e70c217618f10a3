"""The web server of the page: its files, its WebSocket, snapshots to download and to upload.

Everything is behind `apps.web.guard`: a token where others can reach the server, and only our own page may talk to it.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.page.cameras import FRAME_BYTES, RobotCamera
from apps.page.rooms import Rooms
from apps.web.bind import INSTALL, check_bind, run
from apps.web.guard import App, Guard, Message, Receive, Scope, Send, error_body
from runtime import GenerateOptions, VisualRWKV
from runtime.errors import InputError, TargetUnavailable, VisualRWKVError
from runtime.memory import snapshot_bytes
from runtime.spec import Padding

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.websockets import WebSocket

STATIC = Path(__file__).parent / "static"
TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
SNAPSHOT_EXTRA = 8 << 20  # bytes an uploaded snapshot may have beside its state: pictures that wait, and text
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def page_app(rooms: Rooms, *, token: str | None = None) -> App:
    """Return the ASGI app. Raises `TargetUnavailable` where the server packages are not installed."""
    try:
        from starlette.applications import Starlette
        from starlette.routing import Route, WebSocketRoute

        from apps.page.link import Link
    except ModuleNotFoundError as error:
        raise TargetUnavailable(f"the page needs {error.name!r}", hint=INSTALL) from None
    boot = secrets.token_hex(8)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await rooms.close()

    async def socket(websocket: WebSocket) -> None:
        await Link(websocket, rooms, boot).run()

    app = Starlette(
        routes=[
            *(Route(f"/static/{file.name}", _file(file)) for file in STATIC.iterdir() if file.suffix in TYPES),
            Route("/", _file(STATIC / "index.html")),
            Route("/favicon.ico", _file(STATIC / "icon.svg")),
            Route("/ready", _ready),
            Route("/snapshot", _snapshots(rooms), methods=["GET", "POST"]),
            WebSocketRoute("/socket", socket),
        ],
        lifespan=lifespan,
    )
    limit = max(FRAME_BYTES, 2 * snapshot_bytes(rooms.model.manifest.slots)) + SNAPSHOT_EXTRA
    return _with_headers(Guard(app, token=token, max_body=limit))


def serve(
    model: VisualRWKV,
    options: GenerateOptions,
    *,
    host: str,
    port: int,
    token: str | None = None,
    padding: Padding | None = None,
    robot: RobotCamera | None = None,
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve the page until Ctrl-C; `ready` is called with the address, the token in it.

    Raises `ConfigError` for an address that cannot be had or is not safe, `TargetUnavailable` without the packages.
    """
    check_bind(host, token)
    rooms = Rooms(model, options, padding, robot)
    app = page_app(rooms, token=token)

    def tell(address: str) -> None:
        ready(address + (f"/?token={token}" if token else "/"))

    run(app, host, port, ready=tell, stopping=rooms.cancel, ws_max_size=2 * FRAME_BYTES)


def _file(path: Path) -> Callable[[Request], Any]:
    kind = TYPES[path.suffix]

    async def send(request: Request) -> Response:
        from starlette.responses import FileResponse

        return FileResponse(path, media_type=kind, headers={"cache-control": "no-cache"})

    return send


async def _ready(request: Request) -> Response:
    """204: the page asks this to tell a server that is gone from one that does not know it."""
    from starlette.responses import Response

    return Response(status_code=204, headers={"cache-control": "no-store"})


def _snapshots(rooms: Rooms) -> Callable[[Request], Any]:
    """GET writes a tab to a file, POST opens a tab on one. The room's key is in a header: addresses are kept."""

    async def snapshot(request: Request) -> Response:
        from starlette.requests import ClientDisconnect
        from starlette.responses import Response

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "conversation.state"
            try:
                room = rooms.find(request.headers.get("x-room", ""))
                if room is None:
                    raise InputError("the server does not know this page", hint="reload the page")
                if request.method == "POST":
                    await _receive(request, path)
                    tab = await asyncio.to_thread(room.load, path)
                    visitor = rooms.visitor(room)
                    if visitor is not None:
                        visitor.tell({"type": "opened", **tab.describe(), "entries": tab.history()})
                    return Response(status_code=204)
                number = request.headers.get("x-tab", "")
                tab = room.tab(int(number) if number.isdecimal() and len(number) < 10 else 0)
                await asyncio.to_thread(room.save, tab, path)
                data = await asyncio.to_thread(path.read_bytes)
            except ClientDisconnect:  # or the guard has refused the rest of the body
                return Response(status_code=400)
            except VisualRWKVError as error:
                # Where the server keeps a file for a moment is nobody's business, nor can anyone look there.
                text = str(error).replace(str(path), "this file").replace("check the path", "choose a file of the page")
                body = error_body(text, kind="invalid_request_error")
                return Response(body, 422, media_type="application/json")
        return Response(data, media_type="application/octet-stream", headers={"cache-control": "no-store"})

    return snapshot


async def _receive(request: Request, path: Path) -> None:
    """Write a body to a file as it comes; its length has been limited by the guard."""
    with path.open("wb") as file:
        async for piece in request.stream():
            await asyncio.to_thread(file.write, piece)


def _with_headers(app: App) -> App:
    """Add the headers that browsers obey to every answer, refusals too."""
    extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        await app(scope, receive, sending)

    return wrapped
