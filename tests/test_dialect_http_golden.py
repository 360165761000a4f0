"""Every dialect over the whole app, streamed and whole, in every scenario: the exact bytes.

`python tests/test_dialect_http_golden.py` writes the files anew; read the difference first.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dialect_folds import read
from dialect_server import CALL, MODEL, JsonRenderer
from fakes import FakeEngine, FakeStream, SteppedStream
from http_client import Answer, ask
from naiad.config import Config
from naiad.dialects.registry import DIALECTS
from naiad.errors import EngineFailed
from naiad.http.app import build_app
from naiad.service.service import Service
from naiad.types import FinishReason

GOLDEN = Path(__file__).parent / "golden"

#: Reasoning, text, and two calls; tags, arguments and an emoji split between tokens.
TOOLS = ("<thi", "nk>wh", "y</think>", "\n\nLet me", " see.\n", CALL[:14], CALL[14:60], CALL[60:])
SCENARIOS: dict[str, tuple[tuple[bytes, ...], FinishReason]] = {
    "stop": ((b"Hel", b"lo\nYo", b"u: more"), FinishReason.STOP),
    "length": ((b"Hel", b"lo"), FinishReason.LENGTH),
    "abort": ((b"Hel", b"lo"), FinishReason.CANCELLED),
    "error": ((b"Hel", b"lo"), FinishReason.ERROR),
    "emoji": ((b"a\xf0\x9f", b"\x98\x80", "你\u2028".encode(), b"\xf0"), FinishReason.STOP),
    "empty": ((), FinishReason.STOP),
    "tools": (tuple(piece.encode() for piece in TOOLS), FinishReason.STOP),
    "choices": ((b"I", b" am"), FinishReason.STOP),
}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"name": "get_weather", "parameters": SCHEMA}
HI = [{"role": "user", "content": "Once 😀"}]


@dataclass(frozen=True)
class Way:
    """How a dialect is asked. path_streamed: where the streamed form has one of its own."""

    path: str
    body: dict[str, Any]
    path_streamed: str = ""
    tools: Any = None
    has_choices: bool = False
    no_stream: dict[str, Any] = field(default_factory=dict)

    def scenarios(self) -> list[str]:
        has = {"tools": self.tools is not None, "choices": self.has_choices}
        return [scenario for scenario in SCENARIOS if has.get(scenario, True)]


WAYS = {
    "openai-chat": Way(
        "/v1/chat/completions",
        {"messages": HI, "stop": ["\nYou:"], "stream_options": {"include_usage": True}},
        tools=[{"type": "function", "function": FUNCTION}],
        has_choices=True,
    ),
    "openai-completions": Way(
        "/v1/completions",
        {"prompt": "Once 😀", "stop": ["\nYou:"], "stream_options": {"include_usage": True}},
        has_choices=True,
    ),
    "openai-responses": Way(
        "/v1/responses",
        {"input": "Once 😀", "stop": ["\nYou:"]},
        tools=[{"type": "function", **FUNCTION}],
    ),
    "anthropic": Way(
        "/v1/messages",
        {"messages": HI, "stop_sequences": ["\nYou:"], "max_tokens": 9},
        tools=[{"name": "get_weather", "input_schema": SCHEMA}],
    ),
    "ollama-chat": Way(
        "/api/chat",
        {"messages": HI, "options": {"stop": ["\nYou:"]}},
        tools=[{"type": "function", "function": FUNCTION}],
        no_stream={"stream": False},
    ),
    "ollama-generate": Way(
        "/api/generate",
        {"prompt": "Once 😀", "options": {"stop": ["\nYou:"]}},
        no_stream={"stream": False},
    ),
    "kobold": Way(
        "/api/v1/generate",
        {"prompt": "Once 😀", "stop_sequence": ["\nYou:"]},
        path_streamed="/api/extra/generate/stream",
    ),
    "llama": Way("/completion", {"prompt": "Once 😀", "stop": ["\nYou:"]}),
    "llama-infill": Way(
        "/infill", {"input_prefix": "Once", "input_suffix": "😀", "stop": ["\nYou:"]}
    ),
}
#: Why a scenario is not among a dialect's: each of these APIs says so itself.
WITHOUT = {
    "tools": {
        **dict.fromkeys(("openai-completions", "llama", "llama-infill"), "a text has no tools"),
        **dict.fromkeys(("ollama-generate", "kobold"), "the API has no tools"),
    },
    "choices": {
        **dict.fromkeys(("openai-responses", "anthropic"), "one answer, by the API"),
        **dict.fromkeys(("ollama-chat", "ollama-generate", "kobold"), "one answer, by the API"),
        **dict.fromkeys(("llama", "llama-infill"), "refused: the answer names /v1/completions"),
    },
}
#: Routes that generate beside those, and the test that has their bytes.
ELSEWHERE = {"/request": "kobold-basic of test_dialect_golden: one text, of which only it is told"}
CODER = msgspec.structs.replace(MODEL, infill=("<PRE>", "<SUF>", "<MID>"))
CASES = [(name, scenario) for name, way in WAYS.items() for scenario in way.scenarios()]


def script(name: str) -> Callable[[FakeStream], None]:
    tokens, reason = SCENARIOS[name]

    def say(stream: FakeStream) -> None:
        for token in tokens:
            stream.put(token)
        if name == "choices":
            stream.put(f" {stream.job.sampling.choice}")
        failed = reason is FinishReason.ERROR
        stream.end(reason, EngineFailed("The engine died.") if failed else None)

    return say


async def answer(name: str, scenario: str, *, is_streamed: bool) -> Answer:
    way = WAYS[name]
    engine, config = FakeEngine(script(scenario), SteppedStream), Config()
    engine.model = CODER
    app = build_app(Service(engine, config, JsonRenderer()), config)
    body = {**way.body, "seed": 7, **({"stream": True} if is_streamed else way.no_stream)}
    body |= {"tools": way.tools} if scenario == "tools" else {}
    body |= {"n": 2} if scenario == "choices" else {}
    path = way.path_streamed if is_streamed and way.path_streamed else way.path
    return await ask(app, "POST", path, body)


async def written(name: str) -> bytes:
    """All scenarios of one dialect."""
    parts: list[bytes] = []
    for scenario in WAYS[name].scenarios():
        for form in ("streamed", "whole"):
            got = await answer(name, scenario, is_streamed=form == "streamed")
            head = f"=== {scenario}, {form}: {got.status} {got.headers['content-type']}\n"
            body = _in_order(got.body) if scenario == "choices" else got.body
            parts += [head.encode(), body, b"\n\n"]
    return _still(b"".join(parts))


def _in_order(body: bytes) -> bytes:
    """Events of the first choice before those of the second: they come mixed, as they are made."""
    *events, last = body.split(b"\n\n")
    return b"\n\n".join([*sorted(events, key=_place), last])


def _place(event: bytes) -> int:
    found = re.search(rb'"choices":\[\{"index":(\d)', event)
    return 2 if found is None else int(found[1])


def _still(data: bytes) -> bytes:
    """Without ids and times, which are never the same; the settings have tests of their own."""
    data = re.sub(rb'"(timings|generation_settings)":\{[^}]*\}', rb'"\1":{}', data)
    data = re.sub(rb'"(created|created_at|completed_at)":("[^"]*"|[\d.]+)', rb'"\1":0', data)
    data = re.sub(rb'("[a-z_]+_duration"):\d+', rb"\1:0", data)
    data = re.sub(rb'"request_id":"[0-9a-f]+"', b'"request_id":"ID"', data)
    return re.sub(rb'"((?:[a-z]+[-_])+)[0-9a-f]{24,}"', rb'"\1ID"', data)


def test_the_matrix_is_complete() -> None:
    missing = {
        (name, scenario) for name in WAYS for scenario in SCENARIOS if (name, scenario) not in CASES
    }
    assert missing == {(name, scenario) for scenario, names in WITHOUT.items() for name in names}
    operations = [one for dialect in DIALECTS for one in dialect.operations if one.method == "POST"]
    reader = {one.path: one.parse or one.plan for one in operations}
    shown = {path for way in WAYS.values() for path in (way.path, way.path_streamed) if path}
    read = {reader[path] for path in (*shown, *ELSEWHERE)}
    assert [path for path, way in reader.items() if way is not None and way not in read] == []


@pytest.mark.parametrize("name", WITHOUT["choices"])
async def test_where_there_is_one_answer_nobody_gets_two(name: str) -> None:
    assert (name, "choices") not in CASES
    got = await answer(name, "choices", is_streamed=False)
    if name.startswith("llama"):
        assert (got.status, got.value["error"]["param"]) == (400, "n")
    else:
        assert [said.text for said in read(name, got.body, is_streamed=False)] == ["I am 0"]


@pytest.mark.parametrize("name", WAYS)
async def test_bytes_are_golden(name: str) -> None:
    assert await written(name) == (GOLDEN / f"http-{name}.txt").read_bytes()


@pytest.mark.parametrize(("name", "scenario"), [case for case in CASES if case[1] != "error"])
async def test_streamed_is_whole(name: str, scenario: str) -> None:
    streamed = await answer(name, scenario, is_streamed=True)
    whole = await answer(name, scenario, is_streamed=False)
    told = read(name, whole.body, is_streamed=False)
    assert read(name, streamed.body, is_streamed=True) == told
    texts = {"stop": "Hello", "emoji": "a😀你\u2028", "empty": "", "tools": "Let me see."}
    texts |= {"choices": "I am 0"}
    assert told[0].text == texts.get(scenario, "Hello")
    if scenario == "choices":
        assert told[1].text == "I am 1"
    if scenario == "tools":
        call = msgspec.json.decode(told[0].calls[0][1])
        assert (told[0].reasoning, told[0].calls[0][0]) == ("why", "get_weather")
        assert call == {"city": "Köln 😀"}


if __name__ == "__main__":
    for each in WAYS:
        (GOLDEN / f"http-{each}.txt").write_bytes(asyncio.run(written(each)))
