"""Items: what a conversation consists of in the Responses API, and the turns that they mean."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from naiad.dialects.fields import Fields, array, mapping, short_text, text, wrong_kind
from naiad.dialects.openai.responses import foreign
from naiad.dialects.openai.responses.contents import MAX_KIND_CHARS, content_texts
from naiad.dialects.prompts import UNSEEN_PICTURE
from naiad.dialects.tools import MAX_NAME_CHARS, with_names
from naiad.errors import InvalidRequest, Unsupported
from naiad.types import ChatMessage, ToolCall

Item = dict[str, Any]

MAX_ITEMS = 10_000  # of a request, and of the conversation that it ends

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
    parts = [{"type": kind, "text": one} for one in content_texts(name, content)]
    return "msg", {"role": role, "status": "completed", "content": parts}


def check_length(n_before: int, n_items: int) -> None:
    """Raises InvalidRequest for a conversation of too many items."""
    if n_before + n_items > MAX_ITEMS:
        raise InvalidRequest(
            f"'input' has {n_items} items and the conversation before it {n_before}; together they "
            f"may be at most {MAX_ITEMS}.",
            param="input",
        )


def without_effect(items: Sequence[Item]) -> tuple[str, ...]:
    """The kinds of the items that the model is told nothing of, for the log."""
    kinds = (item["type"] for item in items if item["type"] in foreign.WITHOUT_EFFECT)
    return tuple(dict.fromkeys(f"input[].type: {kind}" for kind in kinds))


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
        "output": "".join(content_texts(name, output, UNSEEN_PICTURE)),
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
    turns = _Turns(instructions)
    for item in items:
        kind = item["type"]
        if kind == "reasoning":
            said = item["content"] or item["summary"]
            turns.thought = "".join(str(part["text"]) for part in said)
        elif kind == "function_call_output":
            turns.add(ChatMessage("tool", item["output"], tool_call_id=item["call_id"]))
        elif kind == "function_call":
            turns.add_call(ToolCall(item["call_id"], item["name"], item["arguments"]))
        elif kind != "message":
            for one in foreign.calls_and_results(item):
                if isinstance(one, ToolCall):
                    turns.add_call(one)
                else:
                    turns.add(one)
        else:
            content = "".join(part["text"] for part in item["content"])
            turns.add(ChatMessage(str(_ROLES.get(item["role"], item["role"])), content))
    return with_names(turns.all())


class _Turns:
    """Turns as they come, each with the calls that follow it.

    Attributes:
        thought: what the next turn of the assistant begins with.
    """

    def __init__(self, instructions: str) -> None:
        self._turns = [ChatMessage("system", instructions)] if instructions else []
        self._calls: list[ToolCall] = []  # of the turn that stands last
        self.thought = ""

    def add(self, turn: ChatMessage) -> None:
        self._with_calls()
        if turn.role == "assistant":
            turn, self.thought = replace(turn, reasoning=self.thought), ""
        self._turns.append(turn)

    def add_call(self, call: ToolCall) -> None:
        if not self._turns or self._turns[-1].role != "assistant":
            self.add(ChatMessage("assistant", ""))
        self._calls.append(call)

    def _with_calls(self) -> None:
        """Once for all calls of a turn: one at a time would copy those before each."""
        if self._calls:
            self._turns[-1] = replace(self._turns[-1], tool_calls=tuple(self._calls))
            self._calls = []

    def all(self) -> list[ChatMessage]:
        self._with_calls()
        return self._turns
