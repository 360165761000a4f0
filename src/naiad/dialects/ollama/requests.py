"""Ollama's two generation bodies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from naiad.dialects.base import Immediate, ModelWish, Parsed
from naiad.dialects.fields import (
    MAX_INT,
    Fields,
    array,
    bad,
    boolean,
    integer,
    listed,
    short_text,
    text,
    token_ids,
)
from naiad.dialects.grammars import json_form, only_one, read_grammar
from naiad.dialects.logprobs import with_switched_logprobs
from naiad.dialects.ollama.durations import duration
from naiad.dialects.ollama.formatter import (
    ChatFormatter,
    GenerateFormatter,
    OllamaFormatter,
    rfc3339,
)
from naiad.dialects.prompts import read_messages
from naiad.dialects.sampling import (
    ignored,
    read_deterministic,
    read_handle,
    read_object,
    read_priority,
    read_sampling,
    read_stops,
    wants_progress,
)
from naiad.dialects.thinking import read_thinking_budget
from naiad.dialects.tools import read_tools
from naiad.errors import InvalidRequest, Unsupported
from naiad.types import (
    ChatMessage,
    ChatPrompt,
    GenerateRequest,
    ModelInfo,
    Prompt,
    SamplingParams,
    TextPrompt,
)

MAX_MODEL_CHARS = 512
_EFFORTS = ("low", "medium", "high", "max")

#: What applies where a request is silent: Ollama's own.
DEFAULTS = SamplingParams(
    temperature=0.8, top_k=40, top_p=0.9, repetition_penalty=1.1, penalty_last_n=64
)

#: Options about the machine and the memory, which are the server's own affair.
_MACHINE = (
    *("num_ctx", "num_keep", "num_batch", "num_gpu", "main_gpu", "num_thread", "numa"),
    *("low_vram", "vocab_only", "use_mmap", "use_mlock", "f16_kv", "logits_all"),
    "penalize_newline",
)

#: Fields without which an answer would mean something else, and what to do instead.
_UNSUPPORTED = {
    "suffix": "this version inserts no text before a suffix",
    "images": "this model reads text only",
    "template": "templates in Go's language are not run; send a finished prompt with 'raw': true",
}


def parse_generate(body: Mapping[str, Any], model: ModelInfo) -> Parsed | Immediate:
    """POST /api/generate. Without a prompt it asks that the model be loaded, or unloaded."""
    fields = Fields(body)
    _refuse_unsupported(fields)
    prompt = fields.get(text, "prompt") or ""
    name = _name(fields, model)
    if not prompt:
        return _wish(fields, name, {"response": ""})
    system = fields.get(text, "system") or ""
    if fields.get(boolean, "raw"):
        _refuse_beside_raw(fields, system)
        return _finish(fields, model, TextPrompt(prompt), GenerateFormatter(name))
    turns = [ChatMessage("system", system)] if system else []
    chat = _chat(fields, (*turns, ChatMessage("user", prompt)))
    parsed = _finish(fields, model, chat, GenerateFormatter(name))
    context = tuple(fields.get(token_ids(model.n_vocab), "context") or ())
    return replace(parsed, request=replace(parsed.request, wants_context=True, context=context))


def parse_chat(body: Mapping[str, Any], model: ModelInfo) -> Parsed | Immediate:
    """POST /api/chat. Without messages it asks that the model be loaded, or unloaded."""
    fields = Fields(body)
    _refuse_unsupported(fields)
    name = _name(fields, model)
    if not fields.get(array, "messages"):
        return _wish(fields, name, {"message": {"role": "assistant", "content": ""}})
    messages, unread = read_messages(fields)
    return _finish(fields, model, _chat(fields, messages), ChatFormatter(name), unread)


def _finish(
    fields: Fields,
    model: ModelInfo,
    prompt: Prompt,
    formatter: OllamaFormatter,
    without_effect: tuple[str, ...] = (),
) -> Parsed:
    options = read_object(fields, "options")
    is_streamed = fields.get(boolean, "stream") is not False
    limit = options.get(integer(-MAX_INT, MAX_INT), "num_predict") or 0
    options.find(*_MACHINE)
    is_deterministic = read_deterministic(options) | read_deterministic(fields)
    sampling = read_sampling(options, model, DEFAULTS, is_deterministic=is_deterministic)
    fields.find("truncate")  # what does not fit is refused, with both numbers
    request = GenerateRequest(
        prompt=prompt,
        sampling=with_switched_logprobs(sampling, fields),
        max_tokens=limit if limit > 0 else None,  # below: no limit
        stop=read_stops(options, "stop"),
        grammar=only_one(
            fields.get(json_form, "format"), read_grammar(fields), read_grammar(options)
        ),
        thinking_budget=read_thinking_budget(options) or read_thinking_budget(fields),
        is_deterministic=is_deterministic,
        stream=is_streamed,
        model=_plain_name(fields),
        handle=read_handle(fields),
        priority=read_priority(fields),
        wants_progress=wants_progress(fields) and is_streamed,
        shift_at_limit=fields.get(boolean, "shift") or False,
        keep_alive_s=fields.get(duration, "keep_alive"),
    )
    inner = tuple(f"options.{name}" for name in ignored(options))
    return Parsed(request, formatter, ignored(fields) + inner + listed(without_effect))


def _plain_name(fields: Fields) -> str | None:
    """The model's name without the tag that Ollama's clients put behind every name."""
    name = fields.get(short_text(MAX_MODEL_CHARS), "model", "name") or ""
    return plain_name(name) or None


def plain_name(name: str) -> str:
    """A name without ":latest"."""
    return name.removesuffix(":latest")


def _chat(fields: Fields, messages: tuple[ChatMessage, ...]) -> ChatPrompt:
    wish, effort = _read_think(fields)
    last = messages[-1]
    return ChatPrompt(
        messages,
        # Ollama's templates leave the turn of an assistant open that stands last.
        continue_final=last.role == "assistant" and bool(last.content) and not last.tool_calls,
        template_kwargs=(("reasoning_effort", effort),) if effort else (),
        tools=read_tools(fields),
        thinking=wish,
        is_split=True,
    )


def _read_think(fields: Fields) -> tuple[bool | None, str | None]:
    """`think`: whether to, and how hard."""
    _, value = fields.find("think")
    if isinstance(value, str) and value in _EFFORTS:
        return True, value
    try:
        return fields.get(boolean, "think"), None
    except InvalidRequest:
        raise bad("think", f"true, false or one of {', '.join(_EFFORTS)}", value) from None


def _refuse_unsupported(fields: Fields) -> None:
    for name, reason in _UNSUPPORTED.items():
        _, value = fields.find(name)
        if value:
            raise Unsupported(f"'{name}' is not supported: {reason}.", param=name)


def _refuse_beside_raw(fields: Fields, system: str) -> None:
    _, context = fields.find("context")
    if system or context:
        name = "system" if system else "context"
        raise InvalidRequest(
            f"'{name}' has no place in a raw prompt: 'raw' sends the prompt as it is.", param=name
        )


def _name(fields: Fields, model: ModelInfo) -> str:
    """The name that the answer repeats."""
    return fields.get(short_text(MAX_MODEL_CHARS), "model", "name") or model.name


def _wish(fields: Fields, name: str, part: dict[str, Any]) -> Immediate:
    keep_alive_s = fields.get(duration, "keep_alive")
    reason = "unload" if keep_alive_s == 0 else "load"
    head = {"model": name, "created_at": rfc3339(datetime.now(UTC))}
    return Immediate(
        {**head, **part, "done": True, "done_reason": reason},
        ModelWish(_plain_name(fields), keep_alive_s),
    )
