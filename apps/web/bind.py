"""Where a server listens, and how it stops: loopback unless there is a token, one Ctrl-C ends it in good order."""

from __future__ import annotations

import contextlib
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from apps.web.guard import App, is_loopback

if TYPE_CHECKING:
    import uvicorn

GRACE_S = 5  # answers that are streaming when a server stops have so long to end
SHORTEST_TOKEN = 16  # characters, where others can reach the server
INSTALL = 'pip install "visualrwkv-edge[serve]"'


def check_bind(host: str, token: str | None) -> None:
    """Raise `ConfigError` for a token that cannot be sent, or an address others can reach without a good one."""
    from runtime.errors import ConfigError  # here and below: --help of a server needs none of the runtime

    if token is not None and (not token or not token.isascii() or not token.isprintable() or " " in token):
        raise ConfigError("a token that is empty or has spaces or unusual characters", wanted="letters and digits")
    if is_loopback(host):
        return
    if token is None:
        raise ConfigError(
            f"listening on {host!r} lets others reach the model, and there is no token",
            wanted="a token, or --host 127.0.0.1",
            hint=f"--token {secrets.token_urlsafe(24)}",
        )
    if len(token) < SHORTEST_TOKEN:
        raise ConfigError(
            f"a token of {len(token)} characters on {host!r} can be guessed",
            wanted=f"{SHORTEST_TOKEN} characters or more",
            hint=f"--token {secrets.token_urlsafe(24)}",
        )


def listen(host: str, port: int) -> socket.socket:
    """Open the socket; port 0 takes a free one. Raises `ConfigError` where the address cannot be had."""
    from runtime.errors import ConfigError

    if not 0 <= port <= 65535:
        raise ConfigError(f"port {port}", wanted="0 to 65535 (0 takes a free one)")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except BaseException:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error}",
            hint="is another server running there? choose another --port (0 takes a free one)",
        ) from None
    return listener


def address_of(listener: socket.socket) -> str:
    """Return the http:// address of a socket, as a person would type it."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(
    app: App,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    ready: Callable[[str], None] = lambda address: None,
    stopping: Callable[[], None] = lambda: None,
    **options: Any,
) -> None:
    """Serve until Ctrl-C or SIGTERM: nobody new is let in, answers have `GRACE_S` to end, a second Ctrl-C ends them.

    For the main thread; it returns when all has ended.

    Args:
        app: an ASGI app.
        host: address to listen on (`check_bind` first).
        port: 0 takes a free one.
        ready: called with the address once the server answers.
        stopping: called in the event loop when the end begins.
        options: for `uvicorn.Config`.

    Raises:
        ConfigError: the address cannot be had.
        TargetUnavailable: the server packages are not installed.
    """
    server = _server(app, ready, stopping, options)
    listener = listen(host, port)
    # uvicorn raises the signal again when it has stopped; what follows `run` is to happen for either.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with listener, contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def background(
    app: App,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    stopping: Callable[[], None] = lambda: None,
    **options: Any,
) -> Iterator[str]:
    """Serve from a thread while the block runs, as `run` does; yields the address. For tests and benchmarks.

    Raises what `run` raises, and `ConfigError` if the app does not start.
    """
    from runtime.errors import ConfigError

    started = threading.Event()
    address: list[str] = []

    def ready(where: str) -> None:
        address.append(where)
        started.set()

    server = _server(app, ready, stopping, options)
    listener = listen(host, port)

    def serve() -> None:
        try:
            with listener:
                server.run(sockets=[listener])
        finally:
            started.set()

    thread = threading.Thread(target=serve, name="server", daemon=True)
    thread.start()
    started.wait()
    try:
        if not address:
            raise ConfigError("the server did not start", hint="its log says why")
        yield address[0]
    finally:
        server.should_exit = True
        thread.join()


def _server(
    app: App, ready: Callable[[str], None], stopping: Callable[[], None], options: dict[str, Any]
) -> uvicorn.Server:
    from runtime.errors import TargetUnavailable

    try:
        import uvicorn
    except ModuleNotFoundError as error:
        raise TargetUnavailable(f"the server needs {error.name!r}", hint=INSTALL) from None

    class Server(uvicorn.Server):
        """Tells when it answers, and when it begins to stop."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started and sockets:
                ready(address_of(sockets[0]))

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            stopping()
            await super().shutdown(sockets)

    settings: dict[str, Any] = {
        "log_level": "warning",
        "access_log": False,  # it would write tokens that are in addresses
        "server_header": False,
        "timeout_graceful_shutdown": GRACE_S,
        "timeout_keep_alive": 30,
        "ws": "websockets-sansio",
        **options,
    }
    return Server(uvicorn.Config(app, **settings))
