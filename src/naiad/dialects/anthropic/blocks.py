"""Blocks of Anthropic's conversations: what a model that reads text can read of each kind.

The kinds are those of the unions `ContentBlockParam` and `BetaContentBlockParam` of Anthropic's own
package. What its servers did (searching the web, running code) comes back as calls and results, and
is read as such; what the user shows and the model cannot see is refused.
"""

from __future__ import annotations

from typing import Any

import msgspec

from naiad.dialects.fields import Fields, boolean, mapping, short_text, text, wrong_kind
from naiad.dialects.files import text_of_file, titled
from naiad.dialects.prompts import UNSEEN_PICTURE
from naiad.dialects.tools import MAX_NAME_CHARS, sound
from naiad.errors import InvalidRequest, Unsupported
from naiad.types import ChatMessage, ToolCall

CALLS = frozenset({"tool_use", "server_tool_use", "mcp_tool_use"})
RESULT = "tool_result"  # and web_search_tool_result, mcp_tool_result ...
TEXTS = frozenset({"text", "document", "search_result"})

#: What no model reads, or only Anthropic's own servers; left out and named in the log.
WITHOUT_EFFECT = frozenset(
    {"redacted_thinking", "fallback", "mcp_tool_listing", "tool_addition", "tool_removal"}
)

_UNSEEN = {"image": "an image", "container_upload": "a file that only Anthropic's servers have"}

#: Members of results that are sealed by Anthropic, or say nothing to a model.
_SEALED = frozenset(
    {"cache_control", "citations", "encrypted_content", "encrypted_stdout", "signature"}
)
_DEPTH = 6  # of nested objects that are looked through for those


def read_block(name: str, value: Any) -> tuple[str, Fields]:
    """A block's type and its fields."""
    fields = Fields(mapping(name, value), f"{name}.")
    return fields.need(short_text(MAX_NAME_CHARS), "type"), fields


def read_texts(name: str, value: Any) -> list[str]:
    """The texts of a list of blocks of type text. Raises InvalidRequest for any others, so what
    holds such a list cannot be nested in itself."""
    if not isinstance(value, list):
        raise wrong_kind(name, "a string or a list of blocks", value)
    blocks = [(f"{name}[{place}]", one) for place, one in enumerate(value)]
    return [_plain(where, *read_block(where, one)) for where, one in blocks]


def _plain(name: str, kind: str, block: Fields) -> str:
    if kind in TEXTS and kind != "text":
        raise InvalidRequest(
            f"'{name}' is of type {kind!a}; only blocks of type 'text' belong here.", param=name
        )
    return read_text(name, kind, block)


def read_text(name: str, kind: str, block: Fields) -> str:
    """The text of a block. Raises Unsupported for a kind that has none."""
    match kind:
        case "text":
            return block.need(text, "text")
        case "document":
            return _document(name, block)
        case "search_result":
            head = f"{block.get(text, 'title') or ''}\n{block.get(text, 'source') or ''}"
            where, content = block.find("content")
            return titled(head.strip(), "\n\n".join(read_texts(where, content)))
        case _:
            raise unreadable(name, kind)


def _document(name: str, block: Fields) -> str:
    source = Fields(block.need(mapping, "source"), f"{name}.source.")
    heads = (block.get(text, "title") or "", block.get(text, "context") or "")
    title = "\n".join(head for head in heads if head)
    match source.need(short_text(MAX_NAME_CHARS), "type"):
        case "text":
            return titled(title, source.need(text, "data"))
        case "content":
            where, content = source.find("content")
            texts = [text(where, content)] if isinstance(content, str) else []
            return titled(title, "\n\n".join(texts or read_texts(where, content)))
        case "base64":
            return text_of_file(f"{name}.source.data", source.need(text, "data"), title)
        case kind:
            raise Unsupported(
                f"'{name}.source' is of type {kind[:40]!a}, which is not fetched here: send the "
                "document's text, as a source of type 'text'.",
                param=f"{name}.source",
            )


def unreadable(name: str, kind: str) -> Unsupported:
    """The refusal of a block that is no text, or of no kind known here."""
    what = _UNSEEN.get(kind)
    known = f"{what} (type {kind!a})" if what else f"of type {kind[:40]!a}, unknown here"
    return Unsupported(f"'{name}' is {known}; this model reads text only.", param=name)


def read_call(block: Fields) -> ToolCall:
    """A call, of the caller's own tools or of Anthropic's."""
    name, _ = block.find("input")
    arguments = sound(name, block.get(mapping, "input") or {})
    short = short_text(MAX_NAME_CHARS)
    return ToolCall(
        block.need(short, "id"), block.need(short, "name"), msgspec.json.encode(arguments).decode()
    )


def read_result(kind: str, block: Fields) -> ChatMessage:
    """What a call brought: its text, or as JSON what a server's tool told."""
    name, content = block.find("content")
    if content is None or isinstance(content, str):
        told = text(name, content or "")
    elif isinstance(content, list) and kind in {RESULT, "mcp_tool_result"}:
        told = "\n\n".join(_piece(f"{name}[{place}]", one) for place, one in enumerate(content))
    elif kind in {RESULT, "mcp_tool_result"}:
        raise wrong_kind(name, "a string or a list of blocks", content)
    else:
        sound(name, {"content": content})
        told = msgspec.json.encode(_open(content, _DEPTH)).decode()
    if block.get(boolean, "is_error"):
        told = f"Error: {told}"
    call_id = block.need(short_text(MAX_NAME_CHARS), "tool_use_id")
    return ChatMessage("tool", told, tool_call_id=call_id)


def _piece(name: str, value: Any) -> str:
    """A block of a result."""
    kind, block = read_block(name, value)
    match kind:
        case "image":
            return UNSEEN_PICTURE
        case "tool_reference":
            return block.need(short_text(MAX_NAME_CHARS), "tool_name")
        case "browser_state":
            return msgspec.json.encode(_open(sound(name, value), _DEPTH)).decode()
        case _:
            return read_text(name, kind, block)


def _open(value: Any, depth: int) -> Any:
    """A value without what is sealed, or a file, in its outer objects."""
    if depth and isinstance(value, list):
        return [_open(one, depth - 1) for one in value]
    if not depth or not isinstance(value, dict):
        return value
    hidden = _SEALED | ({"data"} if value.get("type") == "base64" else set())
    return {name: _open(one, depth - 1) for name, one in value.items() if name not in hidden}
