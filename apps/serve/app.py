"""The server's addresses, and who stands in front of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import FastAPI, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from apps.serve.answering import Answering
from apps.serve.counters import Counted
from apps.serve.failures import Refused, explain, invalid
from apps.serve.schema import (
    STATE,
    ChatCompletion,
    ChatRequest,
    Deleted,
    Error,
    Health,
    ModelInfo,
    ModelList,
    StateInfo,
)
from apps.serve.service import Service
from apps.serve.settings import Settings
from apps.serve.slots import Door
from apps.serve.states import Kept
from apps.web.bind import GRACE_S
from apps.web.guard import App, Guard, Receive, Scope, Send
from runtime import VisualRWKV

CHAT = "/v1/chat/completions"
SWEEP_S = 60.0  # how often old states are looked for
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Error, "description": "something is wrong with the request"},
    401: {"model": Error, "description": "no key, or a wrong one"},
    403: {"model": Error, "description": "a page of somebody else, or a name that is not this machine's"},
    404: {"model": Error, "description": "no such model or state"},
    408: {"model": Error, "description": "the body did not arrive"},
    413: {"model": Error, "description": "the body is too large"},
    429: {"model": Error, "description": "busy: come again after `Retry-After` seconds"},
    500: {"model": Error, "description": "the model or the server failed"},
    503: {"model": Error, "description": "the server is stopping"},
    504: {"model": Error, "description": "the answer took too long"},
    507: {"model": Error, "description": "no room for another state"},
}
StateId = Annotated[str, Path(pattern=STATE)]


class Front:
    """The whole server, as an ASGI app."""

    def __init__(self, app: App, service: Service) -> None:
        """Pass everything to `app`, which serves `service`."""
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""
        await self._app(scope, receive, send)

    def stop(self, grace_s: float = GRACE_S - 1) -> None:
        """Give running answers so many seconds, then end them with an error. Called in the event loop."""
        self._service.stop(grace_s)


def create_app(model: VisualRWKV, settings: Settings) -> Front:
    """Return the server for a model, guarded. The model stays open, and the caller closes it.

    Raises `ConfigError` where the sessions do not fit into the model's memory limit.
    """
    service = Service(model, settings)
    app: App = routes(service)
    app = Door(app, service.slots, settings.waiting, CHAT, settings.max_body)
    app = Guard(app, token=settings.key, origins=settings.origins, max_body=settings.max_body)
    app = Counted(app, service.counters)
    if settings.origins:
        origins = [origin.rstrip("/") for origin in settings.origins]
        app = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type"],
            expose_headers=["retry-after", "x-request-id"],
        )
    return Front(app, service)


def routes(service: Service) -> FastAPI:
    """Return the app without its guards."""
    started = int(time.time())

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        sweeper = asyncio.create_task(_sweep(service))
        try:
            yield
        finally:
            sweeper.cancel()
            service.close()

    app = FastAPI(title="VisualRWKV Edge", version="1", docs_url=None, redoc_url=None, lifespan=lifespan)
    _handle_errors(app)
    own = ModelInfo(id=service.name, created=started)

    @app.post(CHAT, response_model=ChatCompletion, responses=_may_fail(400, 404, 408, 413, 429, 500, 503, 504))
    async def chat(request: ChatRequest) -> Response:
        """Answer the last message of a conversation; with `stream`, as server-sent events."""
        return Answering(service, request)

    @app.get("/v1/models", responses=_may_fail())
    async def models() -> ModelList:
        """List the one model that is served."""
        return ModelList(data=[own])

    @app.get("/v1/models/{name:path}", responses=_may_fail(404))
    async def model(name: str) -> ModelInfo:
        """Tell about the model."""
        service.check_model(name)
        return own

    @app.get("/v1/states/{state}", responses=_may_fail(400, 404))
    async def state(state: StateId) -> StateInfo:
        """Tell about a kept conversation; that counts as a use."""
        return _info(service, service.states.get(state))

    @app.delete("/v1/states/{state}", responses=_may_fail(400, 404))
    async def delete(state: StateId) -> Deleted:
        """Forget a conversation."""
        service.states.delete(state)
        return Deleted(id=state)

    @app.post("/v1/states/{state}/fork", responses=_may_fail(400, 404, 507))
    async def fork(state: StateId) -> StateInfo:
        """Keep a conversation under a second name, which lives and is deleted by itself."""
        return _info(service, service.states.fork(state))

    @app.post("/v1/states/{state}/undo", responses=_may_fail(400, 404))
    async def undo(state: StateId) -> StateInfo:
        """Take the last turn back: forget this state, and return the one before."""
        return _info(service, service.states.undo(state))

    @app.get("/metrics", response_class=PlainTextResponse, responses=_may_fail())
    async def metrics() -> str:
        """Counters, gauges and histograms for Prometheus."""
        service.states.expire()
        return service.model.metrics.prometheus() + service.counters.prometheus()

    @app.get("/healthz", responses=_may_fail())
    async def health() -> Health:
        """Tell that the server takes requests."""
        slots = service.slots
        return Health(
            status="ok",
            model=service.name,
            answering=slots.answering,
            waiting=slots.waiting,
            states=len(service.states),
        )

    _describe(app, service)
    return app


def _info(service: Service, kept: Kept) -> StateInfo:
    states, progress = service.states, kept.snapshot.progress
    return StateInfo(
        id=kept.id,
        parent=kept.parent if states.is_kept(kept.parent) else None,
        turns=len(progress.history),
        tokens=progress.tokens,
        bytes=kept.nbytes,
        expires_in_s=states.expires_in(kept),
    )


def _handle_errors(app: FastAPI) -> None:
    """Every error looks the same, wherever it comes from."""

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        return _respond(invalid(error.errors()))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        response = _respond(Refused(error.status_code, code, str(error.detail)))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return _respond(error)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return _respond(explain(error))


def _respond(refused: Refused) -> Response:
    return Response(refused.body(), refused.status, dict(refused.headers), "application/json")


def _may_fail(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: ERRORS[status] for status in (*statuses, 401, 403)}


def _describe(app: FastAPI, service: Service) -> None:
    """Make the OpenAPI document say what is true of this server: its model's name, its key, no 422."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            for path in document["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            schemas = document["components"]["schemas"]
            schemas["ChatRequest"]["properties"]["model"]["enum"] = [service.name]
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            chat = document["paths"][CHAT]["post"]["responses"]["200"]
            chat["content"]["text/event-stream"] = {"schema": {"type": "string"}}
            if service.settings.key is not None:
                document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                document["security"] = [{"key": []}]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


async def _sweep(service: Service) -> None:
    while True:
        await asyncio.sleep(SWEEP_S)
        service.states.expire()
