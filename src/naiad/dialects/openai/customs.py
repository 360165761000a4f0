"""Custom tools: what they are called with is one text.

The model is told of a function whose only argument is that text, so that all formats of calls, and
what a forced one must follow, hold for it too. On the way out the argument is the text again.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from naiad.dialects.fields import Fields, bad, mapping, short_text
from naiad.dialects.grammars import MAX_GRAMMAR_CHARS
from naiad.dialects.tools import MAX_NAME_CHARS, make_tool
from naiad.errors import Unsupported
from naiad.types import Tool

_ARGUMENT = "input"  # as histories with such calls name it, too


def read_custom(fields: Fields) -> Tool:
    """The function that stands for a tool with `name`, `description` and `format`.

    Raises InvalidRequest; Unsupported for a format that is a Lark grammar.
    """
    tool = make_tool(fields, "format")
    name, _ = fields.find("format")
    form = Fields(tool.parameters, f"{name}.")
    value = {"type": "string"}
    match form.get(short_text(MAX_NAME_CHARS), "type") or "text":
        case "grammar":
            # chats have an object for it; responses have its fields beside the type
            inner = form.get(mapping, "grammar")
            value["pattern"] = _pattern(
                form if inner is None else Fields(inner, f"{name}.grammar.")
            )
        case other if other != "text":
            raise bad(f"{name}.type", "text or grammar", other)
    schema = {
        "type": "object",
        "properties": {_ARGUMENT: value},
        "required": [_ARGUMENT],
        "additionalProperties": False,
    }
    return replace(tool, parameters=schema)


def _pattern(fields: Fields) -> str:
    name, _ = fields.find("syntax")
    syntax = fields.need(short_text(MAX_NAME_CHARS), "syntax")
    if syntax == "lark":
        raise Unsupported(
            f"'{name}' is lark; what a custom tool is called with can follow a regex only.",
            param=name,
        )
    if syntax != "regex":
        raise bad(name, "lark or regex", syntax)
    return f"^(?:{fields.need(short_text(MAX_GRAMMAR_CHARS), 'definition')})$"


def shown_format(tool: Tool) -> dict[str, Any]:
    """The format, as responses repeat it."""
    pattern = tool.parameters["properties"][_ARGUMENT].get("pattern")
    if pattern is None:
        return {"type": "text"}
    return {"type": "grammar", "syntax": "regex", "definition": pattern[4:-2]}


_OPENING = re.compile(rf'\s*\{{\s*"{_ARGUMENT}"\s*:\s*"')
_HEX = "[0-9a-fA-F]"
_HIGH, _LOW = rf"\\u[dD][89abAB]{_HEX}{{2}}", rf"\\u[dD][c-fC-F]{_HEX}{{2}}"
#: Characters and escapes of a JSON string, as far as they are complete.
_COMPLETE = re.compile(
    rf'(?:[^"\\]|{_HIGH}{_LOW}|(?!{_HIGH})\\u{_HEX}{{4}}|\\["\\/bfnrt])*', re.DOTALL
)


class InputText:
    """The text in the arguments of such a call, which come in pieces cut anywhere.

    Arguments that are not what was asked for are the text as they are: nothing is lost.
    """

    def __init__(self) -> None:
        self._rest = ""
        self._is_open = False
        self._is_over = False

    def feed(self, piece: str, *, is_last: bool) -> str:
        """The text that is known now and was not before."""
        if self._is_over:
            return ""
        self._rest += piece
        if not self._is_open and (opening := _OPENING.match(self._rest)):
            self._is_open = True
            self._rest = self._rest[opening.end() :]
        return self._complete(is_last) if self._is_open else self._all(is_last)

    def _complete(self, is_last: bool) -> str:
        found = _COMPLETE.match(self._rest)
        part = found.group() if found else ""
        self._rest = self._rest[len(part) :]
        self._is_over = self._rest.startswith('"')
        text = str(json.loads(f'"{part}"', strict=False))
        text = text.encode("utf-8", "replace").decode()  # half a surrogate pair is no text
        return text if self._is_over else text + self._all(is_last)

    def _all(self, is_last: bool) -> str:
        if not is_last:
            return ""
        self._is_over = True
        return self._rest
