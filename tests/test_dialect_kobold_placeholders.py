"""Instruct tags that a client leaves to the server, and other habits of KoboldAI's bodies."""

from __future__ import annotations

from typing import Any

import pytest

from dialect_cases import MODEL, USAGE, events, stream, whole
from naiad.dialects.kobold.formatter import BasicFormatter, KoboldFormatter
from naiad.dialects.kobold.placeholders import conversation, has_placeholders
from naiad.dialects.kobold.requests import parse_basic, parse_whole
from naiad.dialects.openai.requests import parse_completion
from naiad.errors import InvalidRequest, Unsupported
from naiad.types import (
    ChatMessage,
    ChatPrompt,
    Finished,
    FinishReason,
    GenerateRequest,
    TextPrompt,
    Trim,
    Usage,
)


def parse(**body: Any) -> GenerateRequest:
    return parse_whole({"prompt": "Once", **body}, MODEL).request


@pytest.mark.parametrize(
    ("text", "turns", "continues"),
    [
        ("{{[INPUT]}}Hi{{[OUTPUT]}}", ["user:Hi"], False),
        ("{{[INPUT]}}\nHi\n{{[OUTPUT]}}\n", ["user:Hi"], False),
        ("{{[INPUT]}}Hi{{[OUTPUT]}} So, ", ["user:Hi", "assistant:So, "], True),
        ("Be nice.\n{{[INPUT]}}Hi", ["system:Be nice.", "user:Hi"], False),
        (
            "{{[SYSTEM]}}A{{[SYSTEM_END]}}{{[INPUT]}}B{{[INPUT_END]}}{{[OUTPUT]}}C{{[OUTPUT_END]}}"
            "{{[INPUT]}}D{{[INPUT_END]}}{{[OUTPUT]}}",
            ["system:A", "user:B", "assistant:C", "user:D"],
            False,
        ),
        ("{{[OUTPUT]}}C{{[OUTPUT_END]}}", ["assistant:C"], False),
        ("{{[INPUT]}}A{{[INPUT]}}B", ["user:A\nB"], False),
        ("{{[INPUT]}}A{{[INPUT_END]}} and B{{[OUTPUT]}}", ["user:A\nand B"], False),
        ("{{[OUTPUT]}}", ["user:"], False),
        ("{{[INPUT]}}你好😀{{[OUTPUT]}}", ["user:你好😀"], False),
    ],
)
def test_conversations(text: str, turns: list[str], continues: bool) -> None:
    pairs = (turn.split(":", 1) for turn in turns)
    messages = tuple(ChatMessage(role, content) for role, content in pairs)
    assert conversation(text) == ChatPrompt(messages, continue_final=continues)


def test_only_known_placeholders_count() -> None:
    assert has_placeholders("a{{[INPUT_END]}}b")
    for text in ("", "{{INPUT}}", "{{[USER]}}", "{[INPUT]}", "{{[input]}}"):
        assert not has_placeholders(text)


def test_a_prompt_with_placeholders_is_a_chat_and_memory_its_system_text() -> None:
    request = parse(
        prompt="{{[INPUT]}}Hi{{[OUTPUT]}}",
        memory="Be nice.",
        stop_sequence=["{{[INPUT]}}", "\nYou:"],
    )
    turns = (ChatMessage("system", "Be nice."), ChatMessage("user", "Hi"))
    assert request.prompt == ChatPrompt(turns)
    assert request.stop == ("\nYou:",)  # the model ends its own turn


def test_placeholders_can_be_left_alone() -> None:
    request = parse(
        prompt="{{[INPUT]}}", stop_sequence=["{{[INPUT]}}"], replace_instruct_placeholders=False
    )
    assert (request.prompt, request.stop) == (TextPrompt("{{[INPUT]}}"), ("{{[INPUT]}}",))


def test_a_prompt_that_is_too_long_is_cut_behind_the_memory() -> None:
    assert parse(memory="Long ago. ", max_context_length=2048).trim == Trim(2048, 10)
    assert parse().trim == Trim(None, 0)


def test_what_was_cut_is_told() -> None:
    finished = Finished(FinishReason.STOP, Usage(7, 3, dropped_tokens=5))
    [*_, last] = events(stream(KoboldFormatter(), ["a"], finished))
    assert last == {"token": "", "finish_reason": "stop", "dropped_tokens": 5}
    [result] = whole(KoboldFormatter(), ["a"], finished)["results"]
    assert result["dropped_tokens"] == 5


@pytest.mark.parametrize("body", [{"trim_stop": False}, {"include_stop_str_in_output": True}])
@pytest.mark.parametrize("read", [parse_whole, parse_completion])
def test_the_stop_string_may_be_kept(read: Any, body: dict[str, Any]) -> None:
    parsed = read({"prompt": "x", **body}, MODEL)
    assert (parsed.request.keeps_stop, parsed.ignored) == (True, ())
    assert not read({"prompt": "x", "trim_stop": True}, MODEL).request.keeps_stop


@pytest.mark.parametrize("body", [{"render_special": True}, {"skip_special_tokens": False}])
@pytest.mark.parametrize("read", [parse_whole, parse_completion])
def test_control_tokens_may_be_shown(read: Any, body: dict[str, Any]) -> None:
    parsed = read({"prompt": "x", **body}, MODEL)
    assert (parsed.request.shows_controls, parsed.ignored) == (True, ())
    assert not read({"prompt": "x", "skip_special_tokens": True}, MODEL).request.shows_controls


@pytest.mark.parametrize("name", ["max_length", "max_tokens", "num_predict", "max"])
def test_names_for_the_length(name: str) -> None:
    assert parse(**{name: 9}).max_tokens == 9


@pytest.mark.parametrize("kind", ["images", "audio"])
def test_what_the_model_cannot_take_in_is_refused(kind: str) -> None:
    assert parse(**{kind: []}).prompt == TextPrompt("Once")
    with pytest.raises(Unsupported, match=f"'{kind}' is not supported"):
        parse(**{kind: ["AAAA"]})


def test_the_first_api() -> None:
    parsed = parse_basic({"text": "Once", "max": 5, "top_k": 3}, MODEL)
    assert parsed.request.prompt == TextPrompt("Once")
    assert (parsed.request.max_tokens, parsed.request.sampling.top_k) == (5, 3)
    finished = Finished(FinishReason.STOP, USAGE)
    assert whole(BasicFormatter(), ["He", "y"], finished) == {"data": {"seqs": ["Hey"]}}
    with pytest.raises(InvalidRequest, match="'text' is missing"):
        parse_basic({}, MODEL)
