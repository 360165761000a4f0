"""The body of POST /v1/responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from naiad.dialects.fields import (
    Fields,
    array,
    bad,
    boolean,
    integer,
    listed,
    mapping,
    short_text,
    text,
)
from naiad.dialects.grammars import only_one, read_grammar
from naiad.dialects.logprobs import MAX_TOP, asking
from naiad.dialects.openai.customs import read_custom, shown_format
from naiad.dialects.openai.requests import (
    MAX_EFFORT_CHARS,
    RESERVED_KWARGS,
    read_request,
)
from naiad.dialects.openai.responses.items import (
    Item,
    check_length,
    read_input,
    to_messages,
    without_effect,
)
from naiad.dialects.prompts import read_template_kwargs
from naiad.dialects.sampling import ignored
from naiad.dialects.tools import (
    MAX_NAME_CHARS,
    MAX_TOOLS,
    allowed_tools,
    forced_names,
    make_tool,
    sound,
)
from naiad.errors import InvalidRequest, Unsupported
from naiad.types import ChatPrompt, GenerateRequest, Grammar, ModelInfo, SamplingParams, Tool

MAX_ID_CHARS = 128
MAX_METADATA = 16

#: Fields that are about OpenAI's own service, or only of use together with what is read.
_QUIET = (
    "user", "service_tier", "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
    "stream_options", "include",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    """A body that was understood.

    shown: what the response object repeats of it. items: of this body's own input. is_stored: the
    response is kept. is_apart: it is computed whether or not anybody waits for it.
    """

    request: GenerateRequest
    shown: Mapping[str, Any]
    items: list[Item]
    is_stored: bool
    is_apart: bool
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Input:
    """What of a body becomes the prompt.

    items: of this body itself. shown: as in Asked. ignored: parts accepted without effect.
    """

    prompt: ChatPrompt
    items: list[Item]
    shown: Mapping[str, Any]
    ignored: tuple[str, ...]


def read_previous(body: Mapping[str, Any]) -> str | None:
    """`previous_response_id`: the response that this one follows."""
    return Fields(body).get(short_text(MAX_ID_CHARS), "previous_response_id") or None


def read_body(body: Mapping[str, Any], model: ModelInfo, history: Sequence[Item] = ()) -> Asked:
    """history: the items of the responses before. Raises InvalidRequest, Unsupported."""
    fields = Fields(body)
    given = read_prompt(fields, history)
    form, grammar = _read_form(fields)
    request = read_request(fields, model, given.prompt, _with_logprobs)
    request = replace(request, grammar=only_one(grammar, request.grammar))
    is_stored = fields.get(boolean, "store") is not False
    is_apart = fields.get(boolean, "background") or False
    if is_apart and not is_stored:
        raise InvalidRequest("'background' needs 'store', which is false.", param="background")
    shown = {
        **given.shown,
        "background": is_apart,
        "max_output_tokens": request.max_tokens,
        "metadata": _read_metadata(fields),
        "previous_response_id": read_previous(body),
        "store": is_stored,
        "temperature": request.sampling.temperature,
        "text": {"format": form, "verbosity": "medium"},
        "top_logprobs": max(0, request.sampling.n_logprobs),
        "top_p": request.sampling.top_p,
        "presence_penalty": request.sampling.presence_penalty,
        "frequency_penalty": request.sampling.frequency_penalty,
        "user": fields.get(text, "user"),
    }
    fields.find("previous_response_id", *_QUIET)
    return Asked(request, shown, given.items, is_stored, is_apart, ignored(fields) + given.ignored)


def read_prompt(fields: Fields, history: Sequence[Item] = ()) -> Input:
    """Raises InvalidRequest, Unsupported."""
    _refuse(fields)
    items = read_input(fields)
    check_length(len(history), len(items))
    instructions = fields.get(text, "instructions")
    tools, custom, unknown = _read_tools(fields)
    choice, callable_tools, forced = _read_choice(fields, tools)
    effort, summary = _read_reasoning(fields)
    kwargs, reserved = read_template_kwargs(fields, RESERVED_KWARGS)
    if effort and effort != "none":
        kwargs = {"reasoning_effort": effort, **kwargs}
    prompt = ChatPrompt(
        messages=to_messages([*history, *items], instructions or ""),
        template_kwargs=tuple(kwargs.items()),
        tools=callable_tools,
        forced=forced,
        has_one_call=(is_serial := fields.get(boolean, "parallel_tool_calls") is False),
        thinking=False if effort == "none" else None,
        is_split=True,
    )
    shown = {
        "instructions": instructions,
        "parallel_tool_calls": not is_serial,
        "reasoning": {"effort": effort, "summary": summary},
        "tool_choice": choice,
        "tools": [_shown(one, is_custom=one.name in custom) for one in tools],
    }
    return Input(prompt, items, shown, listed(unknown + reserved + without_effect(items)))


def _refuse(fields: Fields) -> None:
    for name, instead in (
        ("conversation", "name the response before in 'previous_response_id'"),
        ("prompt", "send the text itself as 'input'"),
    ):
        if fields.find(name)[1] is not None:
            raise Unsupported(f"'{name}' is not supported here: {instead}.", param=name)
    kind = fields.get(short_text(MAX_NAME_CHARS), "truncation") or "disabled"
    if kind not in ("disabled", "auto"):  # auto: what is too long is refused with its size instead
        raise bad("truncation", "disabled or auto", kind)


def _with_logprobs(sampling: SamplingParams, fields: Fields) -> SamplingParams:
    """`top_logprobs`, 0 to 20; or `include` asks for them without any others."""
    n_top = fields.get(integer(0, MAX_TOP), "top_logprobs")
    wanted = "message.output_text.logprobs" in (fields.get(array, "include") or [])
    return asking(sampling, (n_top or 0) if n_top or wanted else None, fields)


def _read_tools(fields: Fields) -> tuple[tuple[Tool, ...], frozenset[str], tuple[str, ...]]:
    """The functions, which of them stand for custom tools, and the names of tools that OpenAI's own
    service would run."""
    name, _ = fields.find("tools")
    given = fields.get(array, "tools") or []
    if len(given) > MAX_TOOLS:
        raise InvalidRequest(
            f"'{name}' may hold at most {MAX_TOOLS} tools, not {len(given)}.", param=name
        )
    functions: list[Tool] = []
    custom = set[str]()
    others: dict[str, None] = {}
    for place, one in enumerate(given):
        inner = Fields(mapping(f"{name}[{place}]", one), f"{name}[{place}].")
        kind = inner.need(short_text(MAX_NAME_CHARS), "type")
        if kind == "function":
            functions.append(make_tool(inner, "parameters"))
        elif kind == "custom":
            functions.append(read_custom(inner))
            custom.add(functions[-1].name)
        else:
            others[f"tools[].type: {kind}"] = None
    return tuple(functions), frozenset(custom), tuple(others)


def _shown(tool: Tool, *, is_custom: bool) -> dict[str, Any]:
    told = {"name": tool.name, "description": tool.description or None}
    if is_custom:
        return {"type": "custom", **told, "format": shown_format(tool)}
    return {
        "type": "function",
        **told,
        "parameters": tool.parameters,
        "strict": True,
    }


def _read_choice(
    fields: Fields, tools: tuple[Tool, ...]
) -> tuple[Any, tuple[Tool, ...], tuple[str, ...]]:
    """What is shown of `tool_choice`; the tools that may be called, and the names of those of which
    one must be.
    """
    name, choice = fields.find("tool_choice")
    if choice in (None, "auto", "none"):
        return choice or "auto", () if choice == "none" else tools, ()
    if choice == "required":
        return choice, tools, forced_names(name, tools)
    if not isinstance(choice, dict):
        raise bad(name, "none, auto, required or an object that names a function", choice)
    inner = Fields(choice, f"{name}.")
    kind = inner.get(short_text(MAX_NAME_CHARS), "type") or "function"
    if kind == "allowed_tools":
        kept, forced = allowed_tools(inner, tools)
        return _shown_choice(kept, forced), kept, forced
    if kind not in ("function", "custom"):
        raise Unsupported(f"'{name}' is of type {kind!a}; only functions are known.", param=name)
    wanted = inner.need(short_text(MAX_NAME_CHARS), "name")
    return {"type": kind, "name": wanted}, tools, forced_names(name, tools, wanted)


def _shown_choice(kept: tuple[Tool, ...], forced: tuple[str, ...]) -> dict[str, Any]:
    """A choice of allowed tools as it is shown: what was understood of it, and nothing else."""
    return {
        "type": "allowed_tools",
        "mode": "required" if forced else "auto",
        "tools": [{"type": "function", "name": tool.name} for tool in kept],
    }


def _read_reasoning(fields: Fields) -> tuple[str | None, str | None]:
    inner = Fields(fields.get(mapping, "reasoning") or {}, "reasoning.")
    effort = inner.get(short_text(MAX_EFFORT_CHARS), "effort")
    return effort, inner.get(short_text(MAX_EFFORT_CHARS), "summary", "generate_summary")


def _read_form(fields: Fields) -> tuple[dict[str, Any], Grammar | None]:
    """`text.format`: what is shown of it, and its grammar."""
    outer = Fields(fields.get(mapping, "text") or {}, "text.")
    form = outer.get(mapping, "format") or {"type": "text"}
    kind = form.get("type")
    if kind != "json_schema":
        grammar = read_grammar(Fields({"response_format": form}))
        shown: dict[str, Any] = {"type": kind}
    else:
        inner = Fields(form, "text.format.")
        schema = inner.need(mapping, "schema")
        grammar = read_grammar(
            Fields({"response_format": {"type": kind, "json_schema": {"schema": schema}}})
        )
        shown = {
            "type": kind,
            "name": inner.get(short_text(MAX_NAME_CHARS), "name") or "response",
            "description": inner.get(text, "description"),
            "schema": schema,
            "strict": True,  # a schema holds, whatever was asked for
        }
    if grammar is not None:
        grammar = msgspec.structs.replace(grammar, field="text.format")
    return shown, grammar


def _read_metadata(fields: Fields) -> dict[str, Any]:
    given = fields.get(mapping, "metadata") or {}
    if len(given) > MAX_METADATA or not all(isinstance(one, str) for one in given.values()):
        raise InvalidRequest(
            f"'metadata' must hold at most {MAX_METADATA} names, each with a string.",
            param="metadata",
        )
    return dict(sound("metadata", given))
