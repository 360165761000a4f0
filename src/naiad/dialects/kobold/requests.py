"""KoboldAI's generation body, with the defaults that KoboldCpp documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from naiad.dialects.base import Parsed
from naiad.dialects.fields import MAX_INT, Fields, array, boolean, integer, text
from naiad.dialects.grammars import read_grammar
from naiad.dialects.kobold.formatter import BasicFormatter, KoboldFormatter
from naiad.dialects.kobold.logprobs import TRUE_MEANS
from naiad.dialects.kobold.placeholders import conversation, has_placeholders
from naiad.dialects.logprobs import with_counted_logprobs
from naiad.dialects.sampler_order import kobold_order
from naiad.dialects.sampling import (
    ignored,
    keeps_stop,
    read_deterministic,
    read_handle,
    read_max_tokens,
    read_priority,
    read_sampling,
    read_stops,
    shows_controls,
    wants_progress,
)
from naiad.dialects.thinking import read_thinking_budget
from naiad.errors import Unsupported
from naiad.types import GenerateRequest, ModelInfo, SamplingParams, TextPrompt, Trim

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
MAX_TOKENS = ("max_length", "max_tokens", "max_completion_tokens", "num_predict", "max")
STOPS = ("stop_sequence", "stop")


def parse_whole(body: Mapping[str, Any], model: ModelInfo) -> Parsed:
    """POST /api/v1/generate."""
    return _parse(Fields(body), model, stream=False)


def parse_stream(body: Mapping[str, Any], model: ModelInfo) -> Parsed:
    """POST /api/extra/generate/stream."""
    return _parse(Fields(body), model, stream=True)


def parse_basic(body: Mapping[str, Any], model: ModelInfo) -> Parsed:
    """POST /request, of clients that know KoboldAI's first API only."""
    fields = Fields(body)
    parsed = _parse(fields, model, stream=False, prompt_names=("text", "prompt"))
    return replace(parsed, formatter=BasicFormatter())


def _parse(
    fields: Fields,
    model: ModelInfo,
    *,
    stream: bool,
    prompt_names: tuple[str, ...] = ("prompt",),
) -> Parsed:
    fields.find("stream", "model")  # the path says whether to stream, and there is one model
    _refuse_media(fields)
    prompt = fields.need(text, *prompt_names)
    memory = fields.get(text, "memory") or ""
    stops = read_stops(fields, *STOPS)
    has_tags = fields.get(boolean, "replace_instruct_placeholders") is not False
    is_chat = has_tags and has_placeholders(memory + prompt)
    sampling = read_sampling(fields, model, DEFAULTS)
    request = GenerateRequest(
        prompt=conversation(memory + prompt) if is_chat else TextPrompt(memory + prompt),
        sampling=with_counted_logprobs(sampling, fields, "logprobs", if_true=TRUE_MEANS),
        max_tokens=read_max_tokens(fields, *MAX_TOKENS) or DEFAULT_MAX_LENGTH,
        stop=tuple(stop for stop in stops if not (has_tags and has_placeholders(stop))),
        stream=stream,
        handle=read_handle(fields),
        priority=read_priority(fields),
        wants_progress=wants_progress(fields),
        grammar=read_grammar(fields),
        thinking_budget=read_thinking_budget(fields),
        is_deterministic=read_deterministic(fields),
        shift_at_limit=fields.get(boolean, "context_shift") is not False,
        keeps_stop=keeps_stop(fields),
        shows_controls=shows_controls(fields),
        recalls_logprobs=True,
        trim=Trim(fields.get(integer(1, MAX_INT), "max_context_length"), len(memory)),
    )
    return Parsed(request, KoboldFormatter(), ignored(fields))


def _refuse_media(fields: Fields) -> None:
    for kind in ("images", "audio"):
        if fields.get(array, kind):
            raise Unsupported(f"'{kind}' is not supported; this model reads text only.", param=kind)
