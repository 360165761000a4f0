"""What the front and the template helper say to each other: JSON with a length in front."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

HEADER_BYTES = 4
MAX_FRAME_BYTES = 256 * 1024 * 1024  # far above any body the server takes; a bound, not a limit

_Message = TypeVar("_Message", bound=msgspec.Struct)


class Job(msgspec.Struct, frozen=True):
    """Render these messages; arguments as in chat.template.render.

    cpu_s: seconds of the processor after which the helper ends itself, by SIGPROF; 0 for none.
    """

    template: str
    messages: list[dict[str, Any]]
    bos: str = ""
    eos: str = ""
    kwargs: dict[str, Any] = {}
    continue_final: bool = False
    tools: list[dict[str, Any]] | None = None
    cpu_s: float = 0.0


class Reply(msgspec.Struct, frozen=True):
    """The prompt text, or an error: its code in naiad.errors and its message. Also a greeting."""

    text: str = ""
    code: str | None = None
    message: str = ""
    param: str | None = None


def pack(message: Job | Reply) -> bytes:
    """A whole frame."""
    data = msgspec.json.encode(message)
    return len(data).to_bytes(HEADER_BYTES, "big") + data


def body_size(header: bytes) -> int:
    """The size of the body that follows a header. Raises ValueError for one that cannot be."""
    size = int.from_bytes(header, "big")
    if size > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {size} bytes is over the limit of {MAX_FRAME_BYTES}")
    return size


def unpack(data: bytes, kind: type[_Message]) -> _Message:
    """The message in a body. Raises msgspec.DecodeError or msgspec.ValidationError."""
    return msgspec.json.decode(data, type=kind)
