"""Asks a server and returns what came back. Every request has a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

from naiad.bench.exchange import Clock, Exchange
from naiad.bench.results import Outcome, StreamResult, read_recording
from naiad.bench.wire import DIALECTS, Ask
from naiad.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Target:
    """The server to ask.

    timeout_s: every request's deadline, connecting included.
    """

    host: str
    port: int
    base: str = ""
    tls: bool = False
    dialect: str = "openai"
    model: str = "default"
    key: str = ""
    timeout_s: float = 300.0


def parse_target(
    url: str, *, dialect: str = "openai", model: str = "default", key: str = "", timeout_s: float
) -> Target:
    """Read a URL such as http://127.0.0.1:5001 (a trailing /v1 is taken off).

    Raises:
        ConfigError: it is no http or https URL, or there is no such dialect.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError(f"{url!r} is no http:// or https:// URL", param="url")
    if dialect not in DIALECTS:
        raise ConfigError(f"dialect must be one of {', '.join(DIALECTS)}", param="dialect")
    tls = parts.scheme == "https"
    base = parts.path.rstrip("/").removesuffix("/v1")
    port = parts.port or (443 if tls else 80)
    return Target(parts.hostname, port, base, tls, dialect, model, key, timeout_s)


def encode_request(target: Target, ask: Ask) -> bytes:
    """The request's bytes: one per connection."""
    wire = DIALECTS[target.dialect]
    body = msgspec.json.encode(wire.body(ask, target.model))
    host = f"[{target.host}]" if ":" in target.host else target.host
    lines = [
        f"POST {target.base}{wire.path} HTTP/1.1",
        f"Host: {host}:{target.port}",
        "Content-Type: application/json",
        "Accept: text/event-stream",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    if target.key:
        lines.append(f"Authorization: Bearer {target.key}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class Stream:
    """A stream that is running. Leaving `Client.open` drops it if it has not ended."""

    def __init__(self, exchange: Exchange, target: Target, ask: Ask) -> None:
        self._deadline = asyncio.get_running_loop().time() + target.timeout_s
        self._exchange = exchange
        self._target = target
        self._ask = ask

    async def wait_events(self, n: int) -> None:
        """Wait until n events have come, or the end, or the deadline."""
        await self._within_deadline(self._exchange.wait_events(n))

    async def wait_ended(self) -> None:
        """Wait for the end or the deadline."""
        await self._within_deadline(self._exchange.wait_ended())

    def drop(self) -> None:
        """Hang up without a word, as a closed browser tab does."""
        self._exchange.fail(Outcome.DROPPED)

    def result(self) -> StreamResult:
        """What the stream was. Only after its end."""
        wire = DIALECTS[self._target.dialect]
        return read_recording(self._exchange.recording, wire, self._ask.max_tokens)

    async def _within_deadline(self, waiting: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout_at(self._deadline):
                await waiting
        except TimeoutError:
            self._exchange.fail(Outcome.TIMEOUT, f"no end within {self._target.timeout_s:g} s")


class Client:
    """Opens streams on one target. The clock is monotonic seconds; tests bring their own."""

    def __init__(self, target: Target, clock: Clock = time.perf_counter) -> None:
        self.target = target
        self.clock = clock

    @asynccontextmanager
    async def open(self, ask: Ask) -> AsyncIterator[Stream]:
        """Start a stream; it is dropped on the way out unless it has ended."""
        request = encode_request(self.target, ask)
        exchange = Exchange(request, self.clock)
        stream = Stream(exchange, self.target, ask)
        await self._connect(exchange)
        try:
            yield stream
        finally:
            stream.drop()

    async def run(self, ask: Ask) -> Stream:
        """Run a stream to its end and leave it unread, so that others are not held up by that.

        Never raises for what the server or the network does.
        """
        async with self.open(ask) as stream:
            await stream.wait_ended()
        return stream

    async def ask(self, ask: Ask) -> StreamResult:
        """Run a stream to its end and read it. Raises as little as `run`."""
        return (await self.run(ask)).result()

    async def _connect(self, exchange: Exchange) -> None:
        loop = asyncio.get_running_loop()
        where = self.target
        try:
            async with asyncio.timeout(where.timeout_s):
                await loop.create_connection(
                    lambda: exchange, where.host, where.port, ssl=where.tls or None
                )
        except TimeoutError:
            exchange.fail(Outcome.TIMEOUT, f"no connection within {where.timeout_s:g} s")
        except OSError as error:
            exchange.fail(Outcome.UNREACHABLE, f"cannot connect: {error.strerror or error}")
