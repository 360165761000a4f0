"""A throw-away dialect: telegrams. All that a dialect needs, in one file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from naiad.dialects.base import (
    Access,
    Backend,
    Call,
    Dialect,
    Formatter,
    Media,
    Operation,
    Parsed,
)
from naiad.dialects.fields import Fields, boolean, integer, text
from naiad.dialects.framing import ndjson, to_line
from naiad.errors import InternalError, NaiadError
from naiad.types import (
    Completion,
    Finished,
    GenerateRequest,
    ModelInfo,
    Progress,
    Started,
    TextDelta,
    TextPrompt,
)


class TelegramFormatter(Formatter):
    """Lines of words; STOP at the end, as in telegrams."""

    media = Media.NDJSON

    def open(self, started: Started) -> bytes:
        return ndjson(to_line({"paid_for": started.n_prompt}))

    def progress(self, progress: Progress) -> bytes:
        return self.heartbeat()

    def delta(self, delta: TextDelta) -> bytes:
        return ndjson(to_line({"words": delta.text.upper()}))

    def close(self, finished: Finished) -> bytes:
        if finished.error is not None:
            return ndjson(to_line(error_body(finished.error)))
        return ndjson(to_line({"words": "STOP", "why": str(finished.reason)}))

    def heartbeat(self) -> bytes:
        return ndjson(to_line({"words": ""}))

    def whole(self, completion: Completion) -> Any:
        return {"words": f"{completion.text.upper()} STOP"}


def error_body(error: NaiadError) -> Any:
    return {"returned_to_sender": error.message}


def parse(body: Mapping[str, Any], _model: ModelInfo) -> Parsed:
    """POST /telegram. An answer by wire."""
    fields = Fields(body)
    request = GenerateRequest(
        prompt=TextPrompt(fields.need(text, "message")),
        max_tokens=fields.get(integer(1, 100), "at_most"),
        stream=fields.get(boolean, "piecemeal") or False,
    )
    return Parsed(request, TelegramFormatter(), tuple(fields.unread()))


async def price(backend: Backend, call: Call) -> Any:
    """GET /telegram/price. What a message costs."""
    words = call.query.get("message")
    if words is None:
        raise InternalError("No price without a message.")
    return {"pence": len(await backend.tokenize(words))}


DIALECT = Dialect(
    name="telegram",
    operations=(
        Operation("POST", "/telegram", Access.USER, parse=parse),
        Operation("GET", "/telegram/price", Access.PUBLIC, handle=price),
    ),
    error_body=error_body,
    prefixes=("/telegram",),
)
