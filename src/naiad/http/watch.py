"""The client's side of a running request: has it hung up, is it reading, has it heard from us?

Two objects. A Line writes a stream and knows when it last did. A ClientWatch runs beside the work
of one request, in one task of its own, and wakes only when the client hangs up or the line has
been silent for a whole heartbeat: nothing here costs anything per token.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Protocol

from naiad.dialects.base import Media
from naiad.dialects.framing import SSE_PING
from naiad.http.exchange import ClientGone, Exchange


class Speaks(Protocol):
    """What a line needs of a formatter."""

    media: Media

    def heartbeat(self) -> bytes: ...


class Relayed:
    """Of an event stream whose events come from elsewhere."""

    def __init__(self, media: Media) -> None:
        self.media = media

    def heartbeat(self) -> bytes:
        """A comment."""
        return SSE_PING


class Line:
    """A streamed response. Every write is on its way to the client when it returns."""

    __slots__ = (
        "_exchange", "_formatter", "_send", "_time",
        "is_busy", "is_open", "last_write", "may_begin",
    )  # fmt: skip

    def __init__(self, exchange: Exchange, formatter: Speaks | None = None) -> None:
        """formatter: None for an answer that will not be streamed."""
        self._exchange = exchange
        self._formatter = formatter
        self._send = exchange.send
        self._time = asyncio.get_running_loop().time
        self.is_open = False  # headers sent, end not sent
        self.is_busy = False  # waiting for the client to read
        self.may_begin = False  # the first heartbeat may bring the headers
        self.last_write = self._time()

    async def begin(self) -> None:
        """Send the headers, unless they are out."""
        assert self._formatter is not None
        if not self._exchange.has_begun:
            await self._exchange.begin_stream(self._formatter.media)
            self.is_open = True

    async def write(self, data: bytes) -> None:
        """Send an event. Waits while the client is slow, so that nothing piles up here."""
        if not data:
            return
        self.is_busy = True
        self.last_write = self._time()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self.is_busy = False

    async def end(self, data: bytes) -> None:
        """Send the last event and end the response."""
        self.is_open = False
        self.is_busy = True
        self.last_write = self._time()
        await self._send({"type": "http.response.body", "body": data, "more_body": False})
        self.is_busy = False

    async def beat(self) -> None:
        """Send a heartbeat, and before the first event the headers."""
        if self._formatter is not None:
            await self.begin()
            await self.write(self._formatter.heartbeat())


class ClientWatch:
    """Cancels the work inside the context when the client is gone; leaving raises ClientGone then.

    heartbeat_s: longest silence of an open line, seconds; 0 or less for no heartbeats.
    stalled_s: a client that takes no byte for this long is gone; more than 0.
    """

    def __init__(
        self, exchange: Exchange, line: Line, heartbeat_s: float, stalled_s: float
    ) -> None:
        self._receive = exchange.receive
        self._line = line
        self._heartbeat_s = heartbeat_s if heartbeat_s > 0 else stalled_s
        self._stalled_s = stalled_s
        self._can_beat = heartbeat_s > 0
        self._time = asyncio.get_running_loop().time
        self._is_gone = False

    async def __aenter__(self) -> None:
        owner = asyncio.current_task()
        assert owner is not None
        self._owner = owner
        self._n_cancels = owner.cancelling()
        self._task = asyncio.create_task(self._watch())

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
        if self._is_gone and self._owner.uncancel() <= self._n_cancels:
            raise ClientGone from None
        if not self._task.cancelled():
            self._task.result()

    async def _watch(self) -> None:
        while not await self._has_hung_up():
            line = self._line
            silent_s = self._time() - line.last_write
            if line.is_busy and silent_s >= self._stalled_s:
                break
            if self._can_beat and self._is_due(silent_s) and not await self._beat():
                break
        self._is_gone = True
        self._owner.cancel()

    async def _has_hung_up(self) -> bool:
        """Wait for the hang-up, or until the line may have to be looked at."""
        try:
            async with asyncio.timeout(self._patience_s()):
                while (await self._receive())["type"] != "http.disconnect":
                    pass
                return True
        except TimeoutError:
            return False

    def _patience_s(self) -> float:
        line = self._line
        if not line.is_open and not line.is_busy:
            return self._heartbeat_s
        limit_s = self._stalled_s if line.is_busy else self._heartbeat_s
        return max(0.001, line.last_write + limit_s - self._time())

    def _is_due(self, silent_s: float) -> bool:
        line = self._line
        can_write = line.is_open or line.may_begin
        return can_write and not line.is_busy and silent_s >= self._heartbeat_s

    async def _beat(self) -> bool:
        try:
            async with asyncio.timeout(self._stalled_s):
                await self._line.beat()
        except TimeoutError:
            return False
        return True
