"""The answer to a chat request: whole or streamed, and over at the next token when the client leaves."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from contextlib import aclosing
from typing import Any

from starlette.responses import Response

from apps.serve.failures import Refused, event, explain
from apps.serve.schema import ChatRequest
from apps.serve.service import Run, Service
from apps.web.guard import Receive, Scope, Send
from runtime import Chunk, aio

_log = logging.getLogger(__name__)


class Answering(Response):
    """Runs when it is sent: only then it is known whether the client is still there."""

    def __init__(self, service: Service, request: ChatRequest) -> None:
        """Answer `request`."""
        super().__init__()
        self._service, self._request = service, request
        self._id, self._created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; the slot is free when this returns, however it ends."""
        out, service = _Out(send, self._id), self._service
        work = asyncio.create_task(self._work(out))
        left, ending = asyncio.create_task(_left(receive)), asyncio.create_task(service.ending.wait())
        failure: Refused | None = None
        try:
            limit = service.settings.answer_s
            done, _ = await asyncio.wait((work, left, ending), timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if work in done:
                await work
            elif left in done:
                service.counters.disconnects += 1
            elif ending in done:
                failure = Refused(503, "stopping", "the server is stopping", hint="ask again in a while", retry_s=5)
            else:
                service.counters.timeouts += 1
                failure = Refused(504, "timeout", f"the answer took more than {limit:g} s", hint="lower max_tokens")
        except Exception as error:
            failure = explain(error)
            if failure.code == "internal_error":
                _log.exception("request %s failed", self._id)
        finally:
            for task in (work, left, ending):
                task.cancel()
            await asyncio.gather(work, left, ending, return_exceptions=True)
        if failure is not None:
            await out.fail(failure)

    async def _work(self, out: _Out) -> None:
        run = await self._service.plan(self._request)
        self._request.messages = []  # megabytes of base64 that nobody needs any more
        last: Chunk | None = None
        async with (
            self._service.slots.hold() as session,
            aclosing(aio.stream(run.chunks(session), run.cancel)) as chunks,
        ):
            async for chunk in chunks:
                last = chunk
                if self._request.stream and chunk.text:
                    if not out.started:
                        await out.begin(self._chunk({"role": "assistant", "content": ""}))
                    await out.send_event(self._chunk({"content": chunk.text}))
        if last is None or last.stats is None or last.finish_reason == "cancelled":
            raise Refused(503, "stopping", "the answer was cut short", hint="ask again")
        usage, state = _usage(run, last), self._service.keep(run)
        if not self._request.stream:
            await out.whole(self._completion(run, last, usage, state))
            return
        if not out.started:
            await out.begin(self._chunk({"role": "assistant", "content": ""}))
        await out.send_event({**self._chunk({}, last.finish_reason), "state": state})
        options = self._request.stream_options
        if options is not None and options.include_usage:
            await out.send_event({**self._chunk({}), "choices": [], "usage": usage})
        await out.end("[DONE]")

    def _about(self, kind: str) -> dict[str, Any]:
        manifest = self._service.model.manifest
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._service.name,
            "system_fingerprint": f"fp_{manifest.fingerprint[:12]}",
        }

    def _chunk(self, delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**self._about("chat.completion.chunk"), "choices": [choice]}

    def _completion(self, run: Run, last: Chunk, usage: dict[str, Any], state: str | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": run.text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": last.finish_reason}
        return {**self._about("chat.completion"), "choices": [choice], "usage": usage, "state": state}


class _Out:
    """What is sent to the client, in order."""

    def __init__(self, send: Send, request: str) -> None:
        self._send, self._request = send, request
        self.started = False

    async def begin(self, first: dict[str, Any]) -> None:
        await self._head(200, "text/event-stream; charset=utf-8", [])
        await self.send_event(first)

    async def send_event(self, data: Any) -> None:
        await self._send({"type": "http.response.body", "body": event(data), "more_body": True})

    async def end(self, data: Any) -> None:
        await self._send({"type": "http.response.body", "body": event(data), "more_body": False})

    async def whole(self, data: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(data, ensure_ascii=False).encode("utf-8", "replace")
        await self._body(status, body, [])

    async def fail(self, failure: Refused) -> None:
        """Tell an error: as the answer, or as the stream's last event."""
        if self.started:
            await self.end(failure.body().decode())
        else:
            await self._body(failure.status, failure.body(), failure.headers)

    async def _body(self, status: int, body: bytes, headers: list[tuple[str, str]]) -> None:
        await self._head(status, "application/json", [*headers, ("content-length", str(len(body)))])
        await self._send({"type": "http.response.body", "body": body})

    async def _head(self, status: int, kind: str, headers: list[tuple[str, str]]) -> None:
        self.started = True
        every = [("content-type", kind), ("cache-control", "no-store"), ("x-request-id", self._request), *headers]
        raw = [(name.encode(), value.encode()) for name, value in every]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})


async def _left(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _usage(run: Run, last: Chunk) -> dict[str, Any]:
    assert last.stats is not None
    stats = last.stats
    prompt = run.known_tokens + run.read_tokens + stats.prompt_tokens + stats.image_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": stats.generated_tokens,
        "total_tokens": prompt + stats.generated_tokens,
        "prompt_tokens_details": {"cached_tokens": run.known_tokens + stats.cached_tokens},
    }
