"""Files inside conversations: the text of those that are text, in base64 or in a data URL."""

from __future__ import annotations

import base64
import binascii
from urllib.parse import unquote_to_bytes

from naiad.dialects.fields import Fields, text
from naiad.errors import InvalidRequest, Unsupported

MAX_FILE_CHARS = 8 * 1024 * 1024  # in base64; more than any context, decoded within milliseconds


def text_of_file(name: str, data: str, title: str = "") -> str:
    """The file's text, below its title.

    data: base64, or a data URL (RFC 2397): `data:MEDIA;base64,` and base64, else percent-encoded.
    Raises InvalidRequest for what is neither and Unsupported for a file that is no text (a PDF, an
    image).
    """
    head, comma, encoded = data.partition(",")
    if not (comma and head.startswith("data:")):
        head, encoded = "", data
    if len(encoded) > MAX_FILE_CHARS:
        raise Unsupported(
            f"'{name}' is a file of {len(encoded)} characters in base64; at most {MAX_FILE_CHARS} "
            "are read.",
            param=name,
        )
    if head and not head.lower().endswith(";base64"):
        return titled(title, _decoded(name, unquote_to_bytes(encoded)))
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(
            f"'{name}' must be a file in base64, or a data URL of one.", param=name
        ) from None
    return titled(title, _decoded(name, content))


def read_file(name: str, fields: Fields) -> str:
    """The text of a file in OpenAI's words: `file_data`, below its `filename`.

    Raises Unsupported for one that would have to be fetched.
    """
    data = fields.get(text, "file_data")
    if data is None:
        raise Unsupported(
            f"'{name}' is a file that is not in the request: only 'file_data' is read, and only of "
            "files that are text.",
            param=name,
        )
    return text_of_file(f"{name}.file_data", data, fields.get(text, "filename") or "")


def titled(title: str, body: str) -> str:
    """A text below its title, if it has one."""
    return f"{title}\n\n{body}" if title else body


def _decoded(name: str, content: bytes) -> str:
    try:
        found = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        found = "\0"
    if "\0" in found or found.startswith("%PDF-"):
        raise Unsupported(
            f"'{name}' is a file that is no text; this model reads text only: send the text "
            "that is in it.",
            param=name,
        )
    return found
