"""Tool calls in every known format, streamed; and tools in the prompt."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel_cases import Folded, FoldedCall, cut, read
from naiad.chat.channels import TAGS, Channels
from naiad.chat.tool_formats import FORMATS, PLAIN, ToolFormat, format_of
from naiad.chat.tools import knows_tools, tools_for, turns_for
from naiad.types import ChatMessage, ChatPrompt, Tool, ToolCall, ToolCallDelta

GEMMA, GEMMA_4, MISTRAL, HERMES, LLAMA = FORMATS
NAMES = frozenset({"get_weather", "add"})


def channels(form: ToolFormat) -> Channels:
    ids = itertools.count()
    return Channels(TAGS[0], tools=form, names=NAMES, new_id=lambda: f"id{next(ids)}")


def call(arguments: str = '{"city": "Köln"}', name: str = "get_weather") -> FoldedCall:
    return FoldedCall(name, arguments)


WEATHER = '{"name": "get_weather", "arguments": {"city": "Köln"}}'
ADD = '{"name": "add", "arguments": {"a": [1, {"b": "}"}], "c": "\\"{,:"}}'
ADD_CALL = call('{"a": [1, {"b": "}"}], "c": "\\"{,:"}', "add")

#: format, what the model says, what is meant
CASES: list[tuple[ToolFormat, str, Folded]] = [
    (HERMES, f"<tool_call>\n{WEATHER}\n</tool_call>", Folded(calls=(call(),))),
    (HERMES, f"Let me see.\n<tool_call>{ADD}</tool_call>", Folded("", "Let me see.", (ADD_CALL,))),
    (
        HERMES,
        f"<think>why</think><tool_call>{WEATHER}</tool_call>\n<tool_call>{ADD}</tool_call>\n",
        Folded("why", "", (call(), ADD_CALL)),
    ),
    (HERMES, f"<think>why\n<tool_call>{ADD}</tool_call>", Folded("why", "", (ADD_CALL,))),
    (HERMES, f"<tool_call>{WEATHER}</tool_call>\n\nDone.", Folded("", "Done.", (call(),))),
    (HERMES, f"<tool_call>{WEATHER}", Folded(calls=(call(),))),
    (HERMES, "<tool_call>\nnothing", Folded(text="<tool_call>\nnothing")),
    (HERMES, "a <tool_cal", Folded(text="a <tool_cal")),
    (HERMES, "a \n", Folded(text="a \n")),
    (
        HERMES,
        "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\nx y\n"
        "</parameter>\n</function>\n</tool_call>",
        Folded(calls=(call('{"a": 1, "b": "x y"}', "add"),)),
    ),
    (LLAMA, f"<|python_tag|>{WEATHER}", Folded(calls=(call(),))),
    (LLAMA, WEATHER.replace("arguments", "parameters"), Folded(calls=(call(),))),
    (LLAMA, f"{WEATHER}; {ADD}", Folded(calls=(call(), ADD_CALL))),
    (LLAMA, '{"type": "function", "function": "add"}', Folded(calls=(call("{}", "add"),))),
    (LLAMA, '{"name": "Bob", "age": 5}', Folded(text='{"name": "Bob", "age": 5}')),
    (LLAMA, " {not json", Folded(text=" {not json")),
    (MISTRAL, f"[TOOL_CALLS] [{WEATHER}, {ADD}]", Folded(calls=(call(), ADD_CALL))),
    (MISTRAL, '[TOOL_CALLS]add[ARGS]{"a": "}"}', Folded(calls=(call('{"a": "}"}', "add"),))),
    (
        MISTRAL,
        '[TOOL_CALLS]add{"a": 1}[TOOL_CALLS]get_weather[CALL_ID]x1[ARGS]{"b": {}}',
        Folded(calls=(call('{"a": 1}', "add"), call('{"b": {}}'))),
    ),
    (MISTRAL, "So [1] it is.", Folded(text="So [1] it is.")),
    (
        GEMMA,
        "<start_function_call>call:get_weather{city:<escape>Kö:{ln}<escape>,n:[1,true]}"
        "<end_function_call>",
        Folded(calls=(call('{"city":"Kö:{ln}","n":[1,true]}'),)),
    ),
    (
        GEMMA_4,
        'Yes.<|tool_call>call:add{a:{b:<|"|>x<|"|>}}<tool_call|>',
        Folded("", "Yes.", (call('{"a":{"b":"x"}}', "add"),)),
    ),
    (GEMMA, "<start_function_call>odd<end_function_call>", Folded("", "<start_function_call>odd")),
    (PLAIN, f"```json\n{WEATHER}\n```\n", Folded(calls=(call(),))),
    (PLAIN, f"[{WEATHER},\n{ADD}]", Folded(calls=(call(), ADD_CALL))),
    (PLAIN, "```python\nprint()\n```", Folded(text="```python\nprint()\n```")),
    (PLAIN, "[1, 2]", Folded(text="[1, 2]")),
    (PLAIN, "It is {nice}.", Folded(text="It is {nice}.")),
    (
        PLAIN,
        '{"arguments": {"city": "Köln"}, "name": "get_weather"}',
        Folded(calls=(call(),)),
    ),
    (
        PLAIN,
        '{"name": "add", "arguments": "{\\"a\\": 1}"}',
        Folded(calls=(call('{"a": 1}', "add"),)),
    ),
    (PLAIN, '{"name": "add", "arguments": null}', Folded(calls=(call("{}", "add"),))),
    (PLAIN, '{"name": "add", "arguments": {"a": "cu', Folded(calls=(call('{"a": "cu', "add"),))),
    (PLAIN, '{"name": "ad', Folded(text='{"name": "ad')),
    (PLAIN, '{"name": 5}', Folded(text='{"name": 5}')),
]
each_case = pytest.mark.parametrize(
    ("form", "text", "meant"), CASES, ids=[f"{i}-{form.name}" for i, (form, *_) in enumerate(CASES)]
)


@each_case
def test_calls_and_text_are_told_apart(form: ToolFormat, text: str, meant: Folded) -> None:
    assert read(channels(form), text) == meant


@each_case
def test_a_character_at_a_time_says_the_same(form: ToolFormat, text: str, meant: Folded) -> None:
    assert read(channels(form), *text) == meant


@given(st.sampled_from(CASES), st.lists(st.integers(1, 9), max_size=12))
def test_any_cutting_says_the_same(case: tuple[ToolFormat, str, Folded], sizes: list[int]) -> None:
    form, text, meant = case
    assert read(channels(form), *cut(text, sizes)) == meant


#: What the formats are made of.
BITS = (
    *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "add", "{", "}", "[", "]"),
    *('"name"', '"', ":", ",", " ", "\n", "```", "<function=", "call:", "\\", WEATHER),
    *("<start_function_call>", "<end_function_call>", "<escape>", "<", "</think>"),
)


@given(
    st.sampled_from([*FORMATS, PLAIN]),
    st.lists(
        st.sampled_from(BITS),
        max_size=10,
    ),
    st.lists(st.integers(1, 5), max_size=10),
)
def test_nonsense_is_read_alike_however_it_is_cut(
    form: ToolFormat, parts: list[str], sizes: list[int]
) -> None:
    text = "".join(parts)
    assert read(channels(form), text) == read(channels(form), *cut(text, sizes))


def test_arguments_are_passed_on_while_they_form() -> None:
    made = channels(HERMES)
    assert made.feed('<tool_call>{"name": "add", "arg', 1) == [
        ToolCallDelta(0, "id0", "add", "", is_first=True)
    ]
    assert made.feed('uments": {"a": "lo', 1) == [ToolCallDelta(0, "id0", "add", '{"a": "lo')]
    assert made.feed("ng", 1) == [ToolCallDelta(0, "id0", "add", "ng")]
    last = made.feed('"} }</tool', 1)
    assert last == [
        ToolCallDelta(0, "id0", "add", '"}'),
        ToolCallDelta(0, "id0", "add", "", is_last=True),
    ]
    assert made.feed("_call>", 1) == made.finish() == []
    assert made.n_calls == 1


def test_calls_have_ids_of_their_own() -> None:
    made = Channels(None, tools=HERMES)
    events = made.feed(f"<tool_call>{ADD}</tool_call><tool_call>{ADD}</tool_call>", 1)
    ids = {event.id for event in events if isinstance(event, ToolCallDelta)}
    assert len(ids) == 2
    assert all(len(one) == 24 for one in ids)


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (None, PLAIN),
        ("{{ tools }}", PLAIN),
        ("<tool_call></tool_call>", HERMES),
        ("{{ '[TOOL_CALLS]' }}", MISTRAL),
        ("<|python_tag|>", LLAMA),
        ("<start_function_call>", GEMMA),
        ("'<|tool_call>call:'", GEMMA_4),
    ],
)
def test_the_format_is_the_one_that_the_template_shows(
    template: str | None, form: ToolFormat
) -> None:
    assert format_of(template) is form


# -- tools in the prompt --------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = (Tool("get_weather", "The weather.", SCHEMA), Tool("now"))
TURNS = (
    ChatMessage("user", "Hot?"),
    ChatMessage(
        "assistant", "", "Look it up.", (ToolCall("c1", "get_weather", '{"city": "Köln"}'),)
    ),
    ChatMessage("tool", "30 C", tool_call_id="c1", name="get_weather"),
)
AWARE = "{% if tools %}...{% endif %}"


def test_a_template_that_knows_tools_gets_them_as_it_was_trained() -> None:
    assert knows_tools(AWARE)
    assert not knows_tools("{{ toolset }} {{ messages }}")
    first, second = tools_for(AWARE, TOOLS) or []
    assert first["function"] == {
        "name": "get_weather",
        "description": "The weather.",
        "parameters": SCHEMA,
    }
    assert second["function"]["parameters"] == {"type": "object", "properties": {}}
    assert tools_for(AWARE, ()) is None
    user, assistant, tool = turns_for(AWARE, ChatPrompt(TURNS, tools=TOOLS))
    assert user == {"role": "user", "content": "Hot?"}
    assert assistant["reasoning_content"] == "Look it up."
    assert assistant["tool_calls"][0]["function"]["arguments"] == {"city": "Köln"}
    assert (tool["tool_call_id"], tool["name"]) == ("c1", "get_weather")


def test_other_templates_get_them_described_in_the_systems_turn() -> None:
    assert tools_for("{{ messages }}", TOOLS) is None
    system, _, assistant, tool = turns_for("{{ messages }}", ChatPrompt(TURNS, tools=TOOLS))
    assert system["role"] == "system"
    assert '"name": "get_weather"' in system["content"]
    assert assistant["role"] == "assistant"
    assert json.loads(assistant["content"]) == {
        "name": "get_weather",
        "arguments": {"city": "Köln"},
    }
    assert "tool_calls" not in assistant
    assert tool == {"role": "user", "content": "Result of get_weather:\n30 C"}


def test_a_system_turn_that_is_there_is_extended() -> None:
    prompt = ChatPrompt((ChatMessage("system", "Be kind."), *TURNS), tools=TOOLS)
    turns = turns_for("{{ messages }}", prompt)
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
    assert turns[0]["content"].startswith("Be kind.\n\nYou can call")


def test_without_tools_nothing_is_said_of_them() -> None:
    assert turns_for("{{ messages }}", ChatPrompt(TURNS[:1])) == [
        {"role": "user", "content": "Hot?"}
    ]


def test_arguments_that_are_no_object_stay_as_they_are() -> None:
    odd = ChatMessage("assistant", "", tool_calls=(ToolCall("1", "f", "{broken"),))
    (turn,) = turns_for(AWARE, ChatPrompt((odd,)))
    assert turn["tool_calls"][0]["function"]["arguments"] == "{broken"
