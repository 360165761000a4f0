"""Items: what a conversation consists of in the Responses API, and the turns that they mean."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from naiad.dialects.fields import Fields, array, mapping, short_text, text, wrong_kind
from naiad.dialects.openai.responses import foreign
from naiad.dialects.prompts import UNSEEN_PICTURE, read_part
from naiad.dialects.tools import MAX_NAME_CHARS, with_names
from naiad.errors import InvalidRequest, Unsupported
from naiad.types import ChatMessage, ToolCall

Item = dict[str, Any]

MAX_ITEMS = 10_000
MAX_KIND_CHARS = 64

_ROLES = {"developer": "system"}  # chat templates know the older name


def read_input(fields: Fields) -> list[Item]:
    """`input`: a text, or a list of items; each comes back whole, with an id of its own."""
    name, value = fields.find("input")
    if value is None:
        raise InvalidRequest(f"'{name}' is missing.", param=name)
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise wrong_kind(name, "a string or a list of items", value)
    if not 1 <= len(value) <= MAX_ITEMS:
        raise InvalidRequest(
            f"'{name}' must hold 1 to {MAX_ITEMS} items, not {len(value)}.", param=name
        )
    return [_read(f"{name}[{place}]", one) for place, one in enumerate(value)]


def _read(name: str, value: Any) -> Item:
    fields = Fields(mapping(name, value), f"{name}.")
    kind = fields.get(short_text(MAX_KIND_CHARS), "type") or "message"
    read = _READERS.get(kind)
    if read is not None:
        prefix, item = read(fields)
    elif kind in foreign.KINDS or kind in foreign.WITHOUT_EFFECT:
        prefix, item = foreign.read_foreign(fields, value)
    else:
        why = foreign.REFUSED.get(kind)
        told = f": {why}" if why else ", which is not supported here"
        raise Unsupported(f"'{name}' is of type {kind[:40]!a}{told}.", param=name)
    found = fields.get(short_text(MAX_NAME_CHARS), "id")
    return {"id": found or f"{prefix}_{secrets.token_hex(16)}", "type": kind, **item}


def _message(fields: Fields) -> tuple[str, Item]:
    role = fields.need(short_text(MAX_KIND_CHARS), "role")
    name, content = fields.find("content")
    kind = "output_text" if role == "assistant" else "input_text"
    parts = [{"type": kind, "text": one} for one in _texts(name, content)]
    return "msg", {"role": role, "status": "completed", "content": parts}


def without_effect(items: Sequence[Item]) -> tuple[str, ...]:
    """The kinds of the items that the model is told nothing of, for the log."""
    kinds = (item["type"] for item in items if item["type"] in foreign.WITHOUT_EFFECT)
    return tuple(dict.fromkeys(f"input[].type: {kind}" for kind in kinds))


def _texts(name: str, content: Any, pictures: str | None = None) -> list[str]:
    """pictures: what stands for one; None: they are refused."""
    if content is None:
        return []
    if isinstance(content, str):
        return [text(name, content)]
    if not isinstance(content, list):
        raise wrong_kind(name, "a string or a list of parts", content)
    return [_part(f"{name}[{place}]", part, pictures) for place, part in enumerate(content)]


def _part(name: str, part: Any, pictures: str | None) -> str:
    fields = Fields(mapping(name, part), f"{name}.")
    kind = fields.need(short_text(MAX_KIND_CHARS), "type")
    return pictures if kind == "input_image" and pictures else read_part(name, kind, fields)


def _call(fields: Fields) -> tuple[str, Item]:
    return "fc", {
        "call_id": fields.need(short_text(MAX_NAME_CHARS), "call_id"),
        "name": fields.need(short_text(MAX_NAME_CHARS), "name"),
        "arguments": fields.get(text, "arguments") or "{}",
        "status": "completed",
    }


def _output(fields: Fields) -> tuple[str, Item]:
    call_id = fields.need(short_text(MAX_NAME_CHARS), "call_id")
    name, output = fields.find("output")
    if output is None:
        raise InvalidRequest(f"'{name}' is missing.", param=name)
    return "fco", {
        "call_id": call_id,
        "output": "".join(_texts(name, output, UNSEEN_PICTURE)),
        "status": "completed",
    }


def _reasoning(fields: Fields) -> tuple[str, Item]:
    def texts(field: str, kind: str) -> list[Item]:
        name, _ = fields.find(field)
        parts = [Fields(mapping(name, one)) for one in fields.get(array, field) or []]
        return [{"type": kind, "text": one.get(text, "text") or ""} for one in parts]

    summary, content = texts("summary", "summary_text"), texts("content", "reasoning_text")
    return "rs", {"summary": summary, "content": content, "status": "completed"}


_READERS: Mapping[str, Callable[[Fields], tuple[str, Item]]] = {
    "message": _message,
    "function_call": _call,
    "function_call_output": _output,
    "reasoning": _reasoning,
}


def to_messages(items: Sequence[Item], instructions: str = "") -> tuple[ChatMessage, ...]:
    """The turns of a chat. Reasoning and calls belong to the assistant's turn beside them."""
    turns = [ChatMessage("system", instructions)] if instructions else []
    thought = ""
    for item in items:
        kind = item["type"]
        if kind == "reasoning":
            said = item["content"] or item["summary"]
            thought = "".join(str(part["text"]) for part in said)
        elif kind == "function_call_output":
            turns.append(ChatMessage("tool", item["output"], tool_call_id=item["call_id"]))
        elif kind == "function_call":
            call = ToolCall(item["call_id"], item["name"], item["arguments"])
            thought = _add_call(turns, call, thought)
        elif kind != "message":
            for one in foreign.calls_and_results(item):
                if isinstance(one, ToolCall):
                    thought = _add_call(turns, one, thought)
                else:
                    turns.append(one)
        else:
            content = "".join(part["text"] for part in item["content"])
            role = _ROLES.get(item["role"], item["role"])
            is_assistant = role == "assistant"
            turns.append(ChatMessage(str(role), content, thought if is_assistant else ""))
            thought = "" if is_assistant else thought
    return with_names(turns)


def _add_call(turns: list[ChatMessage], call: ToolCall, thought: str) -> str:
    """Put a call into the assistant's turn that stands last, or a new one with that thought;
    returns the thought that is left."""
    if not turns or turns[-1].role != "assistant":
        turns.append(ChatMessage("assistant", "", thought))
        thought = ""
    turns[-1] = replace(turns[-1], tool_calls=(*turns[-1].tool_calls, call))
    return thought
