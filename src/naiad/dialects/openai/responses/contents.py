"""What a message or a tool's result holds: a text, or parts that have one."""

from __future__ import annotations

from typing import Any

from naiad.dialects.fields import Fields, mapping, short_text, text, wrong_kind
from naiad.dialects.prompts import read_part

MAX_KIND_CHARS = 64


def content_texts(name: str, content: Any, pictures: str | None = None) -> list[str]:
    """The text of each part of a message's or a result's content; one text is a part.

    pictures: what stands for one; None: they are refused. Raises InvalidRequest, Unsupported.
    """
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
