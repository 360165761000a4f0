"""Anthropic's dialect: the `anthropic` package against the whole server, and bodies by hand."""

from __future__ import annotations

import json
import time
from typing import Any

import anthropic
import httpx
import pytest

from dialect_cases import CALLER, MODEL, FakeBackend
from dialect_server import CALL, House, failing, house, saying
from fakes import silent
from naiad.dialects.anthropic import count_tokens
from naiad.dialects.anthropic.errors import error_body, error_status
from naiad.dialects.anthropic.formatter import MessageFormatter
from naiad.dialects.anthropic.messages import BILLING
from naiad.dialects.anthropic.requests import parse_messages
from naiad.dialects.base import Call, Parsed
from naiad.dialects.registry import for_path
from naiad.errors import ContextExceeded, InvalidRequest, Overloaded, Unsupported
from naiad.types import (
    ChatMessage,
    ChatPrompt,
    Finished,
    FinishReason,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from patience import PATIENCE_S

HI: list[Any] = [{"role": "user", "content": "Hi"}]
M = "claude-any"
PING = b'event: ping\ndata: {"type":"ping"}\n\n'
TOOL: Any = {
    "name": "get_weather",
    "description": "The weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def client(running: House, key: str = "x") -> anthropic.AsyncAnthropic:
    made = anthropic.AsyncAnthropic(base_url=running.url, api_key=key, max_retries=0)
    running.closing.push_async_callback(made.close)
    return made


# -- the package --------------------------------------------------------------------------------


async def test_whole_answers() -> None:
    async with house(saying("Hel", "lo 😀")) as running:
        told = await client(running).messages.create(
            model=M, max_tokens=20, messages=HI, system="Be kind."
        )
        assert running.asked["turns"] == [{"role": "system", "content": "Be kind."}, *HI]
    assert [block.model_dump(exclude_none=True) for block in told.content] == [
        {"type": "text", "text": "Hello 😀", "citations": []}
    ]
    assert (told.role, told.model) == ("assistant", M)
    assert (told.stop_reason, told.stop_sequence) == ("end_turn", None)
    assert told.usage.output_tokens == 2
    assert told.usage.cache_read_input_tokens == 1  # what the fake engine says it reused
    assert told.usage.input_tokens == len(running.prompt) - 1
    assert told._request_id is not None


async def test_streams_build_the_same_message() -> None:
    async with (
        house(saying("Hel", "lo", reason=FinishReason.LENGTH)) as running,
        client(running).messages.stream(model=M, max_tokens=2, messages=HI) as stream,
    ):
        texts = [text async for text in stream.text_stream]
        final = await stream.get_final_message()
    assert "".join(texts) == "Hello"
    assert [block.type for block in final.content] == ["text"]
    assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 2)
    assert final.usage.cache_read_input_tokens == 1


async def test_events_come_in_the_order_of_the_api() -> None:
    said = ("<think>", "why", "</think>", "so ", CALL)
    async with house(saying(*said)) as running:
        stream = await client(running).messages.create(
            model=M, max_tokens=20, messages=HI, tools=[TOOL], stream=True
        )
        events = [event async for event in stream]
    kinds = [event.type for event in events]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    starts = [event for event in events if event.type == "content_block_start"]
    assert [event.content_block.type for event in starts] == ["thinking", "text", "tool_use"]
    assert [event.index for event in starts] == [0, 1, 2]
    assert kinds.count("content_block_stop") == 3
    deltas = [event.delta.type for event in events if event.type == "content_block_delta"]
    assert list(dict.fromkeys(deltas)) == [
        *("thinking_delta", "signature_delta", "text_delta", "input_json_delta"),
    ]


async def test_thinking_text_and_tools_whole_and_streamed() -> None:
    async with house(saying("<think>why</think>", "so ", CALL[:30], CALL[30:])) as running:
        ask: Any = {"model": M, "max_tokens": 20, "messages": HI, "tools": [TOOL]}
        told = await client(running).messages.create(
            **ask, thinking={"type": "enabled", "budget_tokens": 1024}
        )
        async with client(running).messages.stream(**ask) as stream:
            final = await stream.get_final_message()
        answers: list[Any] = [told, final]
        for message in answers:
            thinking, text, call = message.content
            assert (thinking.type, thinking.thinking) == ("thinking", "why")
            assert text.type == "text"
            assert text.text == "so"
            assert call.type == "tool_use"
            assert (call.name, call.input) == ("get_weather", {"city": "Köln 😀"})
            assert call.id.startswith("toolu_")
            assert message.stop_reason == "tool_use"
        blocks: Any = [block.model_dump() for block in final.content]
        result = {"type": "tool_result", "tool_use_id": blocks[2]["id"], "content": "30 C"}
        turns = [
            *HI,
            {"role": "assistant", "content": blocks},
            {"role": "user", "content": [result, {"type": "text", "text": "And?"}]},
        ]
        await client(running).messages.create(**{**ask, "messages": turns})
        _, assistant, tool, user = running.asked["turns"]
    assert assistant["reasoning_content"] == "why"
    assert assistant["tool_calls"][0]["function"]["arguments"] == {"city": "Köln 😀"}
    assert (tool["role"], tool["content"], tool["name"]) == ("tool", "30 C", "get_weather")
    assert user == {"role": "user", "content": "And?"}


async def test_a_stop_sequence_is_echoed() -> None:
    async with house(saying("a", "b\nc")) as running:
        told = await client(running).messages.create(
            model=M, max_tokens=20, messages=HI, stop_sequences=["\n", "END"]
        )
    assert (told.stop_reason, told.stop_sequence) == ("stop_sequence", "\n")


async def test_agents_extras_are_tolerated_and_tokens_counted() -> None:
    async with house(saying("so")) as running:
        await client(running).beta.messages.create(
            model=M,
            max_tokens=20,
            messages=HI,
            betas=["unknown-2026-01-01"],
            thinking={"type": "adaptive"},
            context_management={"edits": []},
            output_config={"effort": "high"},
            metadata={"user_id": "me"},
            extra_headers={"anthropic-version": "2026-10-21"},
        )
        counted = await client(running).messages.count_tokens(model=M, messages=HI)
        assert counted.input_tokens == len(running.prompt)


async def test_the_model_is_listed() -> None:
    async with house(saying("so")) as running:
        models = [model async for model in client(running).models.list()]
        (shown,) = [await client(running).models.retrieve(models[0].id)]
    assert [model.id for model in models] == ["tiny.Q4_1"]
    assert (shown.type, shown.display_name) == ("model", "tiny.Q4_1")
    assert shown.created_at.year >= 2024


async def test_head_of_the_root_says_yes() -> None:
    async with house(saying("so")) as running, httpx.AsyncClient() as http:
        assert (await http.head(f"{running.url}/")).status_code == 200


async def test_failures_are_the_packages_own_exceptions() -> None:
    async with house(failing) as running:
        create = client(running).messages.create
        with pytest.raises(anthropic.BadRequestError, match="'max_tokens' must be") as bad:
            await create(model=M, messages=HI, max_tokens=0)
        body: Any = bad.value.body
        assert body["error"]["type"] == "invalid_request_error"
        assert body["request_id"] == bad.value.response.headers["request-id"]
        with pytest.raises(anthropic.InternalServerError, match="The engine died"):
            await create(model=M, messages=HI, max_tokens=9)
        received = []
        with pytest.raises(anthropic.APIStatusError, match="The engine died"):
            async with client(running).messages.stream(
                model=M, messages=HI, max_tokens=9
            ) as stream:
                async for text in stream.text_stream:
                    received.append(text)
        assert received == ["Hel"]


async def test_the_key_may_come_as_x_api_key() -> None:
    async with house(saying("so"), api_key="secret") as running:
        with pytest.raises(anthropic.AuthenticationError):
            await client(running, "wrong").messages.create(model=M, max_tokens=9, messages=HI)
        told = await client(running, "secret").messages.create(model=M, max_tokens=9, messages=HI)
        assert told.stop_reason == "end_turn"


async def test_a_full_queue_is_529() -> None:
    async with house(silent) as running:
        engine = running.engine
        url, ask = f"{running.url}/v1/messages", {"max_tokens": 9, "messages": HI, "stream": True}
        async with httpx.AsyncClient(timeout=PATIENCE_S) as http:
            for _ in range(6):
                request = http.build_request("POST", url, json=ask)
                answer = await http.send(request, stream=True)
                running.closing.push_async_callback(answer.aclose)
            refused = await http.post(url, json=ask)
            assert refused.status_code == 529
            assert refused.json()["error"]["type"] == "overloaded_error"
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.headers["x-should-retry"] == "true"
            for stream in engine.streams.values():
                stream.end(FinishReason.STOP)


# -- bodies -------------------------------------------------------------------------------------


def parsed(**fields: Any) -> Parsed:
    return parse_messages({"model": M, "max_tokens": 9, "messages": HI, **fields}, MODEL)


def chat(**fields: Any) -> ChatPrompt:
    prompt = parsed(**fields).request.prompt
    assert isinstance(prompt, ChatPrompt)
    return prompt


def test_the_billing_line_is_no_part_of_the_prompt() -> None:
    billing = f"{BILLING} cc_version=2.1.197.{{}}; cc_entrypoint=cli;"
    blocks = [
        {"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "Rules."},
    ]
    prompts = [
        chat(system=[{"type": "text", "text": billing.format(code)}, *blocks])
        for code in ("123", "ffc")
    ]
    assert prompts[0] == prompts[1]
    assert prompts[0].messages[0] == ChatMessage("system", "You are an agent.\n\nRules.")
    assert chat(system=billing).messages[0].role == "user"
    assert chat(system=f"{billing}\nRules.").messages[0].content == "Rules."


def test_prefill_and_thinking() -> None:
    begun = chat(messages=[*HI, {"role": "assistant", "content": "It is"}])
    assert begun.continue_final
    assert not chat().continue_final
    assert chat(thinking={"type": "disabled"}).thinking is False
    assert chat(thinking={"type": "adaptive"}).thinking is None
    assert chat(output_config={"effort": "low"}).template_kwargs == (("reasoning_effort", "low"),)


def test_blocks_become_turns() -> None:
    turns = [
        {
            "role": "assistant",
            "content": [
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "a"},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "b"},
                {"type": "tool_result", "tool_use_id": "t1", "is_error": True, "content": "no"},
                {"type": "tool_result", "tool_use_id": "t2"},
            ],
        },
        {"role": "user", "content": []},
    ]
    assert chat(messages=turns).messages == (
        ChatMessage("assistant", "a", tool_calls=(ToolCall("t1", "f", "{}"),)),
        ChatMessage("user", "b"),
        ChatMessage("tool", "Error: no", tool_call_id="t1", name="f"),
        ChatMessage("tool", "", tool_call_id="t2"),
        ChatMessage("user", ""),
    )


