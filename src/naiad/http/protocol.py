"""uvicorn's HTTP/1.1 protocol with the limits it lacks.

Requests whose head is too large, has too many fields or does not arrive in time are refused, and so
are connections of a machine that holds too many. Clients of HTTP/1.0 get answers without chunks,
which they do not know. And a client that has sent a second request ahead (pipelining) is still
noticed when it hangs up: as it stands, uvicorn tells only the last request of a connection, and the
running one would go on.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from naiad.http.origin import is_loopback

MAX_HEAD_BYTES = 32 * 1024
MAX_HEADERS = 100
HEAD_RECEIPT_S = 30.0
MAX_PIPELINED = 8  # requests sent ahead before we stop reading


class _HeadTooLarge(Exception):
    """Leaves the parser, which then reports a broken request."""


class Guests:
    """Counts the connections of each other machine; those of this one are nobody's attack.

    limit: connections per machine, 1 or more.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: Counter[str] = Counter()

    def enter(self, host: str) -> bool:
        """Count one more; False, and nothing counted, when the machine holds all it may."""
        if is_loopback(host.removeprefix("::ffff:")):
            return True
        if self._counts[host] >= self._limit:
            return False
        self._counts[host] += 1
        return True

    def leave(self, host: str) -> None:
        """Count one less, of those that `enter` let in."""
        self._counts[host] -= 1
        if self._counts[host] <= 0:
            del self._counts[host]


class _AnyLength(int):
    """A length for which uvicorn takes any number of bytes, until the connection ends."""

    def __lt__(self, other: int) -> bool:
        return False

    def __sub__(self, other: int) -> _AnyLength:
        return self


class LimitedProtocol(HttpToolsProtocol):
    """One connection. guests: shared by all of a server."""

    def __init__(self, *args: Any, guests: Guests, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._guests = guests
        self._guest: str | None = None  # the host, once it is let in
        self._is_in_head = False  # between the first byte of a request and the end of its head
        self._n_parsed = 0  # bytes of that head that the parser has handed over
        self._n_raw = 0  # bytes received while in that head; the parser may still hold them
        self._is_too_large = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        host = self.client[0] if self.client else "localhost"
        if self._guests.enter(host):
            self._guest = host
            self._arm()
        else:
            self._refuse(503, "This machine holds all the connections that one may have.")

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        if self._guest is not None:
            self._guests.leave(self._guest)
            self._guest = None
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
        self._refuse(
            431, f"The request head is over {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} fields."
        )

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        if cycle.scope["http_version"] == "1.0":
            # It knows no chunks: the end of its answer is the end of the connection.
            cycle.keep_alive = False
            cycle.chunked_encoding = False
            cycle.expected_content_length = _AnyLength()
        super()._start_asgi_task(cycle, app)

    def _refuse(self, status: int, body: str) -> None:
        head = f"content-type: text/plain\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
        self.transport.write(STATUS_LINE[status] + f"{head}\r\n{body}".encode())
        self.transport.close()

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
