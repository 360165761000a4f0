"""Answers in gpt-oss' form: channels told apart, whatever the pieces, and no mark leaks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel_cases import Folded, FoldedCall, cut, read
from naiad.chat.channels import Channels, can_reason, channels_for, marks_of, reasoning_of, tags_of
from naiad.chat.harmony import ANSWER, MARKS, is_harmony
from naiad.chat.tool_formats import PLAIN
from naiad.types import ChatMessage, ChatPrompt, Tool

TEMPLATE = "<|start|>{{ m }}<|channel|>final<|message|><|end|><think>"
HI = (ChatMessage("user", "Hi"),)
TOOL = Tool("get_weather")
ANALYSIS = "<|channel|>analysis<|message|>Why < not?<|end|><|start|>assistant"
CALL = (
    '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Köln 😀"}'
)
SO = "So <|it|> is.\n"
FINAL = f"<|channel|>final<|message|>{SO}"
CALLED = (FoldedCall("get_weather", '{"city": "Köln 😀"}'),)


def channels(**changes: object) -> Channels:
    prompt = ChatPrompt(**{"messages": HI, "is_split": True, "tools": (TOOL,), **changes})  # type: ignore[arg-type]
    made = channels_for(prompt, TEMPLATE, "<|start|>assistant", MARKS)
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (ANALYSIS + FINAL, Folded("Why < not?", SO)),
        (FINAL, Folded("", SO)),
        (ANALYSIS + CALL, Folded("Why < not?", "", CALLED)),
        (
            "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
            + CALL.replace("functions.get_weather <|constrain|>json", "get_weather"),
            Folded("", "I look.", CALLED),
        ),
        (
            " to=functions.get_weather<|channel|>commentary json<|message|>{}",
            Folded("", "", (FoldedCall("get_weather", "{}"),)),
        ),
        ("plain text", Folded("", "plain text")),
        ("plain<|end|><|start|>assistant" + FINAL, Folded("", f"plain{SO}")),
        ("", Folded()),
        ("<|channel|>analysis<|message|>cut o", Folded("cut o")),
        ("<|channel|>anal", Folded()),
        (ANALYSIS + ANALYSIS + FINAL, Folded("Why < not?" * 2, SO)),
        (FINAL + "<|end|>" + "<|start|>assistant" + FINAL, Folded("", f"{SO[:-1]}{SO}")),
        ("<|channel|>final<|message|>a<|constrain|>b", Folded("", "ab")),
    ],
)
def test_channels_are_told_apart(text: str, want: Folded) -> None:
    assert read(channels(), text) == want


@given(st.lists(st.integers(1, 9), max_size=30))
def test_pieces_do_not_matter(sizes: list[int]) -> None:
    text = ANALYSIS + CALL + "<|end|><|start|>assistant" + FINAL
    assert read(channels(), *cut(text, sizes)) == read(channels(), text)


def test_without_tools_a_call_is_text() -> None:
    assert read(channels(tools=()), CALL).text == '{"city": "Köln 😀"}'


def test_an_answer_that_goes_on_is_inside_its_message() -> None:
    prompt = (*HI, ChatMessage("assistant", "So"))
    assert read(channels(messages=prompt, continue_final=True), " it is.<|end|>").text == " it is."


def test_a_forced_call_is_json_in_the_final_message() -> None:
    text = ANALYSIS + ANSWER + '{"name": "get_weather", "arguments": {"a": 1}}'
    want = Folded("Why < not?", "", (FoldedCall("get_weather", '{"a": 1}'),))
    assert read(channels(forced=("get_weather",)), text) == want


def test_one_call_is_enough_when_that_is_asked_for() -> None:
    made = channels(has_one_call=True)
    made.feed(CALL, 1)
    assert made.is_over


def test_reasoning_that_is_not_split_off_stays_as_it_is() -> None:
    raw = ChatPrompt(HI)
    assert channels_for(raw, TEMPLATE, "", MARKS) is None
    assert read(channels(is_split=False), ANALYSIS + FINAL).text == f"Why < not?{SO}"


def test_what_such_a_template_means() -> None:
    assert is_harmony(TEMPLATE)
    assert not is_harmony("<|channel|>")
    assert not is_harmony(None)
    assert tags_of(TEMPLATE) is None
    assert can_reason(TEMPLATE)
    assert not can_reason("{{ m }}")
    assert marks_of(ChatPrompt(HI), TEMPLATE) == MARKS
    tags, is_inside = reasoning_of(ChatPrompt(HI), TEMPLATE, "")
    assert (tags and (tags.opening, tags.closing), is_inside) == (("<|channel|>", ANSWER), False)
    begun = ChatPrompt((*HI, ChatMessage("assistant", "So")), continue_final=True)
    assert reasoning_of(begun, TEMPLATE, "") == (None, False)
    assert PLAIN.marks == ()
