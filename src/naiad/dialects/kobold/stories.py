"""Stories on the server, as KoboldAI Lite keeps them: save slots, one to begin with, a shared one.

Its clients read `success` and `error` here, so refusals have that shape.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from naiad.dialects.base import Backend, Call, Handle, Raw, SharedStory
from naiad.dialects.fields import MAX_INT, Fields, boolean, integer, short_text, text
from naiad.errors import InternalError, InvalidRequest, NaiadError, Unsupported
from naiad.types import SavedStory, SharedTurn

MAX_TITLE_CHARS = 256
MAX_FORMAT_CHARS = 64
MAX_SENDER_CHARS = 256
UNTITLED = "Untitled Save"

_TITLE = short_text(MAX_TITLE_CHARS)
_FORMAT = short_text(MAX_FORMAT_CHARS)
_SENDER = short_text(MAX_SENDER_CHARS)


def _saying_success(handle: Callable[[Backend, Call], Awaitable[Any]]) -> Handle:
    """A handler whose refusals have the shape that its clients read."""

    async def answer(backend: Backend, call: Call) -> Any:
        try:
            return await handle(backend, call)
        except (InvalidRequest, InternalError) as error:
            body = {"success": False, "error": error.message}
            return Raw(msgspec.json.encode(body), status=error.status)

    return answer


async def show_preloaded(backend: Backend, _call: Call) -> Any:
    """The story to open at first; {} for none."""
    return backend.stories.preloaded


async def list_saved(backend: Backend, _call: Call) -> Any:
    """The titles of all slots; "" for an empty one."""
    return await backend.stories.slots.titles()


@_saying_success
async def load_saved(backend: Backend, call: Call) -> Any:
    """What a slot holds."""
    slot = Fields(call.body).get(integer(0, MAX_INT), "slot") or 0
    story = await backend.stories.slots.load(slot)
    return {"success": story is not None, "data": story}


@_saying_success
async def save(backend: Backend, call: Call) -> Any:
    """Replace what a slot holds; no data empties it."""
    fields = Fields(call.body)
    slot = fields.need(integer(0, MAX_INT), "slot")
    title, form = fields.get(_TITLE, "title"), fields.get(_FORMAT, "format")
    data = fields.get(text, "data")
    story = SavedStory(title or UNTITLED, form or "", data) if data else None
    await backend.stories.slots.save(slot, story)
    return {"success": True, "error": ""}


async def show_turn(backend: Backend, call: Call) -> Any:
    """How far the shared story is; `sender` may say that it is writing."""
    if backend.stories.shared is None:
        return {"error": _not_shared().message}
    fields = Fields(call.body)
    sender = fields.get(_SENDER, "sender") or ""
    is_busy = fields.get(boolean, "senderbusy") or False
    return _turn_of(backend.stories.shared.status(sender, is_busy=is_busy))


async def show_shared(backend: Backend, _call: Call) -> Any:
    """The shared story, as the client that sent it wrote it."""
    shared = backend.stories.shared
    return Raw(shared.data.encode() if shared else b"", "text/plain; charset=utf-8")


@_saying_success
async def take_turn(backend: Backend, call: Call) -> Any:
    """Replace the shared story."""
    shared: SharedStory | None = backend.stories.shared
    if shared is None:
        raise _not_shared()
    fields = Fields(call.body)
    data = fields.get(text, "data")
    if not data:
        raise InvalidRequest("'data' must hold the story.", param="data")
    turn = shared.replace(
        fields.get(_SENDER, "sender") or "",
        data,
        fields.get(_FORMAT, "data_format") or "",
        is_full=fields.get(boolean, "full_update") or False,
    )
    return {"success": True, **_turn_of(turn)}


def _turn_of(turn: SharedTurn) -> dict[str, Any]:
    return {
        "turn_major": turn.turn_major,
        "turn_minor": turn.turn_minor,
        "idle": turn.is_idle,
        "data_format": turn.data_format,
    }


def _not_shared() -> NaiadError:
    return Unsupported("This server shares no story; its setting 'multiplayer' is off.")
