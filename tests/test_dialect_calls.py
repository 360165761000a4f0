"""Shapes of calls: `functions` of old, and custom tools; read by the `openai` package itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialect_cases import MODEL
from naiad.dialects.base import Formatter
from naiad.dialects.framing import to_json
from naiad.dialects.openai.customs import InputText
from naiad.dialects.openai.errors import error_body
from naiad.dialects.openai.requests import parse_chat
from naiad.dialects.openai.responses.formatter import ResponsesFormatter
from naiad.dialects.openai.responses.requests import read_body
from naiad.errors import InvalidRequest, NaiadError, Unsupported
from naiad.types import (
    ChatPrompt,
    Completion,
    Finished,
    FinishReason,
    Started,
    ToolCall,
    ToolCallDelta,
    Usage,
)

HI: Any = [{"role": "user", "content": "Hi"}]
F: dict[str, Any] = {"name": "f", "parameters": {"type": "object"}}
SAID = 'Say "ä😀"\n\\ and no more'
REGEX = {"type": "grammar", "grammar": {"syntax": "regex", "definition": "[a-z]+|b"}}


def custom(**fields: Any) -> dict[str, Any]:
    return {"type": "custom", "custom": {"name": "say", **fields}}


def ended(n_calls: int = 1) -> Finished:
    return Finished(FinishReason.STOP, Usage(7, 3, 0), n_tool_calls=n_calls)


def streamed(formatter: Formatter, name: str, arguments: str) -> bytes:
    """A call of which every character comes by itself."""
    pieces = ["", *arguments]
    data = formatter.open(Started(7))
    for place, piece in enumerate(pieces):
        is_last = place == len(pieces) - 1
        delta = ToolCallDelta(0, "1a", name, piece, is_first=place == 0, is_last=is_last)
        data += formatter.tool_call(delta)
    return data + formatter.close(ended())


def client(name: str, arguments: str) -> openai.OpenAI:
    """A client whose server is the dialect, with a model that calls just that."""

    def read(path: str, body: Mapping[str, Any]) -> tuple[Formatter, bool]:
        if path == "/v1/chat/completions":
            parsed = parse_chat(body, MODEL)
            return parsed.formatter, parsed.request.stream
        asked = read_body(body, MODEL)
        return ResponsesFormatter("m", asked.shown), asked.request.stream

    def answer(request: httpx.Request) -> httpx.Response:
        try:
            formatter, is_streamed = read(request.url.path, json.loads(request.content))
        except NaiadError as error:
            return httpx.Response(error.status, content=to_json(error_body(error)))
        if is_streamed:
            headers = {"content-type": formatter.media}
            return httpx.Response(
                200, content=streamed(formatter, name, arguments), headers=headers
            )
        call = ToolCall("1a", name, arguments)
        whole = formatter.whole(Completion("", ended(), tool_calls=(call,)))
        return httpx.Response(200, content=to_json(whole))

    http: Any = httpx.Client(transport=httpx.MockTransport(answer))
    return openai.OpenAI(base_url="http://naiad/v1", api_key="-", http_client=http, max_retries=0)


def prompt(**body: Any) -> ChatPrompt:
    found = parse_chat({"messages": HI, **body}, MODEL).request.prompt
    assert isinstance(found, ChatPrompt)
    return found


# -- functions -------------------------------------------------------------------------------------


def test_the_old_shape_is_told_to_who_asks_in_it() -> None:
    create: Any = client("f", '{"a": 1}').chat.completions.create
    choice = create(model="m", messages=HI, functions=[F]).choices[0]
    assert choice.finish_reason == "function_call"
    assert choice.message.function_call.name == "f"
    assert choice.message.function_call.arguments == '{"a": 1}'
    assert (choice.message.tool_calls, choice.message.content) == (None, None)
    *chunks, last = list(create(model="m", messages=HI, functions=[F], stream=True))
    told = [chunk.choices[0].delta.function_call for chunk in chunks]
    assert [call.name for call in told if call and call.name] == ["f"]
    assert "".join(call.arguments for call in told if call) == '{"a": 1}'
    assert last.choices[0].finish_reason == "function_call"


def test_functions_are_tools_of_which_one_is_called() -> None:
    old, new = prompt(functions=[F]), prompt(tools=[{"type": "function", "function": F}])
    assert old.tools == new.tools
    assert (old.has_one_call, new.has_one_call) == (True, False)
    assert prompt(functions=[F], function_call={"name": "f"}).forced == ("f",)
    assert prompt(functions=[F], function_call="none").tools == ()
    assert prompt(functions=[], function_call="auto").tools == ()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"functions": [F], "tools": [custom()]}, "'functions' is the old name of 'tools'"),
        ({"functions": [F], "function_call": {"name": "g"}}, "there is no tool 'g'"),
        ({"functions": [F], "function_call": "required"}, "'function_call' must be none, auto or"),
        ({"function_call": {"name": "f"}}, "there is no tool 'f'"),
        ({"tools": [custom()], "function_call": "auto"}, "with 'tools' it is 'tool_choice'"),
        ({"functions": [{}]}, r"'functions\[0\].name' is missing"),
        ({"functions": [F] * 1025}, "at most 1024 functions, not 1025"),
        ({"tools": [{"type": "custom"}]}, r"'tools\[0\].custom' is missing"),
        ({"tools": [custom(format={"type": "x"})]}, r"custom.format.type' must be text or grammar"),
        (
            {"tools": [custom(format={"type": "grammar", "grammar": {"syntax": "bnf"}})]},
            "format.grammar.syntax' must be lark or regex",
        ),
    ],
)
def test_what_fits_neither_is_refused_by_name(body: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        prompt(**body)


# -- custom tools ----------------------------------------------------------------------------------


def test_a_custom_tool_is_called_with_a_text() -> None:
    create: Any = client("say", json.dumps({"input": SAID})).chat.completions.create
    choice = create(model="m", messages=HI, tools=[custom()]).choices[0]
    (call,) = choice.message.tool_calls
    assert (call.id, call.type, call.custom.name) == ("call_1a", "custom", "say")
    assert call.custom.input == SAID
    assert choice.finish_reason == "tool_calls"
    chunks = list(create(model="m", messages=HI, tools=[custom()], stream=True))
    pieces = [one for chunk in chunks for one in chunk.choices[0].delta.tool_calls or ()]
    assert [(one.id, one.custom["name"]) for one in pieces if one.id] == [("call_1a", "say")]
    assert "".join(one.custom["input"] for one in pieces) == SAID


def test_it_is_an_item_of_its_own_in_responses() -> None:
    sdk: Any = client("say", json.dumps({"input": SAID}))
    tools: Any = [{"type": "custom", "name": "say"}]
    whole = sdk.responses.create(model="m", input="Hi", tools=tools)
    (item,) = whole.output
    assert (item.type, item.name, item.call_id, item.input) == (
        "custom_tool_call", "say", "call_1a", SAID,
    )  # fmt: skip
    assert whole.tools[0].format.type == "text"
    with sdk.responses.stream(model="m", input="Hi", tools=tools) as stream:
        events = list(stream)
        assert stream.get_final_response().output[0].input == SAID
    told = [one for one in events if one.type == "response.custom_tool_call_input.delta"]
    assert "".join(one.delta for one in told) == SAID
    (done,) = [one for one in events if one.type == "response.custom_tool_call_input.done"]
    assert (done.input, done.item_id) == (SAID, told[0].item_id)


def test_a_response_that_follows_knows_the_call() -> None:
    formatter = ResponsesFormatter("m", {"tools": [{"type": "custom", "name": "say"}]})
    call = ToolCall("1a", "say", '{"input": "so"}')
    output = formatter.whole(Completion("", ended(), tool_calls=(call,)))["output"]
    result = {"type": "custom_tool_call_output", "call_id": "call_1a", "output": "done"}
    asked = read_body({"input": [result]}, MODEL, output).request.prompt
    assert isinstance(asked, ChatPrompt)
    called, told = asked.messages
    assert (called.tool_calls[0].name, told.name, told.content) == ("say", "say", "done")
    assert json.loads(called.tool_calls[0].arguments) == {"input": "so"}


def test_a_regex_holds_for_the_text() -> None:
    pattern = {"type": "string", "pattern": "^(?:[a-z]+|b)$"}
    (tool,) = prompt(tools=[custom(format=REGEX)]).tools
    assert tool.parameters["properties"] == {"input": pattern}
    flat = {"type": "grammar", "syntax": "regex", "definition": "[a-z]+|b"}
    body = {"input": "Hi", "tools": [{"type": "custom", "name": "say", "format": flat}]}
    asked = read_body(body, MODEL)
    assert isinstance(asked.request.prompt, ChatPrompt)
    assert asked.request.prompt.tools == (tool,)
    assert asked.shown["tools"][0]["format"] == flat


def test_a_lark_grammar_is_refused_by_the_name_of_its_field() -> None:
    lark = {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: /a/"}}
    with pytest.raises(Unsupported, match="can follow a regex only") as caught:
        prompt(tools=[custom(format=lark)])
    assert caught.value.param == "tools[0].custom.format.grammar.syntax"


def test_custom_tools_can_be_chosen_as_functions_can() -> None:
    tools = [custom(), {"type": "function", "function": F}]
    chosen = {"type": "custom", "custom": {"name": "say"}}
    assert prompt(tools=tools, tool_choice=chosen).forced == ("say",)
    allowed = {"mode": "required", "tools": [chosen]}
    kept = prompt(tools=tools, tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    assert (kept.forced, len(kept.tools)) == (("say",), 1)
    asked = read_body(
        {
            "input": "Hi",
            "tools": [{"type": "custom", "name": "say"}],
            "tool_choice": {"type": "custom", "name": "say"},
        },
        MODEL,
    )
    assert isinstance(asked.request.prompt, ChatPrompt)
    assert asked.request.prompt.forced == ("say",)
    assert asked.shown["tool_choice"] == {"type": "custom", "name": "say"}


@given(st.text(max_size=12), st.booleans(), st.lists(st.integers(0, 90), max_size=4))
def test_the_text_is_the_same_however_its_json_is_cut(
    text: str, is_ascii: bool, cuts: list[int]
) -> None:
    source = json.dumps({"input": text}, ensure_ascii=is_ascii)
    places = [0, *sorted(cuts), len(source)]
    reader = InputText()
    pieces = [source[start:end] for start, end in pairwise(places)]
    told = [reader.feed(piece, is_last=False) for piece in pieces]
    told.append(reader.feed("", is_last=True))
    assert "".join(told) == text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"text": "a"}', '{"text": "a"}'),
        ('{"input": 5}', '{"input": 5}'),
        ('{"input": "a\\x"}', 'a\\x"}'),
        ('{"input": "a\\u00', "a\\u00"),
        ('{"input": "cut', "cut"),
        ('{"input": "\\udc00"}', "?"),
        ("", ""),
    ],
)
def test_nothing_of_what_a_model_makes_of_it_is_lost(arguments: str, text: str) -> None:
    reader = InputText()
    told = [reader.feed(one, is_last=False) for one in arguments]
    assert "".join([*told, reader.feed("", is_last=True)]) == text
    assert InputText().feed(arguments, is_last=True) == text
