"""Structured output and banned phrases through a real server, its worker and a real client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from e2e.client import ServerProcess, serving
from patience import PATIENCE_S

pytestmark = [pytest.mark.engine, pytest.mark.model, pytest.mark.soak]

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "kind"],
    "additionalProperties": False,
}
MESSAGES: list[Any] = [{"role": "user", "content": "Name a pet."}]


@pytest.fixture(scope="module")
def server(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("structured") / "server.log"
    with serving(log, str(starter), "--parallel", "4", "--ctx", "1024", "--threads", "1") as server:
        yield server


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def response_format(schema: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "pet", "schema": schema}}


def test_a_schema_holds_streamed_and_whole(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "x",
        "messages": MESSAGES,
        "temperature": 2,
        "max_tokens": 400,  # enough for any name, however it is spelled
        "seed": 4,
        "response_format": response_format(SCHEMA),
    }
    whole = client.chat.completions.create(**asked).choices[0]
    assert whole.finish_reason == "stop"
    jsonschema.validate(json.loads(whole.message.content or ""), SCHEMA)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    jsonschema.validate(json.loads(text), SCHEMA)


TOOL: Any = {
    "type": "function",
    "function": {
        "name": "book",
        "parameters": {
            "type": "object",
            "properties": {
                "title": {"type": "string", "maxLength": 14},
                "pages": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
            },
            "required": ["title", "pages"],
            "additionalProperties": False,
        },
    },
}


def test_arguments_of_a_tool_are_the_same_bytes_streamed_and_whole(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "x",
        "messages": MESSAGES,
        "temperature": 2,
        "max_tokens": 80,
        "tools": [TOOL],
        "tool_choice": "required",
        "extra_body": {"deterministic": True},
    }
    for seed in range(6):
        whole = client.chat.completions.create(**asked, seed=seed).choices[0]
        [call] = whole.message.tool_calls or []
        assert call.type == "function"
        chunks = list(client.chat.completions.create(**asked, seed=seed, stream=True))
        pieces = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or []]
        streamed = "".join((c.function and c.function.arguments) or "" for c in pieces)
        assert streamed.encode() == call.function.arguments.encode()
        assert chunks[-1].choices[0].finish_reason == whole.finish_reason
        if whole.finish_reason == "tool_calls":
            jsonschema.validate(json.loads(streamed), TOOL["function"]["parameters"])


def test_a_deterministic_request_says_the_same_whatever_else_runs(server: ServerProcess) -> None:
    url = f"{server.url}/v1/completions"
    story = "Once upon a time there was a fisherman who caught a strange fish. " * 12
    body = {"prompt": story, "max_tokens": 40, "temperature": 1.3, "deterministic": True}
    alone = httpx.post(url, json=body, timeout=PATIENCE_S).json()["choices"][0]["text"]
    other = {"prompt": story, "max_tokens": 160, "temperature": 1.0, "ignore_eos": True}
    with ThreadPoolExecutor(4) as threads:
        beside = [threads.submit(httpx.post, url, json=other, timeout=PATIENCE_S) for _ in range(3)]
        again = httpx.post(url, json=body, timeout=PATIENCE_S).json()["choices"][0]["text"]
        assert all(one.result().status_code == 200 for one in beside)
    assert again == alone
    with httpx.stream("POST", url, json={**body, "stream": True}, timeout=PATIENCE_S) as streamed:
        lines = [line.removeprefix("data: ") for line in streamed.iter_lines() if line]
    pieces = [json.loads(line)["choices"][0]["text"] for line in lines if line != "[DONE]"]
    assert "".join(pieces) == alone


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_schema_that_cannot_be_followed_is_an_error_before_any_header(
    client: openai.OpenAI, is_streamed: bool
) -> None:
    with pytest.raises(openai.BadRequestError, match="Unimplemented keys") as caught:
        client.chat.completions.create(
            model="x",
            messages=MESSAGES,
            stream=is_streamed,
            response_format=response_format({"not": {}}),
        )
    assert caught.value.param == "response_format.json_schema.schema"


def test_a_bomb_harms_nobody(server: ServerProcess) -> None:
    body = {"prompt": "x", "max_tokens": 4, "guided_regex": "((a{1000}){1000}){1000}"}
    refused = httpx.post(f"{server.url}/v1/completions", json=body, timeout=PATIENCE_S)
    assert refused.status_code == 400, refused.text
    assert "the grammar" in refused.json()["error"]["message"]
    body["guided_regex"] = "[0-9]{3}"
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=PATIENCE_S).json()
    assert answer["choices"][0]["text"].isdigit()


def test_kobold_bans_phrases_and_reads_gbnf(server: ServerProcess) -> None:
    url = f"{server.url}/api/v1/generate"
    body: dict[str, Any] = {"prompt": "Once upon", "max_length": 30, "sampler_seed": 3}
    banned = [" the", "a ", "time"]
    found = httpx.post(url, json={**body, "banned_strings": banned}, timeout=PATIENCE_S).json()
    text = found["results"][0]["text"].lower()
    assert text
    assert not [phrase for phrase in banned if phrase in text]
    grammar = 'root ::= "red" | "green"'
    found = httpx.post(url, json={**body, "grammar": grammar}, timeout=PATIENCE_S).json()
    assert found["results"][0]["text"] in ("red", "green")
    refused = httpx.post(url, json={**body, "grammar": "root ::= foo"}, timeout=PATIENCE_S)
    assert refused.status_code == 400, refused.text
    assert "foo" in refused.json()["detail"]["msg"]
