"""Anthropic's generation body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from naiad.dialects.anthropic.formatter import MessageFormatter
from naiad.dialects.anthropic.messages import read_conversation
from naiad.dialects.base import Parsed
from naiad.dialects.fields import (
    MAX_INT,
    Fields,
    bad,
    boolean,
    integer,
    listed,
    mapping,
    short_text,
    text,
)
from naiad.dialects.grammars import json_form, only_one, read_grammar
from naiad.dialects.openai.requests import DEFAULTS
from naiad.dialects.sampling import (
    ignored,
    read_deterministic,
    read_handle,
    read_object,
    read_priority,
    read_sampling,
    read_stops,
)
from naiad.dialects.thinking import read_thinking_budget
from naiad.types import GenerateRequest, Grammar, ModelInfo

MAX_MODEL_CHARS = 512

#: Fields that agents send to every server, and that concern only Anthropic's own.
_FOREIGN = (
    *("metadata", "service_tier", "betas", "anthropic_beta", "context_management", "container"),
    *("cache_control", "inference_geo", "speed", "mcp_servers", "anthropic_version"),
)


def parse_messages(body: Mapping[str, Any], model: ModelInfo) -> Parsed:
    """POST /v1/messages."""
    fields = Fields(body)
    prompt, foreign_tools = read_conversation(fields)
    stops = read_stops(fields, "stop_sequences")
    limit = fields.need(integer(1), "max_tokens")
    fields.find(*_FOREIGN)
    request = GenerateRequest(
        prompt=prompt,
        sampling=read_sampling(fields, model, DEFAULTS),
        max_tokens=min(limit, MAX_INT),
        stop=stops,
        grammar=only_one(_read_format(fields), read_grammar(fields)),
        thinking_budget=read_thinking_budget(fields),
        is_deterministic=read_deterministic(fields),
        stream=fields.get(boolean, "stream") or False,
        model=fields.get(short_text(MAX_MODEL_CHARS), "model") or None,
        handle=read_handle(fields),
        priority=read_priority(fields),
    )
    thinks = prompt.thinking is not False and bool(fields.get(mapping, "thinking"))
    formatter = MessageFormatter.new(request.model or model.name, thinks=thinks)
    return Parsed(request, formatter, ignored(fields) + listed(foreign_tools))


def _read_format(fields: Fields) -> Grammar | None:
    """`output_config.format`, or `output_format` as it was called before."""
    config = read_object(fields, "output_config")
    wanted = config.get(mapping, "format") or fields.get(mapping, "output_format")
    if not wanted:
        return None
    inner = Fields(wanted, "output_config.format.")
    kind = inner.need(text, "type")
    if kind != "json_schema":
        raise bad("output_config.format.type", "json_schema", kind)
    return inner.need(json_form, "schema")
