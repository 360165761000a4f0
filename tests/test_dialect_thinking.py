"""Budgets for reasoning and the wish for the same text, in every dialect's words."""

from __future__ import annotations

from typing import Any

import pytest

from dialect_cases import MODEL
from naiad.dialects.anthropic.requests import parse_messages
from naiad.dialects.base import Parsed
from naiad.dialects.fields import Fields
from naiad.dialects.kobold.requests import parse_whole
from naiad.dialects.llama.requests import parse_completion as parse_llama
from naiad.dialects.ollama.requests import parse_chat as parse_ollama
from naiad.dialects.openai.requests import parse_chat, parse_completion
from naiad.dialects.openai.responses.requests import read_body
from naiad.dialects.thinking import read_thinking_budget
from naiad.errors import InvalidRequest
from naiad.types import ChatPrompt, ThinkingBudget

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}
PARSERS = [
    lambda **body: parse_chat({**CHAT, **body}, MODEL),
    lambda **body: parse_messages({**CHAT, **body}, MODEL),
    lambda **body: parse_ollama({"messages": CHAT["messages"], **body}, MODEL),
    lambda **body: parse_completion({"prompt": "x", **body}, MODEL),
    lambda **body: parse_whole({"prompt": "x", **body}, MODEL),
    lambda **body: parse_llama({"prompt": "x", **body}, MODEL),
    lambda **body: read_body({"input": "x", **body}, MODEL),
]


@pytest.mark.parametrize(
    ("body", "budget"),
    [
        ({"thinking_token_budget": 5}, 5),
        ({"thinking_budget_tokens": "7"}, 7),
        ({"thinking_budget": 0}, 0),
        ({"reasoning_budget": -1}, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, 1024),
        ({"thinking": {"type": "disabled"}}, None),
        ({"reasoning": {"max_tokens": 30}}, 30),
        ({"reasoning": "much"}, None),
        ({}, None),
    ],
)
def test_budgets(body: dict[str, Any], budget: int | None) -> None:
    found = read_thinking_budget(Fields(body))
    assert found == (None if budget is None else ThinkingBudget(budget))


def test_a_message_comes_with_a_budget_only() -> None:
    body = {"thinking_budget": 3, "thinking_budget_message": "Enough."}
    assert read_thinking_budget(Fields(body)) == ThinkingBudget(3, "Enough.")
    assert read_thinking_budget(Fields({"thinking_budget_message": "Enough."})) is None


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"thinking_budget": "much"}, "thinking_budget"),
        ({"thinking_budget": -2}, "thinking_budget"),
        ({"thinking": {"budget_tokens": 1.5}}, "thinking.budget_tokens"),
    ],
)
def test_what_is_no_budget_is_refused_by_its_name(body: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"'{name}' must be an integer"):
        read_thinking_budget(Fields(body))


@pytest.mark.parametrize("parse", PARSERS)
def test_every_dialect_reads_budgets_and_the_wish_for_the_same_text(parse: Any) -> None:
    found: Parsed = parse(thinking_budget=4, deterministic=True)
    assert found.request.thinking_budget == ThinkingBudget(4)
    assert found.request.is_deterministic
    assert found.request.sampling.seed == 0
    assert found.ignored == ()
    seeded: Parsed = parse(deterministic=True, seed=-1)
    assert seeded.request.sampling.seed == 0
    other: Parsed = parse(deterministic=False)
    assert not other.request.is_deterministic
    assert other.request.sampling.seed != parse().request.sampling.seed


@pytest.mark.parametrize(
    ("body", "thinking", "is_wished"),
    [
        ({"enable_thinking": False}, False, False),
        ({"thinking": {"type": "disabled"}}, False, False),
        ({"enable_thinking": True}, None, True),
        ({"thinking": {"type": "enabled", "budget_tokens": 4}}, None, True),
        ({}, None, False),
    ],
)
def test_chats_can_do_without_thinking(
    body: dict[str, Any], thinking: bool | None, is_wished: bool
) -> None:
    found = parse_chat({**CHAT, **body}, MODEL)
    assert isinstance(found.request.prompt, ChatPrompt)
    assert found.request.prompt.thinking is thinking
    assert ("enable_thinking" in dict(found.request.prompt.template_kwargs)) is is_wished
    assert found.ignored == ()