def test_tools_of_the_servers_own_are_left_out_and_said() -> None:
    made = parsed(tools=[TOOL, {"type": "web_search_20250305", "name": "web_search"}])
    assert made.ignored == ("tools.web_search_20250305",)
    assert isinstance(made.request.prompt, ChatPrompt)
    assert [tool.name for tool in made.request.prompt.tools] == ["get_weather"]
    assert chat(tools=[TOOL], tool_choice={"type": "none"}).tools == ()
    assert chat(tools=[TOOL], tool_choice={"type": "any"}).forced == ("get_weather",)
    one = chat(tools=[TOOL], tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert (one.has_one_call, chat(tools=[TOOL]).has_one_call) == (True, False)
    chosen = chat(tools=[TOOL], tool_choice={"type": "tool", "name": "get_weather"})
    assert chosen.forced == ("get_weather",)


def test_a_schema_becomes_a_grammar() -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    grammar = parsed(output_config={"format": form}).request.grammar
    assert grammar is not None
    assert (grammar.kind, grammar.text) == ("json_schema", '{"type":"object"}')
    assert parsed(output_format=form).request.grammar == grammar


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": "Hi"}, "'messages' must be a list"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "user"}]}, "'messages[0].content' must be a string or a list"),
        ({"messages": [{"role": "tool", "content": ""}]}, "user or assistant"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "is an image",
        ),
        ({"max_tokens": 0}, "'max_tokens' must be an integer of at least 1"),
        ({"system": 5}, "'system' must be a string or a list"),
        ({"tool_choice": {"type": "any"}}, "there are no tools"),
        ({"tool_choice": {"type": "some"}}, "'tool_choice.type' must be auto, any"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "f"}}, "no tool 'f'"),
        ({"tools": [{"input_schema": {}}]}, "'tools[0].name' is missing"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "schema' is missing"),
        ({"output_config": {"format": {"type": "xml"}}}, "must be json_schema"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parsed(**fields)
    assert words in caught.value.message


def test_errors_in_anthropics_words() -> None:
    full = ContextExceeded("Too long.", n_prompt_tokens=900, n_ctx=512)
    assert error_body(full) == {
        "type": "error",
        "error": {
            "type": "invalid_request_error",
            "message": "prompt is too long: 900 tokens > 512 maximum",
        },
    }
    assert error_status(Overloaded("Full.")) == 529
    assert error_status(Unsupported("No.")) == 400
    assert for_path("/v1/messages/x").name == "anthropic"
    assert for_path("/v1/models").name == "openai"


async def test_counting_needs_no_max_tokens() -> None:
    backend = FakeBackend()
    call = Call({"messages": HI, "tools": [TOOL]}, {"beta": "true"}, {}, CALLER)
    assert await count_tokens(backend, call) == {"input_tokens": 1 + len("rendered")}
    assert backend.asked[0].prompt.tools[0].name == "get_weather"


class Clock:
    """Shows what it is set to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("thinks", [True, False])
def test_what_is_asked_tells_whether_thinking_comes_first(thinks: bool) -> None:
    kind = "enabled" if thinks else "disabled"
    formatter = parsed(thinking={"type": kind, "budget_tokens": 1024}).formatter
    formatter.open(Started(1))
    formatter._clock = lambda: time.monotonic() + 1000  # type: ignore[attr-defined]
    assert (b'"thinking"' in formatter.heartbeat()) is thinks


@pytest.mark.parametrize("rest", [("text",), ("thinking", "text"), ("tool_use",)])
def test_long_silence_is_told_in_events_that_add_nothing(rest: tuple[str, ...]) -> None:
    """Pings alone make Claude Code give up; the message is what it is without the silence."""
    clock = Clock()
    formatter = MessageFormatter("m", "msg_1", thinks=rest[0] == "thinking", clock=clock)
    clock.now += 1000
    assert {formatter.heartbeat() for _ in range(3)} == {PING}  # the model may be loaded first
    said: dict[str, Any] = {
        "text": formatter.delta,
        "thinking": formatter.reasoning,
        "tool_use": formatter.tool_call,
    }
    given: dict[str, Any] = {
        "text": TextDelta("so", 1),
        "thinking": ReasoningDelta("why", 1),
        "tool_use": ToolCallDelta(0, "a", "f", "{}", is_first=True, is_last=True),
    }
    frames = formatter.open(Started(1))
    clock.now += 239
    assert formatter.heartbeat() == PING
    for _ in range(3):
        clock.now += 240
        frames += formatter.heartbeat()
        assert formatter.heartbeat() == PING
    for kind in rest:
        frames += said[kind](given[kind])
        assert formatter.heartbeat() == PING
        clock.now += 240
        frames += formatter.heartbeat()
    frames += formatter.close(Finished(FinishReason.STOP, Usage(1, 1)))
    lines = [line for line in frames.decode().splitlines() if line.startswith("data: ")]
    events = [json.loads(line[6:]) for line in lines]
    begun = [one["content_block"]["type"] for one in events if "content_block" in one]
    assert begun == (["text", *rest] if rest == ("tool_use",) else list(rest))
    ends = [one["index"] for one in events if one["type"] == "content_block_stop"]
    assert ends == list(range(len(begun)))
    pieces = [one["delta"] for one in events if one["type"] == "content_block_delta"]
    assert "".join(one.get("text", "") for one in pieces) == "so" * ("text" in rest)
    assert "".join(one.get("thinking", "") for one in pieces) == "why" * ("thinking" in rest)
    assert "".join(one.get("partial_json", "") for one in pieces) == "{}" * ("tool_use" in rest)
    assert len([one for one in pieces if not any(list(one.values())[1:])]) >= 3
