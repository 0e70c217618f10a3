"""The official client, unchanged."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.apps.serve.conftest import MODEL, Server, data_url, frame_at, said, show

openai = pytest.importorskip("openai", reason='needs pip install "openai>=2"')


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def picture() -> str:
    return data_url(frame_at(0.8))


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "local"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


def test_a_picture_is_seen(client: Any, picture: str) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=[show("Where is the circle?", picture)])
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "bottom left")
    assert choice.finish_reason == "stop"
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens > 16  # the picture's tokens and the text's
    assert answer.model == MODEL and answer.id.startswith("chatcmpl-")


def test_streaming_says_the_same(client: Any, picture: str) -> None:
    messages = [show("Where is the circle?", picture)]
    whole = client.chat.completions.create(model=MODEL, messages=messages)
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model=MODEL, messages=messages, stream=True, stream_options=options))
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(text or "" for text in texts) == whole.choices[0].message.content
    assert len([text for text in texts if text]) > 1
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-2].state.startswith("state-")
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_a_conversation_sent_whole_is_not_read_again(client: Any, server: Server, picture: str) -> None:
    messages = [show("Where is the circle?", picture)]
    first = client.chat.completions.create(model=MODEL, messages=messages)
    messages += [said(first.choices[0].message.content), {"role": "user", "content": "What colour is the circle?"}]
    before = server.metric('answers_begun_total{from="history"}')
    second = client.chat.completions.create(model=MODEL, messages=messages)
    assert server.metric('answers_begun_total{from="history"}') == before + 1
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert first.usage.total_tokens - 2 <= cached < second.usage.prompt_tokens
    only_new = client.chat.completions.create(model=MODEL, messages=messages[-1:], extra_body={"state": first.state})
    assert only_new.choices == second.choices
    assert only_new.usage == second.usage


def test_options_reach_the_model(client: Any) -> None:
    def ask(**options: Any) -> Any:
        messages = [{"role": "user", "content": "How many circles are there?"}]
        return client.chat.completions.create(model=MODEL, messages=messages, **options).choices[0]

    assert ask(max_tokens=1).finish_reason == "length"
    assert ask(max_completion_tokens=1).finish_reason == "length"
    draws = [ask(temperature=2.0, seed=seed, max_tokens=20).message.content for seed in (1, 1, 2, 3, -4)]
    assert draws[0] == draws[1] and len(set(draws)) > 1
    greedy = ask().message.content
    assert ask(temperature=2.0, top_p=0.0).message.content == greedy
    assert ask(stop=greedy[0]).message.content == ""
    assert ask(stop=["never said", greedy[0]]).finish_reason == "stop"


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"model": "gpt-4o"}, "NotFoundError", "use 'model'"),
        ({"n": 2}, "BadRequestError", "one answer"),
        ({"temperature": 2.1}, "BadRequestError", "temperature"),
        ({"temperature": "hot"}, "BadRequestError", "temperature"),
        ({"max_tokens": 0}, "BadRequestError", "max_tokens"),
        ({"max_tokens": 8193}, "BadRequestError", "above 8192"),
        ({"stop": ""}, "BadRequestError", "stop"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "BadRequestError", "calls no tools"),
        ({"logprobs": True}, "BadRequestError", "log probabilities"),
        ({"response_format": {"type": "json_object"}}, "BadRequestError", "in text"),
        ({"messages": []}, "BadRequestError", "messages"),
        ({"messages": [said("I began.")]}, "BadRequestError", "without a question"),
        ({"messages": [{"role": "user", "content": " \n"}]}, "BadRequestError", "last message"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "BadRequestError", "role"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "BadRequestError", "content"),
        ({"messages": [{"role": "user", "content": 7}]}, "BadRequestError", "content"),
        ({"messages": [{"role": "user", "content": "x" * 70_000}]}, "BadRequestError", "bytes of text"),
        ({"messages": [show("What?", "data:image/png;base64,AAAA")]}, "BadRequestError", "cannot be read"),
        ({"extra_body": {"state": "state-" + "A" * 32}}, "NotFoundError", "no such state"),
        ({"extra_body": {"state": "../../etc/passwd"}}, "BadRequestError", "state"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_the_clients_own(client: Any, fields: dict[str, Any], error: str, says: str, stream: bool) -> None:
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "stream": stream, **fields}
    with pytest.raises(getattr(openai, error)) as found:
        client.chat.completions.create(**asked)
    assert says in found.value.message
    assert found.value.code and found.value.type


def test_async_streaming(server: Server, picture: str) -> None:
    async def main() -> str:
        async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="unused", max_retries=0) as client:
            asked = [show("Where is the circle?", picture)]
            stream = await client.chat.completions.create(model=MODEL, messages=asked, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(main()) == "bottom left"
