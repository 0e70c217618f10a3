"""What goes wrong, in OpenAI's words: a status, a type, a code and a message for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from apps.web.guard import error_body
from runtime.errors import ConfigError, InputError, RollbackError, StateError, VisualRWKVError

# What clients may ask for and this server does not do.
MISSING = {
    "n": "one answer for a request: send it again for another",
    "logprobs": "this server returns no log probabilities",
    "tools": "this server calls no tools",
    "functions": "this server calls no functions",
    "response_format": "this server answers in text",
    "logit_bias": "this server has no logit_bias",
}
_KINDS = ("str", "constrained-str", "text", "image_url")  # of values that may be several things; no part of the path


class Refused(VisualRWKVError):
    """A request that gets an error; says which."""

    def __init__(
        self, status: int, code: str, found: str, *, hint: str = "", param: str | None = None, retry_s: int = 0
    ) -> None:
        """Keep what the client is told: the HTTP status, a code for programs, and where it went wrong (`param`)."""
        super().__init__(found, hint=hint)
        self.status, self.code, self.param, self.retry_s = status, code, param, retry_s

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Headers that go with it."""
        return [("retry-after", str(self.retry_s))] if self.retry_s else []

    def body(self) -> bytes:
        """The error as JSON."""
        message = self.found + (f"; {self.hint}" if self.hint else "")
        return error_body(message, kind=_kind(self.status), code=self.code, param=self.param)


def explain(error: BaseException) -> Refused:
    """Turn whatever was raised into what the client is told; nothing of an unexpected error is."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, (InputError, ConfigError)):
        wanted = f"; wanted: {error.wanted}" if error.wanted else ""
        return Refused(400, "invalid_value", error.found + wanted, hint=error.hint)
    if isinstance(error, RollbackError):
        return Refused(500, "state_went_bad", "the model's state went bad and was dropped", hint="ask again")
    if isinstance(error, StateError):
        return Refused(500, "state_error", error.found, hint=error.hint)
    return Refused(500, "internal_error", "the server failed at this request; its log says more")


def invalid(errors: Sequence[Any]) -> Refused:
    """Turn pydantic's findings into one refusal that names the first; input is not repeated."""
    first = errors[0]
    path = [str(part) for part in first.get("loc", ()) if part != "body" and "[" not in str(part)]
    while path and path[-1] in _KINDS and len(path) > 1:
        path.pop()
    param = ".".join(path) or None
    if first.get("type") == "json_invalid":
        return Refused(400, "invalid_json", "the body is no valid JSON")
    message = MISSING.get(path[0] if path else "", str(first.get("msg", "invalid")))
    return Refused(400, "invalid_value", f"{param}: {message}" if param else message, param=param)


def event(data: Any) -> bytes:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode("utf-8", "replace")


def _kind(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    if status == 404:
        return "not_found_error"
    return "invalid_request_error" if status < 500 else "server_error"
