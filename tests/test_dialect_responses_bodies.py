"""What a body of the Responses API means, and what is wrong with one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dialect_cases import MODEL
from naiad.dialects.framing import SSE_PING
from naiad.dialects.openai.responses.formatter import ResponsesFormatter
from naiad.dialects.openai.responses.items import MAX_ITEMS, to_messages
from naiad.dialects.openai.responses.requests import Asked, read_body
from naiad.errors import InvalidRequest, Unsupported
from naiad.types import (
    ChatMessage,
    ChatPrompt,
    Finished,
    FinishReason,
    Started,
    TextDelta,
    ToolCall,
    Usage,
)

F = {"type": "function", "name": "f", "parameters": {"type": "object"}}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "42"}
THOUGHT = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
SAID = {"role": "assistant", "content": [{"type": "output_text", "text": "so"}]}


def asked(**body: Any) -> Asked:
    return read_body({"input": "Hi", **body}, MODEL)


def prompt(**body: Any) -> ChatPrompt:
    found = asked(**body).request.prompt
    assert isinstance(found, ChatPrompt)
    return found


def test_a_text_is_a_users_turn_after_the_instructions() -> None:
    assert prompt(instructions="Be brief.").messages == (
        ChatMessage("system", "Be brief."),
        ChatMessage("user", "Hi"),
    )


def test_items_become_turns_with_what_belongs_to_them() -> None:
    turns: Any = [
        {"role": "developer", "content": "rules"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        THOUGHT,
        SAID,
        CALL,
        {**CALL, "call_id": "c2", "arguments": ""},
        {**RESULT, "output": [{"type": "input_text", "text": "42"}]},
        {**RESULT, "call_id": "c2"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "x"}]},
        CALL,
    ]
    calls = ToolCall("c1", "f", '{"a": 1}'), ToolCall("c2", "f", "{}")
    assert prompt(input=turns).messages == (
        ChatMessage("system", "rules"),
        ChatMessage("user", "a"),
        ChatMessage("assistant", "so", "hm", calls),
        ChatMessage("tool", "42", tool_call_id="c1", name="f"),
        ChatMessage("tool", "42", tool_call_id="c2", name="f"),
        ChatMessage("assistant", "", "x", calls[:1]),
    )


def test_many_calls_are_one_turn() -> None:
    calls: Any = [{**CALL, "call_id": f"c{place}"} for place in range(MAX_ITEMS)]
    (turn,) = prompt(input=calls).messages
    assert [call.id for call in turn.tool_calls] == [call["call_id"] for call in calls]


def test_a_conversation_is_bounded_as_a_request_is() -> None:
    history = [{"type": "function_call_output", "call_id": "c", "output": ""}] * (MAX_ITEMS - 1)
    assert len(read_body({"input": "Hi"}, MODEL, history).items) == 1
    with pytest.raises(InvalidRequest, match="1 items and the conversation before it 10000") as at:
        read_body({"input": "Hi"}, MODEL, [*history, history[0]])
    assert at.value.param == "input"


def test_items_keep_their_ids_or_get_some() -> None:
    items = asked(input=[{**RESULT, "id": "mine"}, SAID, CALL]).items
    assert items[0]["id"] == "mine"
    assert [item["id"].split("_")[0] for item in items[1:]] == ["msg", "fc"]
    assert to_messages(items)[1].role == "assistant"


def test_what_the_response_repeats() -> None:
    shown = asked(
        tools=[F], metadata={"a": "b"}, temperature=0.5, top_p=0.9, max_output_tokens=7, user="u",
        reasoning={"effort": "low", "summary": "auto"}, parallel_tool_calls=False,
    ).shown  # fmt: skip
    assert shown["tools"][0]["name"] == "f"
    assert (shown["temperature"], shown["top_p"], shown["max_output_tokens"]) == (0.5, 0.9, 7)
    assert (shown["metadata"], shown["user"]) == ({"a": "b"}, "u")
    assert shown["reasoning"] == {"effort": "low", "summary": "auto"}
    assert not shown["parallel_tool_calls"]
    assert shown["text"]["format"] == {"type": "text"}


def test_tools_and_reasoning_reach_the_prompt() -> None:
    made = prompt(tools=[F], tool_choice="required", parallel_tool_calls=False)
    assert (made.forced, made.has_one_call, made.is_split) == (("f",), True, True)
    assert prompt(tools=[F], tool_choice={"type": "function", "name": "f"}).forced == ("f",)
    assert prompt(tools=[F], tool_choice="none").tools == ()
    named = [{"type": "function", "name": "g"}]
    allowed = {"type": "allowed_tools", "mode": "required", "tools": named}
    made = prompt(tools=[F, {**F, "name": "g"}], tool_choice=allowed)
    assert ([tool.name for tool in made.tools], made.forced) == (["g"], ("g",))
    assert asked(tools=[{**F, "name": "g"}], tool_choice=allowed).shown["tool_choice"] == allowed
    assert prompt(reasoning={"effort": "none"}).thinking is False
    assert prompt(reasoning={"effort": "high"}).template_kwargs == (("reasoning_effort", "high"),)


def test_tools_of_the_service_are_left_out_and_named() -> None:
    made = asked(tools=[F, {"type": "web_search"}, {"type": "shell"}], seed=1)
    assert made.ignored == ("tools[].type: web_search", "tools[].type: shell")
    assert len(made.shown["tools"]) == 1
    assert asked(prompt_cache_key="k", service_tier="auto", include=[]).ignored == ()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"input": None}, "'input' is missing"),
        ({"input": 5}, "'input' must be a string or a list of items, not a number"),
        ({"input": []}, "1 to 10000 items, not 0"),
        ({"input": [5]}, r"'input\[0\]' must be an object"),
        ({"input": [{"content": "x"}]}, r"'input\[0\].role' is missing"),
        ({"input": [{"role": "user", "content": 5}]}, "a string or a list of parts"),
        ({"input": [{"type": "function_call", "name": "f"}]}, r"'input\[0\].call_id' is missing"),
        ({"input": [{**RESULT, "output": None}]}, r"'input\[0\].output' is missing"),
        ({"metadata": {"a": 1}}, "at most 16 names, each with a string"),
        ({"background": True, "store": False}, "'background' needs 'store'"),
        ({"tool_choice": "sometimes"}, "'tool_choice' must be none, auto, required"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": [{"type": "function"}]}, r"'tools\[0\].name' is missing"),
        ({"truncation": "some"}, "'truncation' must be disabled or auto"),
        ({"top_logprobs": 21}, "from 0 to 20"),
        ({"max_output_tokens": -5}, "'max_output_tokens'"),
        ({"text": {"format": {"type": "json_schema"}}}, "'text.format.schema' is missing"),
    ],
)
def test_bad_bodies_are_refused_by_name(body: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        asked(**body)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"input": [{"type": "item_reference", "id": "x"}]}, "'item_reference', which is not"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "is an image"),
        ({"conversation": "c"}, "'conversation' is not supported"),
        ({"prompt": {"id": "p"}}, "'prompt' is not supported"),
        ({"tools": [F], "tool_choice": {"type": "web_search"}}, "only functions are known"),
    ],
)
def test_what_is_not_supported_is_refused_with_the_reason(body: dict[str, Any], words: str) -> None:
    with pytest.raises(Unsupported, match=words):
        asked(**body)


def test_long_silence_is_told_in_events_until_there_is_output() -> None:
    """Codex gives up a stream without events; comments are none."""
    formatter = ResponsesFormatter("m", {})
    assert {formatter.heartbeat() for _ in range(3)} == {SSE_PING}  # the model may be loaded first
    frames = formatter.open(Started(1)) + b"".join(formatter.heartbeat() for _ in range(3))
    frames += formatter.delta(TextDelta("so", 1)) + formatter.heartbeat()
    frames += formatter.close(Finished(FinishReason.STOP, Usage(1, 1)))
    lines = [line for line in frames.decode().splitlines() if line.startswith("data: ")]
    events = [json.loads(line[6:]) for line in lines[:-1]]
    assert [one["type"] for one in events[:4]] == ["response.created"] + [
        "response.in_progress"
    ] * 3
    assert [one["sequence_number"] for one in events] == list(range(len(events)))
    assert frames.count(SSE_PING) == 2
    assert lines[-1] == "data: [DONE]"


def test_nothing_comes_behind_the_end() -> None:
    formatter = ResponsesFormatter("m", {})
    formatter.open(Started(1))
    formatter.heartbeat()
    formatter.close(Finished(FinishReason.ERROR, Usage(1, 0)))
    assert {formatter.heartbeat() for _ in range(3)} == {SSE_PING}
