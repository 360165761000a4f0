"""Tools and calls of them, in the shape that OpenAI gave them and Ollama took over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from naiad.dialects.fields import Fields, array, bad, mapping, short_text, text
from naiad.errors import InvalidRequest, Unsupported
from naiad.types import ChatMessage, Tool, ToolCall

MAX_TOOLS = 1024
MAX_NAME_CHARS = 256


def read_tools(
    fields: Fields, others: Mapping[str, Callable[[Fields], Tool]] | None = None
) -> tuple[Tool, ...]:
    """`tools`: functions that the model may call; () when there are none.

    others: further types that stand for functions, and what reads each.
    """
    name, _ = fields.find("tools")
    given = fields.get(array, "tools") or []
    if len(given) > MAX_TOOLS:
        raise InvalidRequest(
            f"'{name}' may hold at most {MAX_TOOLS} tools, not {len(given)}.", param=name
        )
    return tuple(_tool(f"{name}[{place}]", one, others or {}) for place, one in enumerate(given))


def _tool(name: str, value: Any, others: Mapping[str, Callable[[Fields], Tool]]) -> Tool:
    outer = Fields(mapping(name, value), f"{name}.")
    kind = outer.get(short_text(MAX_NAME_CHARS), "type") or "function"
    if read := others.get(kind):
        return read(Fields(outer.need(mapping, kind), f"{name}.{kind}."))
    if kind != "function":
        raise Unsupported(f"'{name}' is of type {kind!a}; only functions are known.", param=name)
    inner = Fields(outer.need(mapping, "function"), f"{name}.function.")
    return make_tool(inner, "parameters")


def forced_names(param: str, tools: Sequence[Tool], name: str | None = None) -> tuple[str, ...]:
    """The tools one of which must be called: that name, or any. Raises InvalidRequest."""
    names = tuple(tool.name for tool in tools)
    if not names or (name is not None and name not in names):
        missing = "there are no tools" if name is None else f"there is no tool {name[:40]!a}"
        raise InvalidRequest(f"'{param}' forces a call, but {missing}.", param=param)
    return names if name is None else (name,)


def allowed_tools(
    fields: Fields, tools: Sequence[Tool]
) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
    """A choice's `tools`, named as they are in chats or in responses, and its `mode`: the tools
    that may be called, and the names of those of which one must be. Raises InvalidRequest.
    """
    name, _ = fields.find("tools")
    given = fields.need(array, "tools")
    if len(given) > MAX_TOOLS:
        raise InvalidRequest(
            f"'{name}' may hold at most {MAX_TOOLS} tools, not {len(given)}.", param=name
        )
    names = {_named(f"{name}[{i}]", one) for i, one in enumerate(given)}
    kept = tuple(tool for tool in tools if tool.name in names)
    if unknown := names - {tool.name for tool in kept}:
        raise InvalidRequest(
            f"'{name}' allows {min(unknown)[:40]!a}, but there is no such tool.", param=name
        )
    match fields.get(short_text(MAX_NAME_CHARS), "mode") or "auto":
        case "auto":
            return kept, ()
        case "required":
            return kept, forced_names(name, kept)
        case other:
            raise bad(fields.find("mode")[0], "auto or required", other)


def _named(name: str, value: Any) -> str:
    outer = Fields(mapping(name, value), f"{name}.")
    for kind in ("function", "custom"):
        if (inner := outer.get(mapping, kind)) is not None:
            outer = Fields(inner, f"{name}.{kind}.")
            break
    return outer.need(short_text(MAX_NAME_CHARS), "name")


def make_tool(fields: Fields, schema: str) -> Tool:
    """A tool with `name`, `description` and the schema of its arguments under that field."""
    title = fields.need(short_text(MAX_NAME_CHARS), "name")
    if not title:
        name, _ = fields.find("name")
        raise InvalidRequest(f"'{name}' is empty.", param=name)
    name, _ = fields.find(schema)
    parameters = sound(name, fields.get(mapping, schema) or {})
    return Tool(title, fields.get(text, "description") or "", parameters)


def sound(name: str, value: Mapping[str, Any]) -> Mapping[str, Any]:
    """An object that can travel on as JSON, whatever is nested in it. Raises InvalidRequest."""
    try:
        msgspec.json.encode(value)
    except (ValueError, RecursionError):
        raise InvalidRequest(
            f"'{name}' holds text that is no valid Unicode, or is nested too deeply.", param=name
        ) from None
    return value


def read_calls(fields: Fields) -> tuple[ToolCall, ...]:
    """`tool_calls` of an assistant's turn; arguments as JSON text or as an object.

    Old histories have one `function_call` instead, which has no id.
    """
    name, _ = fields.find("tool_calls")
    given = fields.get(array, "tool_calls") or []
    calls = tuple(_call(f"{name}[{place}]", one) for place, one in enumerate(given))
    old_name, _ = fields.find("function_call")
    old = fields.get(mapping, "function_call")
    return calls if calls or old is None else (_function(Fields(old, f"{old_name}."), ""),)


def _call(name: str, value: Any) -> ToolCall:
    outer = Fields(mapping(name, value), f"{name}.")
    if custom := outer.get(mapping, "custom"):  # whose argument is one text
        inner = Fields(custom, f"{name}.custom.")
        arguments = {"input": inner.get(text, "input") or ""}
        inner = Fields({"name": inner.find("name")[1], "arguments": arguments}, f"{name}.custom.")
    else:
        inner = Fields(outer.need(mapping, "function"), f"{name}.function.")
    return _function(inner, outer.get(short_text(MAX_NAME_CHARS), "id") or "")


def _function(fields: Fields, call_id: str) -> ToolCall:
    where, arguments = fields.find("arguments")
    if isinstance(arguments, dict):
        arguments = msgspec.json.encode(sound(where, arguments)).decode()
    return ToolCall(
        id=call_id,
        name=fields.need(short_text(MAX_NAME_CHARS), "name"),
        arguments="{}" if arguments is None else text(where, arguments) or "{}",
    )


def with_names(messages: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    """The turns, with the function's name in each result whose call is among them."""
    names = {call.id: call.name for turn in messages for call in turn.tool_calls if call.id}
    return tuple(
        replace(turn, name=names.get(turn.tool_call_id, ""))
        if turn.role == "tool" and not turn.name
        else turn
        for turn in messages
    )
