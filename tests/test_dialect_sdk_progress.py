"""The `openai` package reads chunks that tell of progress."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai

from dialect_cases import MODEL, SCENARIOS, stream
from naiad.dialects.openai.requests import parse_chat, parse_completion
from test_dialect_progress import NEWS


def client() -> openai.OpenAI:
    """A client whose server tells of its progress and then answers."""

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        parse = parse_chat if "messages" in body else parse_completion
        formatter = parse(body, MODEL).formatter
        pieces, finished = SCENARIOS["stop"]
        news = b"".join(formatter.progress(progress) for progress in NEWS)
        data = stream(formatter, pieces, finished)
        first, _, rest = data.partition(b"\n\n")
        data = first + b"\n\n" + news + rest if "messages" in body else news + data
        return httpx.Response(200, content=data, headers={"content-type": formatter.media})

    # Any: which generation of httpx the package is typed for changes with its version.
    http: Any = httpx.Client(transport=httpx.MockTransport(answer))
    return openai.OpenAI(base_url="http://naiad/v1", api_key="-", http_client=http, max_retries=0)


ASK: dict[str, Any] = {"extra_body": {"return_progress": True, "priority": 3}}


def test_the_package_reads_chunks_with_progress_as_chunks_without_text() -> None:
    create = client().chat.completions.create
    messages: list[Any] = [{"role": "user", "content": "Hi"}]
    usage: Any = {"include_usage": True}
    chunks = list(create(model="m", messages=messages, stream=True, stream_options=usage, **ASK))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Hello"
    told = [chunk.model_extra for chunk in chunks if chunk.model_extra]
    assert [next(iter(one)) for one in told] == ["queue"] * 2 + ["prompt_progress"] * 2
    assert told[-1]["prompt_progress"] == {
        "total": 300,
        "cache": 100,
        "processed": 228,
        "time_ms": 71,
    }


def test_the_package_reads_them_in_completions_too() -> None:
    chunks = list(client().completions.create(model="m", prompt="Hi", stream=True, **ASK))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello"


def test_the_packages_own_accumulator_is_not_confused() -> None:
    messages: list[Any] = [{"role": "user", "content": "Hi"}]
    with client().chat.completions.stream(model="m", messages=messages, **ASK) as events:
        for _ in events:
            pass
        final = events.get_final_completion()
    assert final.choices[0].message.content == "Hello"
