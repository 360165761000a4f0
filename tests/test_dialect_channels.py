"""Reasoning, tools and forced calls over the whole server, by the `openai` package; what the root
says to whom; and a dialect that is one small file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
import msgspec
import pytest

from dialect_server import CALL, TEMPLATE, house, saying
from fakes import FakeEngine, FakeStream, make_service
from http_client import ask
from naiad.config import Config
from naiad.dialects.base import Access, Dialect, Formatter, Media, Operation, Parsed
from naiad.dialects.fields import Fields, text
from naiad.dialects.registry import DIALECTS
from naiad.errors import NaiadError
from naiad.http.app import build_app
from naiad.types import (
    Completion,
    Finished,
    FinishReason,
    GenerateRequest,
    ModelInfo,
    Progress,
    Started,
    TextDelta,
    TextPrompt,
)

HI: list[Any] = [{"role": "user", "content": "Hi"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL: Any = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
ANSWER = f"<think>\nwhy\n</think>\n\nso \n{CALL}\n{CALL}"


@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_reasoning_and_tools_whole_and_streamed(size: int) -> None:
    pieces = [ANSWER[i : i + size] for i in range(0, len(ANSWER), size)]
    async with house(saying(*pieces)) as running:
        create: Any = running.sdk().chat.completions.create
        told: Any = await create(model="m", messages=HI, tools=[TOOL])
        assert running.asked["tools"][0]["function"]["name"] == "get_weather"
        choice = told.choices[0]
        assert choice.finish_reason == "tool_calls"
        assert (choice.message.reasoning_content, choice.message.content) == ("why", "so")
        calls = [(c.function.name, c.function.arguments) for c in choice.message.tool_calls]
        assert calls == [("get_weather", '{"city": "Köln 😀"}')] * 2
        async with running.sdk().chat.completions.stream(
            model="m", messages=HI, tools=[TOOL]
        ) as events:
            kinds = {event.type async for event in events}
            final: Any = (await events.get_final_completion()).choices[0]
    assert "tool_calls.function.arguments.delta" in kinds
    assert final.message.content == "so"
    assert [call.function.arguments for call in final.message.tool_calls] == [calls[0][1]] * 2
    assert final.finish_reason == "tool_calls"


async def test_reasoning_alone_is_streamed_beside_the_text() -> None:
    async with house(saying("<th", "ink>wh", "y</thi", "nk>s", "o")) as running:
        create: Any = running.sdk().chat.completions.create
        chunks = [c async for c in await create(model="m", messages=HI, stream=True)]
        deltas = [chunk.choices[0].delta for chunk in chunks]
        assert "".join(getattr(d, "reasoning_content", None) or "" for d in deltas) == "why"
        assert "".join(delta.content or "" for delta in deltas) == "so"
        raw = await create(model="m", messages=HI, extra_body={"reasoning_format": "none"})
        assert raw.choices[0].message.content == "<think>why</think>so"


async def test_one_call_at_a_time_ends_the_answer_and_the_engines_work() -> None:
    def script(stream: FakeStream) -> None:
        stream.put(f"{CALL}\n{CALL}")  # and never ends by itself

    async with house(script) as running:
        told: Any = await running.sdk().chat.completions.create(
            model="m", messages=HI, tools=[TOOL], parallel_tool_calls=False
        )
        assert running.engine.aborted
    assert len(told.choices[0].message.tool_calls) == 1
    assert told.choices[0].finish_reason == "tool_calls"


async def test_a_forced_call_is_one_by_grammar() -> None:
    said = '{"name": "get_weather", "arguments": {"city": "Köln"}}'
    async with house(saying(said)) as running:
        told: Any = await running.sdk().chat.completions.create(
            model="m", messages=HI, tools=[TOOL], tool_choice="required"
        )
        grammar = running.job.grammar
    assert told.choices[0].message.content is None
    assert told.choices[0].message.tool_calls[0].function.arguments == '{"city": "Köln"}'
    schema = msgspec.json.decode(grammar.text)
    assert schema["properties"] == {"name": {"const": "get_weather"}, "arguments": SCHEMA}
    assert (grammar.kind, grammar.after) == ("json_schema", "</think>")


async def test_a_model_that_knows_no_tools_is_told_of_them() -> None:
    said = '```json\n{"name": "get_weather", "arguments": {}}\n```'
    async with house(saying(said), template="{{ messages }}") as running:
        told: Any = await running.sdk().chat.completions.create(
            model="m", messages=HI, tools=[TOOL]
        )
        system, user = running.asked["turns"]
    assert running.asked["tools"] is None
    assert '"name": "get_weather"' in system["content"]
    assert user == HI[0]
    assert told.choices[0].message.tool_calls[0].function.name == "get_weather"


async def test_a_call_that_is_cut_off_ends_with_length() -> None:
    async with house(saying(CALL[:60], reason=FinishReason.LENGTH)) as running:
        told: Any = await running.sdk().chat.completions.create(
            model="m", messages=HI, tools=[TOOL]
        )
    assert told.choices[0].finish_reason == "length"
    assert told.choices[0].message.tool_calls[0].function.arguments.startswith('{"city"')


async def test_a_stop_string_ends_the_answer_in_every_channel() -> None:
    async with house(saying("<think>why STOP not</think>so")) as running:
        told: Any = await running.sdk().chat.completions.create(
            model="m", messages=HI, stop=["STOP"]
        )
    message = told.choices[0].message
    assert (message.reasoning_content, message.content) == ("why", "")


# -- the root -------------------------------------------------------------------------------------


async def test_the_root_answers_each_client_as_it_expects() -> None:
    async with house(saying("so"), template=TEMPLATE) as running, httpx.AsyncClient() as http:
        ours = await http.get(running.url, headers={"user-agent": "curl/8.5.0"})
        assert "/v1/chat/completions" in ours.text
        theirs = await http.get(running.url, headers={"user-agent": "ollama-python/0.6"})
        assert theirs.text == "Ollama is running"
        page = await http.get(running.url, headers={"accept": "text/html,*/*"})
        assert page.headers["content-type"].startswith("text/html")
        assert (await http.head(running.url)).status_code == 200


# -- a dialect of one file -----------------------------------------------------------------------


class Shouting(Formatter):
    """Lines of capitals; inherits what it does not write."""

    media = Media.NDJSON

    def open(self, started: Started) -> bytes:
        return b""

    def progress(self, progress: Progress) -> bytes:
        return b""

    def delta(self, delta: TextDelta) -> bytes:
        return delta.text.upper().encode() + b"\n"

    def close(self, finished: Finished) -> bytes:
        return b"!\n"

    def heartbeat(self) -> bytes:
        return b"\n"

    def whole(self, completion: Completion) -> Any:
        return completion.text.upper()


def _parse(body: Mapping[str, Any], model: ModelInfo) -> Parsed:
    fields = Fields(body)
    prompt = TextPrompt(fields.need(text, "say"))
    return Parsed(GenerateRequest(prompt, stream=bool(body.get("slowly"))), Shouting())


def _error_body(error: NaiadError) -> Any:
    return error.message.upper()


SHOUT = Dialect(
    name="shout",
    operations=(Operation("POST", "/shout", Access.USER, parse=_parse),),
    error_body=_error_body,
    prefixes=("/shout",),
)


async def test_a_dialect_is_one_file_and_one_line() -> None:
    settings = Config()
    app = build_app(make_service(FakeEngine(), settings), settings, (*DIALECTS, SHOUT))
    assert (await ask(app, "POST", "/shout", {"say": "hi"})).value == "HI"
    streamed = await ask(app, "POST", "/shout", {"say": "hi", "slowly": True})
    assert streamed.body.replace(b"\n", b"") == b"HI!"
    refused = await ask(app, "POST", "/shout", {})
    assert (refused.status, refused.value) == (400, "'SAY' IS MISSING.")
