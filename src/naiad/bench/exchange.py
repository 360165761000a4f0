"""One HTTP exchange on a connection of its own; every chunk is stamped the moment it arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import httptools

from naiad.bench.results import Outcome, Recording, TimedBytes

Clock = Callable[[], float]


class Exchange(asyncio.Protocol):
    """Sends a request when connected and records the answer. Knows HTTP, no dialect.

    Create it just before connecting: `started_at` is read from the clock then.
    """

    def __init__(self, request: bytes, clock: Clock) -> None:
        self._request = request
        self._clock = clock
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._now = self._started_at = clock()
        self._chunks: list[TimedBytes] = []
        self._has_length = False
        self._n_events = 0
        self._recording: Recording | None = None
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._ended = asyncio.Event()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._now = self._clock()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(Outcome.BROKEN, str(error))

    def connection_lost(self, exc: Exception | None) -> None:
        self._now = self._clock()
        # Without a length or chunks, the end of the connection is the end of the answer.
        is_whole = exc is None and bool(self._status()) and not self._has_length
        self._end(Outcome.COMPLETE if is_whole else Outcome.CUT, str(exc or ""))

    # What the parser calls.

    def on_header(self, name: bytes, _value: bytes) -> None:
        self._has_length |= name.lower() in {b"content-length", b"transfer-encoding"}

    def on_body(self, body: bytes) -> None:
        self._chunks.append((self._now, body))
        self._n_events += body.count(b"data:")
        for wanted, waiter in self._waiters:
            if self._n_events >= wanted and not waiter.done():
                waiter.set_result(None)

    def on_message_complete(self) -> None:
        self._end(Outcome.COMPLETE)

    # What the client calls.

    @property
    def recording(self) -> Recording:
        """What was recorded. Only after the end."""
        assert self._recording is not None, "the exchange has not ended"
        return self._recording

    async def wait_ended(self) -> None:
        """Wait for the end, whatever it is."""
        await self._ended.wait()

    async def wait_events(self, n: int) -> None:
        """Wait until at least n events have come, or the end."""
        if self._n_events >= n or self._ended.is_set():
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append((n, waiter))
        await waiter

    def fail(self, outcome: Outcome, problem: str = "") -> None:
        """End now, for a reason of the client's own. Does nothing after the end."""
        self._now = self._clock()
        self._end(outcome, problem)

    def _status(self) -> int:
        return int(self._parser.get_status_code())

    def _end(self, outcome: Outcome, problem: str = "") -> None:
        if self._recording is not None:
            return
        chunks = tuple(self._chunks)
        self._recording = Recording(
            self._started_at, self._now, outcome, self._status(), chunks, problem
        )
        self._ended.set()
        for _, waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        if self._transport is not None:
            self._transport.abort()
