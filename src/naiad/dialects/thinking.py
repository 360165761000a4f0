"""How long a model may reason, as several servers spell it.

vLLM's `thinking_token_budget`, llama-server's and KoboldCpp's `thinking_budget_tokens`, Qwen's
`thinking_budget`; Anthropic's `thinking.budget_tokens` and OpenRouter's `reasoning.max_tokens`
inside their objects. -1 is no limit.
"""

from __future__ import annotations

from typing import Any

from naiad.dialects.fields import MAX_INT, Fields, boolean, integer, short_text
from naiad.types import ThinkingBudget

MAX_MESSAGE_CHARS = 4096

_NAMES = (
    "thinking_token_budget",
    "thinking_budget_tokens",
    "thinking_budget",
    "reasoning_budget_tokens",
    "reasoning_budget",
)
_MESSAGES = ("thinking_budget_message", "reasoning_budget_message")
#: object -> the field in it
_INSIDE = (("thinking", "budget_tokens"), ("reasoning", "max_tokens"))

_TYPES = {"enabled": True, "disabled": False}

_LIMIT = integer(-1, MAX_INT)


def read_thinking_budget(fields: Fields) -> ThinkingBudget | None:
    """The first budget that is present. The objects' other fields are not read here."""
    n_tokens = fields.get(_LIMIT, *_NAMES)
    for name, inner in _INSIDE:
        value = fields.peek(name)
        if n_tokens is None and isinstance(value, dict):
            n_tokens = Fields(value, f"{name}.").get(_LIMIT, inner)
            _note(fields, name, value, inner)
    message = fields.get(short_text(MAX_MESSAGE_CHARS), *_MESSAGES) or ""
    return None if n_tokens is None or n_tokens < 0 else ThinkingBudget(n_tokens, message)


def _note(fields: Fields, name: str, value: dict[str, Any], inner: str) -> None:
    """An object whose other fields say nothing beside the budget counts as read."""
    if inner in value and value.keys() <= {inner, "type", "enabled"}:
        fields.find(name)


def read_thinking_wish(fields: Fields) -> bool | None:
    """Whether to think at all: Qwen's `enable_thinking`, or the type of a `thinking` object."""
    wish = fields.get(boolean, "enable_thinking")
    value = fields.peek("thinking")
    if wish is None and isinstance(value, dict) and value.get("type") in _TYPES:
        fields.find("thinking")
        return _TYPES[value["type"]]
    return wish
