"""The `openai` package itself reads what the formatters write."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import openai
import pytest

from dialect_cases import MODEL, SCENARIOS, stream, whole
from naiad.dialects.base import Parsed
from naiad.dialects.framing import to_json
from naiad.dialects.openai.errors import error_body
from naiad.dialects.openai.requests import parse_chat, parse_completion
from naiad.errors import NaiadError

PARSERS: dict[str, Callable[[Mapping[str, Any], Any], Parsed]] = {
    "/v1/chat/completions": parse_chat,
    "/v1/completions": parse_completion,
}
HI: list[Any] = [{"role": "user", "content": "Hi"}]


def client(scenario: str) -> openai.OpenAI:
    """A client whose server is the dialect, with an engine that plays one scenario."""

    def answer(request: httpx.Request) -> httpx.Response:
        pieces, finished = SCENARIOS[scenario]
        try:
            parsed = PARSERS[request.url.path](json.loads(request.content), MODEL)
            if not parsed.request.stream:
                data = to_json(whole(parsed.formatter, pieces, finished))
                return httpx.Response(200, content=data)
            data = stream(parsed.formatter, pieces, finished)
            headers = {"content-type": parsed.formatter.media}
            return httpx.Response(200, content=parsed.formatter.heartbeat() + data, headers=headers)
        except NaiadError as error:
            return httpx.Response(error.status, content=to_json(error_body(error)))

    # Any: which generation of httpx the package is typed for changes with its version.
    http: Any = httpx.Client(transport=httpx.MockTransport(answer))
    return openai.OpenAI(base_url="http://naiad/v1", api_key="-", http_client=http, max_retries=0)


@pytest.mark.parametrize("scenario", ["stop", "length", "cancelled", "empty", "unicode"])
def test_chat_streamed_equals_whole(scenario: str) -> None:
    create = client(scenario).chat.completions.create
    told = create(model="m", messages=HI)
    chunks = list(
        create(model="m", messages=HI, stream=True, stream_options={"include_usage": True})
    )
    *body, usage = chunks
    assert body[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in body)
    assert text == told.choices[0].message.content == "".join(SCENARIOS[scenario][0])
    assert body[-1].choices[0].finish_reason == told.choices[0].finish_reason
    assert usage.usage == told.usage
    assert told.usage is not None
    assert told.usage.prompt_tokens_details is not None
    assert told.usage.prompt_tokens_details.cached_tokens == 4


@pytest.mark.parametrize("scenario", ["stop", "length", "cancelled", "empty", "unicode"])
def test_completion_streamed_equals_whole(scenario: str) -> None:
    create = client(scenario).completions.create
    told = create(model="m", prompt="Once")
    chunks = list(create(model="m", prompt="Once", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == told.choices[0].text
    assert chunks[-1].choices[0].finish_reason == told.choices[0].finish_reason


def test_an_error_in_the_middle_raises_after_the_text_before_it() -> None:
    received = []
    with pytest.raises(openai.APIError, match="The engine died") as caught:
        for chunk in client("error").chat.completions.create(model="m", messages=HI, stream=True):
            received.append(chunk.choices[0].delta.content)
    assert received == ["", "Hel"]
    assert caught.value.code == "engine_failed"


def test_refusals_are_bad_requests_with_the_field() -> None:
    with pytest.raises(openai.BadRequestError, match="'temperature'") as caught:
        client("stop").chat.completions.create(model="m", messages=HI, temperature=-1)
    assert (caught.value.param, caught.value.code) == ("temperature", "invalid_request")
    assert caught.value.type == "invalid_request_error"


def test_extra_body_fields_pass() -> None:
    told = client("stop").chat.completions.create(
        model="m", messages=HI, extra_body={"top_k": 5, "min_p": 0.1, "ignore_eos": True, "new": 1}
    )
    assert told.choices[0].message.content == "Hello"
