"""Stories that clients keep on the server."""

from __future__ import annotations

import msgspec


class SavedStory(msgspec.Struct, frozen=True):
    """A story that a client keeps on the server. format, data: the client's own business."""

    title: str
    format: str = ""
    data: str = ""


class SharedTurn(msgspec.Struct, frozen=True):
    """How far a shared story is. turn_major counts whole replacements, turn_minor turns since.

    is_idle: no other player is writing.
    """

    turn_major: int
    turn_minor: int
    is_idle: bool
    data_format: str
