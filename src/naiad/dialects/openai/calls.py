"""Calls of tools in chats: as they are asked for, and as they are told.

There are three shapes: functions; custom tools, which are called with a text; and the API's first
one, `functions` and `function_call`, which has one call without an id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from naiad.dialects.fields import Fields, array, bad, mapping, short_text
from naiad.dialects.openai.customs import InputText, read_custom
from naiad.dialects.tools import (
    MAX_NAME_CHARS,
    MAX_TOOLS,
    allowed_tools,
    forced_names,
    make_tool,
    read_tools,
)
from naiad.errors import InvalidRequest
from naiad.types import Tool, ToolCall, ToolCallDelta


@dataclass(frozen=True, slots=True)
class CallForms:
    """is_old: the one call is told as `function_call`. custom: the names of custom tools."""

    is_old: bool = False
    custom: frozenset[str] = frozenset()


# -- as they are asked for -------------------------------------------------------------------------


def read_callable(fields: Fields) -> tuple[tuple[Tool, ...], tuple[str, ...], CallForms]:
    """The tools that may be called, the names of those of which one must be, and the shape that
    calls have in the answer. Raises InvalidRequest, Unsupported.
    """
    functions = _read_functions(fields)
    tools = read_tools(fields, {"custom": read_custom})
    if functions and tools:
        raise InvalidRequest(
            "'functions' is the old name of 'tools'; send one of them.", param="functions"
        )
    old_name, old_choice = fields.find("function_call")
    if tools and old_choice is not None:
        raise InvalidRequest(
            f"'{old_name}' goes with 'functions'; with 'tools' it is 'tool_choice'.", param=old_name
        )
    if functions or not tools:
        kept, forced = _chosen_old(old_name, old_choice, functions)
        if functions:
            return kept, forced, CallForms(is_old=True)
    given = fields.peek("tools") or []
    kinds = zip(tools, given, strict=True)
    custom = frozenset(tool.name for tool, one in kinds if one.get("type") == "custom")
    return *_chosen(fields, tools), CallForms(custom=custom)


def _read_functions(fields: Fields) -> tuple[Tool, ...]:
    name, _ = fields.find("functions")
    given = fields.get(array, "functions") or []
    if len(given) > MAX_TOOLS:
        raise InvalidRequest(
            f"'{name}' may hold at most {MAX_TOOLS} functions, not {len(given)}.", param=name
        )
    places = (f"{name}[{place}]" for place in range(len(given)))
    return tuple(
        make_tool(Fields(mapping(where, one), f"{where}."), "parameters")
        for where, one in zip(places, given, strict=True)
    )


def _chosen_old(
    name: str, choice: Any, functions: tuple[Tool, ...]
) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
    if choice in (None, "auto", "none"):
        return () if choice == "none" else functions, ()
    if not isinstance(choice, dict):
        raise bad(name, "none, auto or an object that names a function", choice)
    wanted = Fields(choice, f"{name}.").need(short_text(MAX_NAME_CHARS), "name")
    return functions, forced_names(name, functions, wanted)


def _chosen(fields: Fields, tools: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
    name, choice = fields.find("tool_choice")
    if choice == "none":
        return (), ()
    if choice == "required":
        return tools, forced_names(name, tools)
    if isinstance(choice, dict):
        inner = Fields(choice, f"{name}.")
        if allowed := inner.get(mapping, "allowed_tools"):
            return allowed_tools(Fields(allowed, f"{name}.allowed_tools."), tools)
        return tools, forced_names(name, tools, _named(name, inner))
    if choice not in (None, "auto"):
        raise bad(name, "none, auto, required or an object that names a function", choice)
    return tools, ()


def _named(name: str, choice: Fields) -> str:
    """The tool in {"type": "function", "function": {"name": ...}}, or the same with "custom"."""
    kind = "function" if choice.get(mapping, "custom") is None else "custom"
    inner = Fields(choice.need(mapping, kind), f"{name}.{kind}.")
    return inner.need(short_text(MAX_NAME_CHARS), "name")


# -- as they are told ------------------------------------------------------------------------------


class Calls:
    """The calls of one answer."""

    def __init__(self, forms: CallForms) -> None:
        self._forms = forms
        self._input = InputText()

    def piece(self, delta: ToolCallDelta) -> dict[str, Any] | None:
        """What a chunk tells of a piece: the id and the name once, then arguments as they form;
        None for nothing."""
        if self._forms.is_old:
            return self._old_piece(delta)
        key, text = "arguments", delta.arguments
        is_custom = delta.name in self._forms.custom
        if is_custom:
            self._input = InputText() if delta.is_first else self._input
            key, text = "input", self._input.feed(text, is_last=delta.is_last)
        if delta.is_first:
            call = _call(delta.id, delta.name, text, is_custom=is_custom)
            return {"tool_calls": [{"index": delta.index, **call}]}
        if not text:
            return None
        kind = "custom" if is_custom else "function"
        return {"tool_calls": [{"index": delta.index, kind: {key: text}}]}

    def _old_piece(self, delta: ToolCallDelta) -> dict[str, Any] | None:
        if delta.index or not (delta.is_first or delta.arguments):
            return None
        name = {"name": delta.name} if delta.is_first else {}
        return {"function_call": {**name, "arguments": delta.arguments}}

    def whole(self, calls: Sequence[ToolCall]) -> dict[str, Any]:
        """The fields of a message with these calls."""
        if not calls:
            return {}
        if self._forms.is_old:
            return {"function_call": {"name": calls[0].name, "arguments": calls[0].arguments}}
        return {"tool_calls": [self._whole(call) for call in calls]}

    def _whole(self, call: ToolCall) -> dict[str, Any]:
        if call.name not in self._forms.custom:
            return _call(call.id, call.name, call.arguments)
        text = InputText().feed(call.arguments, is_last=True)
        return _call(call.id, call.name, text, is_custom=True)

    def finish(self, reason: str) -> str:
        """Why an answer ended, in the words of its shape."""
        is_call = self._forms.is_old and reason == "tool_calls"
        return "function_call" if is_call else reason


def _call(call_id: str, name: str, text: str, *, is_custom: bool = False) -> dict[str, Any]:
    if is_custom:
        kind, called = "custom", {"name": name, "input": text}
    else:
        kind, called = "function", {"name": name, "arguments": text}
    return {"id": f"call_{call_id}", "type": kind, kind: called}
