"""Logprobs as KoboldCpp, llama-server and Ollama tell them, over the whole server."""

from __future__ import annotations

import json
from typing import Any

import httpx
import ollama
import pytest

from dialect_cases import events
from dialect_server import house, saying
from fakes import FakeStream, silent
from naiad.types import FinishReason
from patience import PATIENCE_S

HI: list[Any] = [{"role": "user", "content": "Hi"}]


async def test_ollamas_package_reads_them() -> None:
    async with house(saying("Hé", "😀", " end")) as running:
        client = ollama.AsyncClient(host=running.url, timeout=PATIENCE_S)
        running.closing.push_async_callback(client._client.aclose)
        told = await client.chat("m", HI, logprobs=True, top_logprobs=2)
        stream = await client.chat("m", HI, logprobs=True, top_logprobs=2, stream=True)
        lines = [line async for line in stream]
        plain = await client.generate("m", "Hi")
    entries = [entry for line in lines for entry in line.logprobs or ()]
    assert told.logprobs is not None
    assert [one.token for one in told.logprobs] == ["Hé", "😀", " end"]
    assert entries == list(told.logprobs)
    assert [len(one.top_logprobs or ()) for one in entries] == [2, 2, 2]
    assert plain.logprobs is None


async def test_llamas_events_hold_those_of_the_whole() -> None:
    body = {"prompt": "x", "n_probs": 2, "stop": " STOP"}
    async with (
        house(saying("Hé", "😀", " STOP")) as running,
        httpx.AsyncClient(base_url=running.url) as http,
    ):
        whole = (await http.post("/completion", json=body)).json()
        data = (await http.post("/completion", json={**body, "stream": True})).content
    streamed = [one for e in events(data) for one in e.get("completion_probabilities", [])]
    assert streamed == whole["completion_probabilities"]
    assert [one["token"] for one in streamed] == ["Hé", "😀"]
    assert whole["generation_settings"]["n_probs"] == 2


async def test_kobolds_newest_are_there_to_ask_for() -> None:
    path, last = "/api/v1/generate", "/api/extra/last_logprobs"
    async with (
        house(saying("Hé", "😀", " end")) as running,
        httpx.AsyncClient(base_url=running.url) as http,
    ):
        assert (await http.get(last)).json() == {"logprobs": None}
        body = {"prompt": "x", "logprobs": True, "genkey": "K"}
        told = (await http.post(path, json=body)).json()["results"][0]["logprobs"]
        assert told["tokens"] == ["Hé", "😀", " end"]
        assert told["text_offset"] == [0, 2, 3]
        assert told["content"][0]["token_id"] == told["token_ids"][0] == 7
        assert (await http.post(last, json={"genkey": "K"})).json() == {"logprobs": told}
        assert (await http.get(last, params={"genkey": "K"})).json() == {"logprobs": told}
        assert (await http.post(last, json={})).json() == {"logprobs": None}
        data = (await http.post("/api/extra/generate/stream", json=body)).content
        tokens = [one for e in events(data) for one in e.get("logprobs", {}).get("tokens", [])]
        assert tokens == told["tokens"]
        await http.post(path, json={**body, "logprobs": False})
        assert (await http.post(last, json={"genkey": "K"})).json() == {"logprobs": None}


async def test_kobolds_are_there_while_it_runs() -> None:
    async with house(silent) as running, httpx.AsyncClient(base_url=running.url) as http:
        body = {"prompt": "x", "logprobs": True}
        async with http.stream("POST", "/api/extra/generate/stream", json=body) as answer:
            lines = answer.aiter_lines()
            running.engine.streams[1].put("Hé")
            async for line in lines:
                if "Hé" in line:
                    break
            told = (await http.post("/api/extra/last_logprobs", json={})).json()
    assert told["logprobs"]["tokens"] == ["Hé"]


async def test_nothing_is_kept_of_requests_that_ask_for_no_logprobs() -> None:
    async with house(saying("Hi")) as running, httpx.AsyncClient(base_url=running.url) as http:
        for handle in "AB":
            await http.post("/api/v1/generate", json={"prompt": "x", "genkey": handle})
        assert running.service._recent._answers == {}


