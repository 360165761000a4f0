"""Anthropic's conversations: turns made of blocks, the system's text beside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from naiad.dialects.anthropic.blocks import (
    CALLS,
    RESULT,
    read_block,
    read_call,
    read_result,
    read_text,
    read_texts,
)
from naiad.dialects.anthropic.blocks import WITHOUT_EFFECT as LEFT_OUT
from naiad.dialects.fields import Fields, array, bad, boolean, mapping, short_text, text, wrong_kind
from naiad.dialects.sampling import read_object
from naiad.dialects.tools import MAX_NAME_CHARS, forced_names, make_tool, with_names
from naiad.errors import InvalidRequest
from naiad.types import ChatMessage, ChatPrompt, Tool, ToolCall

_ROLES = ("user", "assistant", "system")

#: Claude Code begins its system blocks with this line. It changes with every request, so a prompt
#: that held it would share no prefix with the one before; it says nothing to a model.
BILLING = "x-anthropic-billing-header:"


def read_conversation(fields: Fields) -> tuple[ChatPrompt, tuple[str, ...]]:
    """The chat in a body, and the names of what was in it without effect."""
    system = _read_system(fields)
    turns = [ChatMessage("system", system)] if system else []
    name, _ = fields.find("messages")
    given, unread = fields.need(array, "messages"), dict[str, None]()
    if not given:
        raise InvalidRequest(f"'{name}' must hold at least one message.", param=name)
    for place, turn in enumerate(given):
        turns += _read_turn(f"{name}[{place}]", turn, unread)
    if len(turns) == bool(system):
        raise InvalidRequest(f"'{name}' holds no block that this model reads.", param=name)
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
    return prompt, (*unread, *ignored)


def _read_system(fields: Fields) -> str:
    name, value = fields.find("system")
    if value is None:
        return ""
    texts = [value] if isinstance(value, str) else read_texts(name, value)
    kept = (_without_billing(text(name, one)) for one in texts)
    return "\n\n".join(one for one in kept if one.strip())


def _without_billing(line: str) -> str:
    return line.partition("\n")[2] if line.startswith(BILLING) else line


_Block = tuple[str, str, Fields]  # where it stands, its type, its fields


def _read_turn(name: str, value: Any, unread: dict[str, None]) -> list[ChatMessage]:
    """unread: is given the kinds of the blocks that were left out."""
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
    blocks = [(f"{where}[{i}]", *read_block(f"{where}[{i}]", one)) for i, one in enumerate(content)]
    unread.update((f"content[].type: {kind}", None) for _, kind, _ in blocks if kind in LEFT_OUT)
    read = [block for block in blocks if block[1] not in LEFT_OUT]
    if blocks and not read and role != "assistant":
        return []
    return list(_assistants(read) if role == "assistant" else _users(role, read))


def _assistants(blocks: list[_Block]) -> Iterator[ChatMessage]:
    """One turn, unless results of the server's own tools stand between its blocks."""
    said, thought, n_told = "", "", 0
    calls: list[ToolCall] = []
    for name, kind, block in blocks:
        if kind == "thinking":
            thought += block.get(text, "thinking") or ""
        elif kind == "compaction":
            said += block.get(text, "content") or ""
        elif kind in CALLS:
            calls.append(read_call(block))
        elif kind.endswith(RESULT) and kind != RESULT:
            if said or thought or calls:
                yield ChatMessage("assistant", said, thought, tuple(calls))
            yield read_result(kind, block)
            said, thought, calls, n_told = "", "", [], n_told + 1
        else:
            said += read_text(name, kind, block)
    if said or thought or calls or not n_told:
        yield ChatMessage("assistant", said, thought, tuple(calls))


def _users(role: str, blocks: list[_Block]) -> Iterator[ChatMessage]:
    """Results of tools are turns of their own; the text between them is the user's."""
    texts: list[str] = []
    for name, kind, block in blocks:
        if not kind.endswith(RESULT):
            texts.append(read_text(name, kind, block))
            continue
        if texts:
            yield ChatMessage(role, "\n\n".join(texts))
            texts = []
        yield read_result(kind, block)
    if texts or not blocks:
        yield ChatMessage(role, "\n\n".join(texts))


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
