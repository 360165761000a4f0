"""llama-server's two generation bodies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from naiad.dialects.base import Parsed
from naiad.dialects.fields import (
    MAX_INT,
    Fields,
    array,
    boolean,
    integer,
    mapping,
    short_text,
    text,
)
from naiad.dialects.grammars import read_grammar
from naiad.dialects.llama.formatter import LlamaFormatter, Probs
from naiad.dialects.llama.settings import settings_of
from naiad.dialects.logprobs import with_counted_logprobs
from naiad.dialects.openai.requests import DEFAULTS, MAX_MODEL_CHARS
from naiad.dialects.prompts import read_prompt
from naiad.dialects.sampling import (
    ignored,
    keeps_stop,
    read_deterministic,
    read_handle,
    read_priority,
    read_sampling,
    read_stops,
    shows_controls,
    wants_progress,
)
from naiad.dialects.thinking import read_thinking_budget
from naiad.errors import InvalidRequest, Unsupported
from naiad.types import GenerateRequest, ModelInfo, Prompt, SamplingParams, TextPrompt

MAX_FIELDS = 64
MAX_FIELD_CHARS = 128

_LENGTHS = ("n_predict", "max_tokens", "max_completion_tokens")


def parse_completion(body: Mapping[str, Any], model: ModelInfo) -> Parsed:
    """POST /completion."""
    fields = Fields(body)
    return _finish(fields, model, _prompt(fields, model))


def parse_infill(body: Mapping[str, Any], model: ModelInfo) -> Parsed:
    """POST /infill: what stands between two texts, for models that were trained for it."""
    fields = Fields(body)
    if model.infill is None:
        raise Unsupported(f"{model.name!a} cannot fill in text: it has no tokens for that.")
    before, behind, middle = model.infill
    prefix, suffix = fields.get(text, "input_prefix"), fields.get(text, "input_suffix")
    if prefix is None and suffix is None:
        raise InvalidRequest("'input_prefix' or 'input_suffix' is needed.", param="input_prefix")
    said = fields.get(text, "prompt") or ""
    parts = (_extra(fields), before, prefix or "", behind, suffix or "", middle, said)
    return _finish(fields, model, TextPrompt("".join(parts)))


def _prompt(fields: Fields, model: ModelInfo) -> Prompt:
    name, value = fields.find("prompt")
    if not isinstance(value, dict):
        return read_prompt(fields, model)
    inner = Fields(value, f"{name}.")
    if inner.get(array, "multimodal_data"):
        raise Unsupported(f"'{name}.multimodal_data' is not supported; text only.", param=name)
    return TextPrompt(inner.need(text, "prompt_string"))


def _extra(fields: Fields) -> str:
    """Other files, in front of everything."""
    name, _ = fields.find("input_extra")
    files = [
        Fields(mapping(f"{name}[{place}]", one), f"{name}[{place}].")
        for place, one in enumerate(fields.get(array, "input_extra") or [])
    ]
    return "".join(f"{one.need(text, 'text')}\n" for one in files)


def _finish(fields: Fields, model: ModelInfo, prompt: Prompt) -> Parsed:
    if fields.get(array, "image_data"):  # what older clients send pictures in
        raise Unsupported(
            "'image_data' is not supported; this model reads text only.", param="image_data"
        )
    name, _ = fields.find("n_cmpl", "n")
    if (fields.get(integer(0), "n_cmpl", "n") or 1) > 1:
        raise Unsupported(
            f"'{name}' is not supported here: one answer per request. /v1/completions gives "
            "several, with 'n'.",
            param=name,
        )
    length = fields.get(integer(-2, MAX_INT), *_LENGTHS)
    limit = None if length is None or length < 0 else length
    request = GenerateRequest(
        prompt=prompt,
        sampling=_with_probs(read_sampling(fields, model, DEFAULTS), fields),
        max_tokens=None if limit is None else max(1, limit),  # 0: the prompt is computed and kept
        stop=read_stops(fields, "stop"),
        stream=fields.get(boolean, "stream") or False,
        model=fields.get(short_text(MAX_MODEL_CHARS), "model") or None,
        handle=read_handle(fields),
        priority=read_priority(fields),
        wants_progress=wants_progress(fields),
        grammar=read_grammar(fields),
        thinking_budget=read_thinking_budget(fields),
        is_deterministic=read_deterministic(fields),
        shift_at_limit=fields.get(boolean, "context_shift") or False,
        keeps_stop=keeps_stop(fields),
        shows_controls=shows_controls(fields),
    )
    formatter = LlamaFormatter(
        model.name,
        prompt=prompt.text if isinstance(prompt, TextPrompt) else "",
        settings=_settings(request, limit),
        n_ctx=model.engine.n_ctx,
        is_silent=limit == 0,
        probs=_probs_of(request.sampling),
        only=_only(fields),
    )
    return Parsed(request, formatter, ignored(fields))


def _with_probs(sampling: SamplingParams, fields: Fields) -> SamplingParams:
    return with_counted_logprobs(sampling, fields, "n_probs", "logprobs")


def _probs_of(sampling: SamplingParams) -> Probs:
    if sampling.n_logprobs < 0:
        return Probs.NONE
    return Probs.AFTER if sampling.logprobs_after else Probs.BEFORE


def _settings(request: GenerateRequest, limit: int | None) -> dict[str, Any]:
    return settings_of(
        request.sampling,
        n_predict=limit,
        stop=request.stop,
        stream=request.stream,
        grammar=request.grammar.text if request.grammar else "",
    )


def _only(fields: Fields) -> tuple[str, ...]:
    """`response_fields`: the only ones that the client wants to see."""
    name, _ = fields.find("response_fields")
    wanted = fields.get(array, "response_fields") or []
    if len(wanted) > MAX_FIELDS:
        raise InvalidRequest(
            f"'{name}' may name at most {MAX_FIELDS} fields, not {len(wanted)}.", param=name
        )
    read = short_text(MAX_FIELD_CHARS)
    return tuple(read(f"{name}[{place}]", one) for place, one in enumerate(wanted))
