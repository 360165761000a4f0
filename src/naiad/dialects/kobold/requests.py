"""KoboldAI's generation body, with the defaults that KoboldCpp documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from naiad.dialects.base import Parsed
from naiad.dialects.fields import Fields, boolean, integer, text
from naiad.dialects.grammars import read_grammar
from naiad.dialects.kobold.formatter import KoboldFormatter
from naiad.dialects.sampler_order import kobold_order
from naiad.dialects.sampling import (
    ignored,
    read_deterministic,
    read_handle,
    read_max_tokens,
    read_priority,
    read_sampling,
    read_stops,
    wants_progress,
)
from naiad.dialects.thinking import read_thinking_budget
from naiad.types import GenerateRequest, ModelInfo, SamplingParams, TextPrompt

DEFAULTS = SamplingParams(
    temperature=0.7,
    top_k=100,
    top_p=0.9,
    repetition_penalty=1.0,
    penalty_last_n=320,
    dry_last_n=320,
    xtc_threshold=0.2,
    order=kobold_order(),
)
DEFAULT_MAX_LENGTH = 2048

#: The first that is present counts.
MAX_TOKENS = ("max_length", "max_tokens", "max_completion_tokens", "max")
STOPS = ("stop_sequence", "stop")


def parse_whole(body: Mapping[str, Any], model: ModelInfo) -> Parsed:
    """POST /api/v1/generate."""
    return _parse(body, model, stream=False)


def parse_stream(body: Mapping[str, Any], model: ModelInfo) -> Parsed:
    """POST /api/extra/generate/stream."""
    return _parse(body, model, stream=True)


def _parse(body: Mapping[str, Any], model: ModelInfo, *, stream: bool) -> Parsed:
    fields = Fields(body)
    fields.find("stream", "model")  # the path says whether to stream, and there is one model
    prompt = fields.need(text, "prompt")
    request = GenerateRequest(
        prompt=TextPrompt((fields.get(text, "memory") or "") + prompt),
        sampling=read_sampling(fields, model, DEFAULTS),
        max_tokens=read_max_tokens(fields, *MAX_TOKENS) or DEFAULT_MAX_LENGTH,
        stop=read_stops(fields, *STOPS),
        stream=stream,
        handle=read_handle(fields),
        priority=read_priority(fields),
        wants_progress=wants_progress(fields),
        grammar=read_grammar(fields),
        thinking_budget=read_thinking_budget(fields),
        is_deterministic=read_deterministic(fields),
        shift_at_limit=fields.get(boolean, "context_shift") is not False,
    )
    shorter = _shorter_context(fields, model)
    return Parsed(request, KoboldFormatter(), ignored(fields) + shorter)


def _shorter_context(fields: Fields, model: ModelInfo) -> tuple[str, ...]:
    # Clients send the context they cut their prompt to, which asks for nothing more. Only a smaller
    # one than the server's would change something, and prompts are not cut here.
    asked = fields.get(integer(1), "max_context_length")
    return ("max_context_length",) if asked is not None and asked < model.engine.n_ctx else ()
