"""Prompts and conversations, as several dialects spell them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from naiad.dialects.fields import Fields, array, mapping, short_text, text, token_ids, wrong_kind
from naiad.dialects.files import read_file
from naiad.dialects.tools import MAX_NAME_CHARS, read_calls, sound, with_names
from naiad.errors import ContextExceeded, InvalidRequest, Unsupported
from naiad.types import ChatMessage, ModelInfo, TextPrompt, TokenPrompt

MAX_ROLE_CHARS = 64
MAX_PROMPTS = 64

#: Chat templates know OpenAI's older name of the one, and its newer name of the other.
_ROLES = {"developer": "system", "function": "tool"}
#: In the place of a picture that a tool has brought: an agent can go on without it.
UNSEEN_PICTURE = "[a picture, which this model cannot see]"
_UNSEEN = {
    **dict.fromkeys(("image_url", "input_image", "computer_screenshot"), "an image"),
    **dict.fromkeys(("input_audio", "audio"), "a sound"),
}


def read_prompt(fields: Fields, model: ModelInfo) -> TextPrompt | TokenPrompt:
    """`prompt`: a string, a list of token ids, or a list with one of these."""
    name, value = fields.find("prompt")
    if value is None:
        raise InvalidRequest(f"'{name}' is missing.", param=name)
    if isinstance(value, list) and value and isinstance(value[0], str | list):
        if len(value) > 1:
            raise InvalidRequest(
                f"'{name}' holds {len(value)} prompts; send one prompt per request.", param=name
            )
        value = value[0]
    if isinstance(value, str):
        return TextPrompt(text(name, value))
    if isinstance(value, list):
        return _token_prompt(name, value, model)
    raise wrong_kind(name, "a string or a list of token ids", value)


def read_prompts(fields: Fields, model: ModelInfo) -> list[TextPrompt | TokenPrompt]:
    """`prompt`: a string, a list of token ids, or a list of up to 64 such prompts."""
    name, value = fields.find("prompt")
    if not isinstance(value, list) or not value or not isinstance(value[0], str | list):
        return [read_prompt(fields, model)]
    if len(value) > MAX_PROMPTS:
        raise InvalidRequest(
            f"'{name}' holds {len(value)} prompts; at most {MAX_PROMPTS} fit in one request.",
            param=name,
        )
    for one in value:
        if not isinstance(one, str | list):
            raise wrong_kind(name, "a list of which each is a string or a list of token ids", one)
    return [read_prompt(Fields({name: [one]}), model) for one in value]


def _token_prompt(name: str, value: list[Any], model: ModelInfo) -> TokenPrompt:
    n_ctx = model.engine.n_ctx
    if 0 < n_ctx < len(value):
        raise ContextExceeded(
            f"The prompt has {len(value)} tokens, but the context holds only {n_ctx}.",
            param=name,
            n_prompt_tokens=len(value),
            n_ctx=n_ctx,
        )
    if not value:
        raise InvalidRequest(f"'{name}' is an empty list.", param=name)
    return TokenPrompt(tuple(token_ids(model.n_vocab)(name, value)))


def read_messages(fields: Fields) -> tuple[tuple[ChatMessage, ...], tuple[str, ...]]:
    """`messages`: at least one turn, and the names of what was in them without effect."""
    name, _ = fields.find("messages")
    turns = fields.need(array, "messages")
    if not turns:
        raise InvalidRequest(f"'{name}' must hold at least one message.", param=name)
    ignored: dict[str, None] = {}
    messages = []
    for place, turn in enumerate(turns):
        one = Fields(mapping(f"{name}[{place}]", turn), f"{name}[{place}].")
        messages.append(_message(one))
        ignored.update(dict.fromkeys(f"{name}[].{key}" for key in one.unread()))
    return with_names(messages), tuple(ignored)


def _message(fields: Fields) -> ChatMessage:
    role = fields.need(short_text(MAX_ROLE_CHARS), "role")
    if not role:
        raise InvalidRequest("A message has an empty 'role'.", param="messages")
    name, content = fields.find("content")
    _refuse_images(fields)
    return ChatMessage(
        _ROLES.get(role, role),
        _content(name, content),
        reasoning=fields.get(text, "reasoning_content", "reasoning", "thinking") or "",
        tool_calls=read_calls(fields),
        tool_call_id=fields.get(short_text(MAX_NAME_CHARS), "tool_call_id") or "",
        name=fields.get(short_text(MAX_NAME_CHARS), "name", "tool_name") or "",
    )


def _refuse_images(fields: Fields) -> None:
    name, images = fields.find("images")
    if images:
        raise Unsupported(f"'{name}' holds images; this model reads text only.", param=name)


def _content(name: str, content: Any) -> str:
    if content is None:  # an assistant's turn that holds tool calls only
        return ""
    if isinstance(content, str):
        return text(name, content)
    if isinstance(content, list):
        return "".join(_part(f"{name}[{place}]", part) for place, part in enumerate(content))
    raise wrong_kind(name, "a string or a list of parts", content)


def _part(name: str, part: Any) -> str:
    if isinstance(part, str):
        return text(name, part)
    fields = Fields(mapping(name, part), f"{name}.")
    kind = fields.need(short_text(MAX_ROLE_CHARS), "type")
    return read_part(name, kind, fields)


def read_part(name: str, kind: str, fields: Fields) -> str:
    """The text of a part of OpenAI's messages, in chats and responses.

    Raises Unsupported for a kind that has none: pictures, sounds, files that are no text.
    """
    match kind:
        case "text" | "input_text" | "output_text":
            return fields.need(text, "text")
        case "refusal":  # what an assistant said, also when it is that
            return fields.need(text, "refusal")
        case "file":
            return read_file(f"{name}.file", Fields(fields.need(mapping, "file"), f"{name}.file."))
        case "input_file":
            return read_file(name, fields)
    what = _UNSEEN.get(kind)
    known = f"{what} (type {kind!a})" if what else f"of type {kind[:40]!a}, unknown here"
    raise Unsupported(f"'{name}' is {known}; this model reads text only.", param=name)


def read_template_kwargs(
    fields: Fields, reserved: frozenset[str]
) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """`chat_template_kwargs`, and those in it that the server sets itself."""
    given = fields.get(mapping, "chat_template_kwargs") or {}
    sound("chat_template_kwargs", given)
    kept = {name: value for name, value in given.items() if name not in reserved}
    return kept, tuple(f"chat_template_kwargs.{name}" for name in given if name in reserved)
