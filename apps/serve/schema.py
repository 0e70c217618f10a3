"""Requests and answers as OpenAI's chat protocol has them, as far as this server speaks it.

What it does not do is refused where a client asks for it; fields that change nothing here are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

STATE = r"^state-[A-Za-z0-9_-]{32}$"
MESSAGES = 2048


class _Strict(BaseModel):
    """Nothing is converted: "1" is no number."""

    model_config = ConfigDict(strict=True, extra="ignore")


class ImageUrl(_Strict):
    """Where a picture is."""

    url: str = Field(description="data:image/…;base64,… or, if the server allows it, a public http(s) address")
    detail: Literal["auto", "low", "high"] | None = Field(None, description="ignored: the model sees what it can")


class TextPart(_Strict):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ImagePart(_Strict):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None


class StreamOptions(_Strict):
    """How to stream."""

    include_usage: bool | None = Field(None, description="end with a chunk that has `usage` and no choices")


class ResponseFormat(_Strict):
    """Text is all there is."""

    type: Literal["text"]


Nothing = Annotated[list[Any], Field(max_length=0)]


class ChatRequest(_Strict):
    """A conversation to go on with."""

    model: str = Field(max_length=200)
    messages: list[Message] = Field(
        min_length=1,
        max_length=MESSAGES,
        description="the whole conversation, or with `state` what is new; the last is the user's",
    )
    state: str | None = Field(None, pattern=STATE, description="go on from here (extension): `state` of an answer")
    store: bool | None = Field(None, description="false: keep nothing of this answer, and return no `state`")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, description="0, always the likeliest token, by default")
    top_p: float | None = Field(None, ge=0, le=1)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[str, Field(min_length=1)] | list[Annotated[str, Field(min_length=1)]] | None = None
    n: Literal[1] | None = Field(None, description="one answer for a request")
    logprobs: Literal[False] | None = None
    tools: Nothing | None = None
    functions: Nothing | None = None
    response_format: ResponseFormat | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None


class Answer(BaseModel):
    """What the model said."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    """The one answer."""

    index: Literal[0] = 0
    message: Answer
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class PromptDetails(BaseModel):
    """What of the prompt was not computed again."""

    cached_tokens: int


class Usage(BaseModel):
    """Positions fed and generated; pictures count with their tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class ChatCompletion(BaseModel):
    """A finished answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage
    state: str | None = Field(description="the conversation up to here (extension): send it with the next turn")


class StateInfo(BaseModel):
    """A kept conversation."""

    id: str = Field(pattern=STATE)
    object: Literal["state"] = "state"
    parent: str | None = Field(description="the state before the last turn, if it is still kept")
    turns: int
    tokens: int
    bytes: int
    expires_in_s: float = Field(description="unless it is used before")


class Deleted(BaseModel):
    """What was deleted."""

    id: str
    object: Literal["state"] = "state"
    deleted: Literal[True] = True


class ModelInfo(BaseModel):
    """The model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "local"


class ModelList(BaseModel):
    """The one model that is served."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


class Health(BaseModel):
    """Whether the server takes requests."""

    status: Literal["ok"]
    model: str
    answering: int
    waiting: int
    states: int


class ErrorInfo(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """An error."""

    error: ErrorInfo
