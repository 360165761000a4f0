"""Bytes on the wire that more than one dialect writes."""

from __future__ import annotations

import msgspec

#: Compact JSON, UTF-8, nothing escaped that need not be.
to_json = msgspec.json.Encoder().encode

#: Line ends of Unicode that JSON leaves as they are: many clients of event streams cut at them.
_LINE_ENDS = (
    (b"\xc2\x85", rb"\u0085"),
    (b"\xe2\x80\xa8", rb"\u2028"),
    (b"\xe2\x80\xa9", rb"\u2029"),
)

#: A comment: clients of event streams skip it, proxies see life.
SSE_PING = b": ping\n\n"

#: OpenAI's end marker.
SSE_DONE = b"data: [DONE]\n\n"


def to_line(value: object) -> bytes:
    """JSON that stays one line, whatever a client takes for the end of a line."""
    data = to_json(value)
    if not data.isascii():
        for char, escape in _LINE_ENDS:
            data = data.replace(char, escape)
    return data


def sse(data: bytes, event: str | None = None) -> bytes:
    """One server-sent event. data: one line, as to_line makes it."""
    head = b"" if event is None else b"event: " + event.encode() + b"\n"
    return head + b"data: " + data + b"\n\n"


def ndjson(data: bytes) -> bytes:
    """One line of a stream of JSON values. data: one line, as to_line makes it."""
    return data + b"\n"


class Template:
    """An event that changes in one place only: everything around it is encoded once per stream.

    Args:
        value: JSON of the event with HOLE where the changing value goes.
        event: the event's name, if it has one.
        is_bare_line: a line of NDJSON instead of a server-sent event.
    """

    HOLE = "\ue000"

    __slots__ = ("_after", "_before")

    def __init__(
        self, value: object, event: str | None = None, *, is_bare_line: bool = False
    ) -> None:
        line = to_line(value)
        framed = ndjson(line) if is_bare_line else sse(line, event)
        before, hole, after = framed.partition(to_line(self.HOLE))
        if not hole:
            raise ValueError("the event has no place for the changing value")
        self._before = before
        self._after = after

    def fill(self, value: object) -> bytes:
        """The event with the value in its place."""
        return self._before + to_line(value) + self._after
