"""Items of tools that the service, or the client, has and this server has not, in a history.

The kinds are those of the union `ResponseInputItemParam` of OpenAI's package. What was called and
what it brought is told to the model as calls and results of functions; what tells it nothing is
left out and named in the log; what it would have to see, or cannot be opened, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from naiad.dialects.fields import Fields, mapping, short_text, text
from naiad.dialects.openai.responses.contents import content_texts
from naiad.dialects.prompts import UNSEEN_PICTURE
from naiad.dialects.tools import MAX_NAME_CHARS, sound
from naiad.errors import InvalidRequest
from naiad.types import ChatMessage, ToolCall

#: kind -> the function that it is told as ("" where the item names it), its arguments' field
_CALLS = {
    "apply_patch_call": ("apply_patch", "operation"),
    "custom_tool_call": ("", "input"),
    "local_shell_call": ("local_shell", "action"),
    "program": ("program", "code"),
    "shell_call": ("shell", "action"),
    "tool_search_call": ("tool_search", "arguments"),
    # and of these the result stands in the same item
    "code_interpreter_call": ("code_interpreter", "code"),
    "file_search_call": ("file_search", "queries"),
    "mcp_call": ("", "arguments"),
}
_RESULTS = {
    "apply_patch_call_output": "output",
    "custom_tool_call_output": "output",
    "local_shell_call_output": "output",
    "program_output": "result",
    "shell_call_output": "output",
    "tool_search_output": "tools",
    "code_interpreter_call": "outputs",
    "file_search_call": "results",
    "mcp_call": "output",
}
KINDS = frozenset(_CALLS) | frozenset(_RESULTS)

WITHOUT_EFFECT = frozenset(
    {
        "additional_tools",
        "configuration_update",
        "image_generation_call",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_list_tools",
        "web_search_call",  # which does not hold what was found
    }
)

#: kind -> why it is refused
REFUSED = {
    "compaction": "it can be opened only by the service that has made it; send the messages",
    "compaction_trigger": "conversations are not compacted here; send a summary instead",
    "computer_call": "this model reads text only, and cannot see a screen",
    "computer_call_output": "this model reads text only, and cannot see a screen",
}


def read_foreign(fields: Fields, value: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The item as it is kept: as it came. Raises InvalidRequest for what lacks its parts."""
    name, _ = fields.find("type")
    if value["type"] in KINDS:
        to_turns(fields, value["type"])
    kept = {key: one for key, one in value.items() if key not in ("id", "type")}
    return "item", dict(sound(name, kept))


def to_turns(fields: Fields, kind: str) -> list[ToolCall | ChatMessage]:
    """The call and the result that an item tells of, one of them or both."""
    name, call_id = fields.find("call_id", "id")
    if call_id is None:
        raise InvalidRequest(f"'{name}' is missing.", param=name)
    call_id = short_text(MAX_NAME_CHARS)(name, call_id)
    turns: list[ToolCall | ChatMessage] = []
    if kind in _CALLS:
        turns.append(_call(fields, call_id, *_CALLS[kind]))
    if kind in _RESULTS:
        tell = _shown if kind == "custom_tool_call_output" else _told
        told = tell(*fields.find(_RESULTS[kind], "error"))
        turns.append(ChatMessage("tool", told, tool_call_id=call_id))
    return turns


def _call(fields: Fields, call_id: str, function: str, field: str) -> ToolCall:
    title = function or fields.need(short_text(MAX_NAME_CHARS), "name")
    name, value = fields.find(field)
    if field == "arguments" and isinstance(value, str):
        return ToolCall(call_id, title, text(name, value) or "{}")
    if not isinstance(value, dict):
        value = {field: value}
    return ToolCall(call_id, title, msgspec.json.encode(sound(name, value)).decode())


def _shown(name: str, value: Any) -> str:
    """A result that has parts as a message has them."""
    return "".join(content_texts(name, value, UNSEEN_PICTURE))


def _told(name: str, value: Any) -> str:
    """A result: text as it is, all else as JSON, in which pictures are only named."""
    if not value or isinstance(value, str):
        return text(name, value or "")
    if isinstance(value, list):
        value = [UNSEEN_PICTURE if _is_picture(part) else part for part in value]
    return msgspec.json.encode(sound(name, {"": value})[""]).decode()


def _is_picture(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in ("image", "input_image")


def calls_and_results(item: Mapping[str, Any]) -> list[ToolCall | ChatMessage]:
    """The turns of an item that was read before."""
    kind = item["type"]
    return to_turns(Fields(mapping("item", dict(item))), kind) if kind in KINDS else []