#: door -> where, what it asks with, and where the entries stand in an answer or in an event of one
CUT_OFF: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "chat": (
        "/v1/chat/completions",
        {"messages": HI, "logprobs": True},
        ("choices", "logprobs", "content"),
    ),
    "completions": (
        "/v1/completions",
        {"prompt": "x", "logprobs": 0},
        ("choices", "logprobs", "tokens"),
    ),
    "responses": ("/v1/responses", {"input": "x", "top_logprobs": 1}, ("logprobs",)),
    "ollama": ("/api/chat", {"messages": HI, "logprobs": True}, ("logprobs",)),
    "ollama generate": ("/api/generate", {"prompt": "x", "logprobs": True}, ("logprobs",)),
    "kobold": (
        "/api/v1/generate",
        {"prompt": "x", "logprobs": 1},
        ("results", "logprobs", "content"),
    ),
    "llama": ("/completion", {"prompt": "x", "n_probs": 1}, ("completion_probabilities",)),
}
#: The same of streams that differ.
LIVE = {"kobold": ("/api/extra/generate/stream", ("logprobs", "content"))}


def entries(told: Any, way: tuple[str, ...]) -> list[Any]:
    """What stands there, in the first of several answers."""
    for step in way:
        told = (told or [{}])[0] if isinstance(told, list) else told
        told = (told or {}).get(step) or []
    return list(told)


def of_responses(told: Any) -> list[Any]:
    return [one for item in told["output"] for part in item["content"] for one in part["logprobs"]]


def said_and_cut(stream: FakeStream, *pieces: bytes) -> None:
    for piece in pieces:
        stream.put(piece)
    stream.end(FinishReason.LENGTH)


@pytest.mark.parametrize("pieces", [(b"Hi", b"\xf0\x9f", b"\x98"), (b"\xf0\x9f",)])
async def test_there_is_one_for_each_token_of_a_character_that_a_limit_cut(
    pieces: tuple[bytes, ...],
) -> None:
    """The entry has the bytes, the answer has no text."""
    async with (
        house(lambda stream: said_and_cut(stream, *pieces), template="{{ messages }}") as running,
        httpx.AsyncClient(base_url=running.url) as http,
    ):
        for door, (path, body, way) in CUT_OFF.items():
            whole = (await http.post(path, json={**body, "stream": False})).json()
            found = of_responses(whole) if door == "responses" else entries(whole, way)
            assert len(found) == len(pieces), door
            where, inside = LIVE.get(door, (path, way))
            data = (await http.post(where, json={**body, "stream": True})).content
            told = map(json.loads, data.splitlines()) if "ollama" in door else events(data)
            deltas = [e for e in told if e != "[DONE]" and "delta" in e.get("type", "delta")]
            assert [one for e in deltas for one in entries(e, inside)] == found, door
            if isinstance(found[-1], dict):
                assert bytes(found[-1]["bytes"]) == pieces[-1]


@pytest.mark.parametrize(
    ("texts", "n"),
    [
        (("<think>", "Hm"), 0),
        (("<think>", "Hm", "</think>", "So"), 2),
        (("<think>", "</think>"), 1),
        (('<tool_call>{"name": "get_weather", "arguments": {"city":', ' "K'), 0),
    ],
)
async def test_those_of_a_cut_character_belong_to_its_channel(
    texts: tuple[str, ...], n: int
) -> None:
    pieces = [*(text.encode() for text in texts), b"\xf0"]
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]
    async with (
        house(lambda stream: said_and_cut(stream, *pieces)) as running,
        httpx.AsyncClient(base_url=running.url) as http,
    ):
        body = {"messages": HI, "logprobs": True, "tools": tools}
        told = (await http.post("/v1/chat/completions", json=body)).json()
        found = entries(told, CUT_OFF["chat"][2])
        assert [bytes(one["bytes"]) for one in found] == pieces[len(pieces) - n :]
