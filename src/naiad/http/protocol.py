"""uvicorn's HTTP/1.1 protocol with the limits it lacks.

Requests whose head is too large, has too many fields or does not arrive in time are refused. And a
client that has sent a second request ahead (pipelining) is still noticed when it hangs up: as it
stands, uvicorn tells only the last request of a connection, and the running one would go on.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

MAX_HEAD_BYTES = 32 * 1024
MAX_HEADERS = 100
HEAD_RECEIPT_S = 30.0
MAX_PIPELINED = 8  # requests sent ahead before we stop reading


class _HeadTooLarge(Exception):
    """Leaves the parser, which then reports a broken request."""


class LimitedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_in_head = False  # between the first byte of a request and the end of its head
        self._n_parsed = 0  # bytes of that head that the parser has handed over
        self._n_raw = 0  # bytes received while in that head; the parser may still hold them
        self._is_too_large = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self.pipeline.clear()
        running = self._running
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        was_in_head = self._is_in_head
        super().data_received(data)
        if self.transport.is_closing():
            return
        if was_in_head and self._is_in_head:
            self._n_raw += len(data)
            if self._n_raw > MAX_HEAD_BYTES:
                self._is_too_large = True
                self.send_400_response("")
        if self._head_timer is None and (self._is_in_head or not self._is_answering()):
            self._arm()  # the next request, or the rest of one that was refused, takes its time

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = True
        self._n_parsed = self._n_raw = 0

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._disarm()
        super().on_headers_complete()
        if 0 < len(self.pipeline) <= MAX_PIPELINED:
            self.flow.resume_reading()  # or a hang-up would not be seen

    def send_400_response(self, msg: str) -> None:
        if not self._is_too_large:
            super().send_400_response(msg)
            return
        body = f"The request head is over {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} fields."
        head = f"content-type: text/plain\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
        self.transport.write(STATUS_LINE[431] + f"{head}\r\n{body}".encode())
        self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _count(self, n_bytes: int) -> None:
        self._n_parsed += n_bytes
        if self._n_parsed > MAX_HEAD_BYTES or len(self.headers) >= MAX_HEADERS:
            self._is_too_large = True
            raise _HeadTooLarge

    def _is_answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # none before the first request
        return cycle is not None and not cycle.response_complete

    def _arm(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_RECEIPT_S, self._give_up)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self.transport.close()
