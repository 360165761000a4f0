"""One request and its answer: headers, bodies, errors, in the shape of its dialect."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from naiad.dialects.base import Dialect, Media
from naiad.errors import InternalError, NaiadError

log = logging.getLogger(__name__)

HeaderList = list[tuple[bytes, bytes]]

INTERNAL_MESSAGE = "The server failed on this request; its log says why."

_SOUND_ID = re.compile(rb"[!-~]{1,128}")
_STREAM_HEADERS: HeaderList = [
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]


class ClientGone(Exception):
    """The client hung up, or stopped reading for so long that it counts as gone."""


class Exchange:
    """Reads nothing, writes one response. `has_begun` tells whether its headers are out."""

    __slots__ = ("dialect", "has_begun", "receive", "request_id", "scope", "send")

    def __init__(self, scope: Scope, receive: Receive, send: Send, dialect: Dialect) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.dialect = dialect
        self.has_begun = False
        self.request_id = secrets.token_hex(16)

    async def answer(
        self, status: int, media: str, body: bytes, headers: Iterable[tuple[bytes, bytes]] = ()
    ) -> None:
        """Send a whole response."""
        length = (b"content-length", str(len(body)).encode())
        await self._begin(status, media, [length, *headers])
        await self.send({"type": "http.response.body", "body": body})

    async def answer_json(self, value: Any, status: int = 200, headers: HeaderList = []) -> None:  # noqa: B006
        """Send a JSON value."""
        await self.answer(status, Media.JSON, msgspec.json.encode(value), headers)

    async def answer_error(self, error: NaiadError) -> None:
        """Send an error in the dialect's shape; after the headers it can only be logged."""
        status = self.dialect.error_status(error)
        if status >= 500:
            log.warning("request %s: %d %s: %s", self.request_id, status, error.code, error.message)
        if not self.has_begun:
            await self.answer_json(self._error_body(error), status, error_headers(error, status))

    async def begin_stream(self, media: Media) -> None:
        """Send the headers of a stream."""
        await self._begin(200, media, _STREAM_HEADERS)

    async def _begin(self, status: int, media: str, headers: HeaderList) -> None:
        self.has_begun = True
        head = [(b"content-type", media.encode()), (b"x-request-id", self._shown_id()), *headers]
        if self.dialect.id_header is not None:
            head.append((self.dialect.id_header.encode(), self._shown_id()))
        await self.send({"type": "http.response.start", "status": status, "headers": head})

    def _error_body(self, error: NaiadError) -> Any:
        body, name = self.dialect.error_body(error), self.dialect.id_header
        return body if name is None else {**body, name.replace("-", "_"): self._shown_id().decode()}

    def _shown_id(self) -> bytes:
        # The caller's id is echoed for its own logs; nothing of ours is ever found by it.
        sent = header(self.scope, b"x-request-id")
        if sent is not None and _SOUND_ID.fullmatch(sent):
            return sent
        return self.request_id.encode()


@asynccontextmanager
async def answering_errors(exchange: Exchange) -> AsyncIterator[None]:
    """Turn every failure inside into an error answer; nothing but cancellation gets out."""
    try:
        yield
    except ClientGone:
        log.debug("request %s: the client is gone", exchange.request_id)
    except NaiadError as error:
        await exchange.answer_error(error)
    except Exception:
        log.exception("request %s failed", exchange.request_id)
        await exchange.answer_error(InternalError(INTERNAL_MESSAGE))


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of that (lower-case) name."""
    found = headers_named(scope, name)
    return found[0] if found else None


def headers_named(scope: Scope, name: bytes) -> list[bytes]:
    """All headers of that (lower-case) name."""
    return [value for key, value in scope["headers"] if key == name]


def error_headers(error: NaiadError, status: int) -> HeaderList:
    """Headers that go with an error: when to retry, how to authenticate, what is allowed."""
    headers: HeaderList = []
    if "retry_after" in error.details:
        headers.append((b"retry-after", str(error.details["retry_after"]).encode()))
    if "limit_requests" in error.details:
        headers += _rate_headers(error)
    if status in {503, 529}:
        headers.append((b"x-should-retry", b"true"))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 405:
        headers.append((b"allow", str(error.details["allow"]).encode()))
    if status in {408, 431}:
        headers.append((b"connection", b"close"))
    return headers


def _rate_headers(error: NaiadError) -> HeaderList:
    """OpenAI's names for a limit that is used up."""
    figures = {
        "limit": str(error.details["limit_requests"]),
        "remaining": "0",
        "reset": f"{error.details['retry_after']}s",
    }
    return [
        (f"x-ratelimit-{name}-requests".encode(), value.encode()) for name, value in figures.items()
    ]
