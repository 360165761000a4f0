"""Anthropic's Messages API, as its own packages and coding agents use it."""

from __future__ import annotations

from typing import Any

from naiad.dialects.anthropic.errors import error_body, error_status
from naiad.dialects.anthropic.messages import read_conversation
from naiad.dialects.anthropic.requests import parse_messages
from naiad.dialects.base import Access, Backend, Call, Dialect, Operation
from naiad.dialects.fields import Fields
from naiad.types import GenerateRequest


async def count_tokens(backend: Backend, call: Call) -> Any:
    """POST /v1/messages/count_tokens: those of the prompt that the template makes."""
    prompt, _ = read_conversation(Fields(call.body))
    text = await backend.render_chat(GenerateRequest(prompt))
    return {"input_tokens": len(await backend.tokenize(text))}


DIALECT = Dialect(
    name="anthropic",
    operations=(
        Operation("POST", "/v1/messages", Access.USER, parse=parse_messages),
        Operation("POST", "/v1/messages/count_tokens", Access.USER, handle=count_tokens),
    ),
    error_body=error_body,
    error_status=error_status,
    prefixes=("/v1/messages",),
    id_header="request-id",
)
