"""Anthropic's conversations: turns made of blocks, the system's text beside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from naiad.dialects.fields import Fields, array, bad, boolean, mapping, short_text, text, wrong_kind
from naiad.dialects.sampling import read_object
from naiad.dialects.tools import MAX_NAME_CHARS, forced_names, make_tool, sound, with_names
from naiad.errors import InvalidRequest, Unsupported
from naiad.types import ChatMessage, ChatPrompt, Tool, ToolCall

_ROLES = ("user", "assistant", "system")
_READ = "text, thinking, tool_use and tool_result"

#: Claude Code begins its system blocks with this line. It changes with every request, so a prompt
#: that held it would share no prefix with the one before; it says nothing to a model.
BILLING = "x-anthropic-billing-header:"


def read_conversation(fields: Fields) -> tuple[ChatPrompt, tuple[str, ...]]:
    """The chat in a body, and the names of what was in it without effect."""
    system = _read_system(fields)
    turns = [ChatMessage("system", system)] if system else []
    name, _ = fields.find("messages")
    given = fields.need(array, "messages")
    if not given:
        raise InvalidRequest(f"'{name}' must hold at least one message.", param=name)
    for place, turn in enumerate(given):
        turns += _read_turn(f"{name}[{place}]", turn)
    choice = read_object(fields, "tool_choice")
    tools, forced, ignored = _read_tools(fields, choice)
    thinking, kwargs = _read_thinking(fields)
    last = turns[-1]
    prompt = ChatPrompt(
        with_names(turns),
        continue_final=last.role == "assistant" and bool(last.content) and not last.tool_calls,
        template_kwargs=kwargs,
        tools=tools,
        forced=forced,
        has_one_call=choice.get(boolean, "disable_parallel_tool_use") or False,
        thinking=thinking,
        is_split=True,
    )
    return prompt, ignored


def _read_system(fields: Fields) -> str:
    name, value = fields.find("system")
    if value is None:
        return ""
    texts = [value] if isinstance(value, str) else _texts(name, value)
    kept = (_without_billing(text(name, one)) for one in texts)
    return "\n\n".join(one for one in kept if one.strip())


def _without_billing(line: str) -> str:
    return line.partition("\n")[2] if line.startswith(BILLING) else line


def _texts(name: str, value: Any) -> list[str]:
    """The texts of a list of text blocks."""
    if not isinstance(value, list):
        raise wrong_kind(name, "a string or a list of blocks", value)
    texts = []
    for place, one in enumerate(value):
        kind, block = _block(f"{name}[{place}]", one)
        if kind != "text":
            raise _unreadable(f"{name}[{place}]", kind, "text")
        texts.append(block.need(text, "text"))
    return texts


def _read_turn(name: str, value: Any) -> list[ChatMessage]:
    fields = Fields(mapping(name, value), f"{name}.")
    role = fields.need(short_text(MAX_NAME_CHARS), "role")
    if role not in _ROLES:
        raise InvalidRequest(
            f"'{name}.role' must be user or assistant, not {role!a}.", param=f"{name}.role"
        )
    where, content = fields.find("content")
    if isinstance(content, str):
        return [ChatMessage(role, text(where, content))]
    if not isinstance(content, list):
        raise wrong_kind(where, "a string or a list of blocks", content)
    blocks = [(f"{where}[{i}]", *_block(f"{where}[{i}]", one)) for i, one in enumerate(content)]
    if role == "assistant":
        return [_assistants(blocks)]
    return list(_users(role, blocks))


_Block = tuple[str, str, Fields]  # where it stands, its type, its fields


def _block(name: str, value: Any) -> tuple[str, Fields]:
    fields = Fields(mapping(name, value), f"{name}.")
    return fields.need(short_text(MAX_NAME_CHARS), "type"), fields


def _assistants(blocks: list[_Block]) -> ChatMessage:
    said, thought, calls = "", "", []
    for name, kind, block in blocks:
        match kind:
            case "text":
                said += block.need(text, "text")
            case "thinking":
                thought += block.get(text, "thinking") or ""
            case "redacted_thinking":
                pass  # nobody but its author can read it
            case "tool_use":
                calls.append(_call(block))
            case _:
                raise _unreadable(name, kind, _READ)
    return ChatMessage("assistant", said, thought, tuple(calls))


def _call(block: Fields) -> ToolCall:
    name, _ = block.find("input")
    arguments = sound(name, block.get(mapping, "input") or {})
    short = short_text(MAX_NAME_CHARS)
    return ToolCall(
        block.need(short, "id"), block.need(short, "name"), msgspec.json.encode(arguments).decode()
    )


def _users(role: str, blocks: list[_Block]) -> Iterator[ChatMessage]:
    """Results of tools are turns of their own; the text between them is the user's."""
    texts: list[str] = []
    for name, kind, block in blocks:
        if kind == "text":
            texts.append(block.need(text, "text"))
            continue
        if kind != "tool_result":
            raise _unreadable(name, kind, _READ)
        if texts:
            yield ChatMessage(role, "\n\n".join(texts))
            texts = []
        yield _result(block)
    if texts or not blocks:
        yield ChatMessage(role, "\n\n".join(texts))


def _result(block: Fields) -> ChatMessage:
    name, content = block.find("content")
    if content is None or isinstance(content, str):
        told = text(name, content or "")
    else:
        told = "\n\n".join(_texts(name, content))
    if block.get(boolean, "is_error"):
        told = f"Error: {told}"
    call_id = block.need(short_text(MAX_NAME_CHARS), "tool_use_id")
    return ChatMessage("tool", told, tool_call_id=call_id)


def _unreadable(name: str, kind: str, known: str) -> Unsupported:
    return Unsupported(
        f"'{name}' is of type {kind[:40]!a}; this model reads {known} blocks only.", param=name
    )


def _read_tools(
    fields: Fields, choice: Fields
) -> tuple[tuple[Tool, ...], tuple[str, ...], tuple[str, ...]]:
    """The tools that may be called, those that must, and those only Anthropic's servers can run."""
    name, _ = fields.find("tools")
    tools, foreign = [], []
    for place, one in enumerate(fields.get(array, "tools") or []):
        where = f"{name}[{place}]"
        tool = Fields(mapping(where, one), f"{where}.")
        kind = tool.get(short_text(MAX_NAME_CHARS), "type") or "custom"
        if kind == "custom":
            tools.append(make_tool(tool, "input_schema"))
        else:
            foreign.append(f"tools.{kind}")
    match choice.get(short_text(MAX_NAME_CHARS), "type") or "auto":
        case "none":
            return (), (), tuple(foreign)
        case "auto":
            forced: tuple[str, ...] = ()
        case "any":
            forced = forced_names("tool_choice", tools)
        case "tool":
            chosen = choice.need(short_text(MAX_NAME_CHARS), "name")
            forced = forced_names("tool_choice", tools, chosen)
        case other:
            raise bad("tool_choice.type", "auto, any, tool or none", other)
    return tuple(tools), forced, tuple(foreign)


def _read_thinking(fields: Fields) -> tuple[bool | None, tuple[tuple[str, Any], ...]]:
    """Whether to think, and how hard, for the template.

    A wish to think is no demand: agents send it to every model.
    """
    short = short_text(MAX_NAME_CHARS)
    kind = read_object(fields, "thinking").get(short, "type")
    effort = read_object(fields, "output_config").get(short, "effort")
    return (False if kind == "disabled" else None), (
        (("reasoning_effort", effort),) if effort else ()
    )
