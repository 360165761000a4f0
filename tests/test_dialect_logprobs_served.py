"""Logprobs as KoboldCpp, llama-server and Ollama tell them, over the whole server."""

from __future__ import annotations

from typing import Any

import httpx
import ollama

from dialect_cases import events
from dialect_server import house, saying
from fakes import silent
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
