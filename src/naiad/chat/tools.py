"""Tools and their results in a conversation, for templates that know them and for those that
do not. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from naiad.types import ChatMessage, ChatPrompt, Grammar, Tool

_MENTION = re.compile(r"\btools\b")

_INSTRUCTIONS = """\
You can call these functions:

{tools}

To call one, reply with nothing but a JSON object: {{"name": "FUNCTION", "arguments": {{...}}}}
If none of them helps, reply in plain text as usual."""


def knows_tools(template: str) -> bool:
    """Whether a chat template does anything with tools."""
    return _MENTION.search(template) is not None


def turns_for(template: str, prompt: ChatPrompt) -> list[dict[str, Any]]:
    """The messages as the template reads them.

    A template that knows no tools gets them described in the system's turn, calls as the JSON that
    the model is asked for, and results in turns of the user.
    """
    if knows_tools(template):
        return [_turn(message) for message in prompt.messages]
    turns = [_plain_turn(message) for message in prompt.messages]
    return _described(turns, prompt.tools) if prompt.tools else turns


def tools_for(template: str, tools: Sequence[Tool]) -> list[dict[str, Any]] | None:
    """The tools as a template that knows them reads them; None when there are none."""
    return [_definition(tool) for tool in tools] if tools and knows_tools(template) else None


def forced_call(prompt: ChatPrompt) -> Grammar | None:
    """The form of an answer that must be a call; None when the model is free."""
    calls = [_call_schema(tool) for tool in prompt.tools if tool.name in prompt.forced]
    if not calls:
        return None
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return Grammar("json_schema", json.dumps(schema), field="tools")


def _call_schema(tool: Tool) -> dict[str, Any]:
    # The name comes first, so that the arguments can be passed on while they form.
    arguments = dict(tool.parameters) or {"type": "object"}
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def with_system_folded(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """The turns with the system's text at the beginning of the user's that follows, as models
    without a role for it are trained; None where that cannot be done."""
    match turns:
        case [{"role": "system", "content": str(system)}, {"role": "user"} as user, *rest]:
            return [{**user, "content": f"{system}\n\n{user['content']}"}, *rest]
    return None


def _definition(tool: Tool) -> dict[str, Any]:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": dict(tool.parameters) or {"type": "object", "properties": {}},
    }
    return {"type": "function", "function": function}


def _turn(message: ChatMessage) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        turn["reasoning_content"] = message.reasoning
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                # Templates write the arguments with `tojson`, so they need the object.
                "function": {"name": call.name, "arguments": _object(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    if message.name:
        turn["name"] = message.name
    return turn


def _plain_turn(message: ChatMessage) -> dict[str, Any]:
    if message.role == "tool":
        of = f" of {message.name}" if message.name else ""
        return {"role": "user", "content": f"Result{of}:\n{message.content}"}
    calls = [
        json.dumps({"name": call.name, "arguments": _object(call.arguments)}, ensure_ascii=False)
        for call in message.tool_calls
    ]
    turn = _turn(message)
    turn.pop("tool_calls", None)
    return {**turn, "content": "\n".join(filter(None, [message.content, *calls]))}


def _described(turns: list[dict[str, Any]], tools: Sequence[Tool]) -> list[dict[str, Any]]:
    lines = (json.dumps(_definition(tool)["function"], ensure_ascii=False) for tool in tools)
    text = _INSTRUCTIONS.format(tools="\n".join(lines))
    if turns and turns[0]["role"] == "system":
        content = "\n\n".join(filter(None, [turns[0]["content"], text]))
        return [{**turns[0], "content": content}, *turns[1:]]
    return [{"role": "system", "content": text}, *turns]


def _object(arguments: str) -> Any:
    try:
        found = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return found if isinstance(found, Mapping) else arguments
