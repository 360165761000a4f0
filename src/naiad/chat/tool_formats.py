"""How models write tool calls: a table, and a parser for each way. Pure.

A model's format is read off its chat template, which shows old calls as the model was trained to
write new ones. Every parser streams: a mark cut anywhere never leaks into the text, and arguments
are passed on while they form. What turns out to be no call stays text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from naiad.chat.output import Output
from naiad.chat.source import Reading, Source
from naiad.chat.tool_json import read_call, read_object

#: Reads an answer to its end. The names are those of the tools of the request.
Parser = Callable[[Source, Output, frozenset[str]], Reading[None]]


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """A way to write calls.

    shown: what a template of such a model holds. openings: marks that can only begin a call.
    marks: those of its marks that are control tokens in some models, which must show as text then.
    """

    name: str
    shown: str
    openings: tuple[str, ...]
    read: Parser
    marks: tuple[str, ...] = ()


def _tagged(source: Source, output: Output, _names: frozenset[str]) -> Reading[None]:
    """Hermes and Qwen: <tool_call>{"name": ..., "arguments": {...}}</tool_call>, any number."""
    while (yield from source.until(("<tool_call>",), output.text, keeps_end=True)) is not None:
        space = yield from source.spaces()
        if (yield from source.accept("<function=")) is not None:
            yield from _read_elements(source, output)
        elif not (yield from read_call(source, output)):
            output.text("<tool_call>" + space)
            continue
        yield from source.spaces()
        yield from source.accept("</tool_call>")
        yield from source.spaces()


def _read_elements(source: Source, output: Output) -> Reading[None]:
    """Qwen Coder: name>, <parameter=key>value</parameter>, ..., </function>."""
    name = yield from _text_until(source, ">")
    output.call(name)
    found: dict[str, str] = {}
    yield from source.spaces()
    while (yield from source.accept("<parameter=")) is not None:
        key = yield from _text_until(source, ">")
        value = yield from _text_until(source, "</parameter>")
        found[key] = value.removeprefix("\n").removesuffix("\n")
        yield from source.spaces()
    # Values bear no type: what reads as a JSON value other than a string is meant as one.
    pairs = (f"{json.dumps(key)}: {_as_json(value)}" for key, value in found.items())
    output.arguments("{" + ", ".join(pairs) + "}")
    output.end_call()
    yield from source.accept("</function>")


def _mistral(source: Source, output: Output, _names: frozenset[str]) -> Reading[None]:
    """[TOOL_CALLS][{...}, {...}], or [TOOL_CALLS]name[ARGS]{...} for each call."""
    mark = "[TOOL_CALLS]"
    while (yield from source.until((mark,), output.text, keeps_end=True)) is not None:
        space = yield from source.spaces()
        if (yield from source.accept("[")) is not None:
            yield from _read_list(source, output, lambda _name: True)
            continue
        source.unread(mark + space)
        yield from _read_named(source, output, mark)


def _read_named(source: Source, output: Output, mark: str) -> Reading[None]:
    yield from source.accept(mark)
    name = yield from _text_until(source, "{")
    name = re.split(r"\[(?:ARGS|CALL_ID)\]", name)[0].strip()
    if source.has_ended and not source.text:  # no arguments came: the rest is no call
        output.text(mark + name)
        return
    output.call(name)
    source.unread("{")
    yield from read_object(source, output.arguments)
    output.end_call()


def _bare(source: Source, output: Output, names: frozenset[str]) -> Reading[None]:
    """An answer that is nothing but calls: one object, several, or a list; a fence around it.

    An answer in JSON looks the same, so only names of the request's tools make a call.
    """
    before = yield from source.spaces()
    python = yield from source.accept("<|python_tag|>")
    fence = yield from source.accept("```json", "```")
    before += (python or "") + (fence or "")
    before += yield from source.spaces()
    n_calls = output.n_calls
    if (yield from source.accept("[")) is not None:
        yield from _read_list(source, output, names.__contains__)
        before += "["
    else:
        yield from _read_row(source, output, names.__contains__)
    if output.n_calls == n_calls:
        source.unread(before)
    elif fence is not None:
        yield from source.spaces()
        yield from source.accept("```")
        yield from source.spaces()


def _read_row(source: Source, output: Output, is_known: Callable[[str], bool]) -> Reading[None]:
    """Objects, with semicolons, commas or nothing between them."""
    while (yield from read_call(source, output, is_known)):
        yield from source.spaces()
        yield from source.accept(";", ",")
        yield from source.spaces()


def _read_list(source: Source, output: Output, is_known: Callable[[str], bool]) -> Reading[None]:
    """Objects of a list whose bracket is read."""
    yield from source.spaces()
    yield from _read_row(source, output, is_known)
    yield from source.accept("]")


def _gemma(opening: str, closing: str, quote: str) -> Parser:
    """FunctionGemma and Gemma 4: call:name{key:value}, with marks of their own around strings."""

    def read(source: Source, output: Output, _names: frozenset[str]) -> Reading[None]:
        while (yield from source.until((opening,), output.text, keeps_end=True)) is not None:
            body = yield from _text_until(source, closing)
            found = re.fullmatch(r"\s*call:\s*([^\s{]+)\s*(\{.*\})\s*", body, re.DOTALL)
            if found is None:
                output.text(opening + body)
                continue
            output.call(found[1])
            output.arguments(_unmarked(found[2], quote))
            output.end_call()
            yield from source.spaces()

    return read


def _unmarked(text: str, quote: str) -> str:
    """JSON of an object with bare keys and marked strings."""
    parts = text.split(quote)
    for place, part in enumerate(parts):
        is_string = place % 2 == 1
        parts[place] = json.dumps(part, ensure_ascii=False) if is_string else _with_keys(part)
    return "".join(parts)


def _with_keys(text: str) -> str:
    return re.sub(r"([{,]\s*)([A-Za-z_][\w.-]*)\s*:", r'\1"\2":', text)


def _as_json(value: str) -> str:
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        found = value
    return json.dumps(value if isinstance(found, str) else found, ensure_ascii=False)


def _text_until(source: Source, mark: str) -> Reading[str]:
    parts: list[str] = []
    yield from source.until((mark,), parts.append, keeps_end=True)
    return "".join(parts)


_GEMMA = ("<start_function_call>", "<end_function_call>", "<escape>")
_GEMMA_4 = ("<|tool_call>", "<tool_call|>", '<|"|>')
_MISTRAL = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")
_HERMES = ("<tool_call>", "</tool_call>")

#: The first that a template shows is the model's.
FORMATS = (
    ToolFormat("functiongemma", _GEMMA[0], _GEMMA[:1], _gemma(*_GEMMA), _GEMMA),
    ToolFormat("gemma4", _GEMMA_4[0], _GEMMA_4[:1], _gemma(*_GEMMA_4), _GEMMA_4),
    ToolFormat("mistral", _MISTRAL[0], _MISTRAL[:1], _mistral, _MISTRAL),
    ToolFormat("hermes", _HERMES[0], _HERMES[:1], _tagged, _HERMES),
    ToolFormat("llama3", "<|python_tag|>", (), _bare, ("<|python_tag|>",)),
)

#: Of models whose template shows no calls: they are told to write JSON.
PLAIN = ToolFormat("plain", "", (), _bare)


def format_of(template: str | None) -> ToolFormat:
    """How a model writes its calls, by its chat template."""
    shown = template or ""
    return next((one for one in FORMATS if one.shown in shown), PLAIN)
