"""Two ways to talk to the app in tests: ASGI by hand, and HTTP over a real loopback socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.types import ASGIApp, Message

from fakes import FAKE, FakeEngine, make_service
from naiad.config import Config
from naiad.http.app import build_app
from naiad.http.serve import Server, bind
from naiad.service.service import Service
from patience import PATIENCE_S

LOCAL = [("host", "localhost:5001")]


def fake_app(engine: FakeEngine, **config: Any) -> ASGIApp:
    """The app with the fake dialect alone."""
    settings = Config(max_queue=2, **config)
    return build_app(make_service(engine, settings), settings, [FAKE], lambda path: FAKE)


@dataclass
class Answer:
    """What an app sent."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)
    is_complete: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def value(self) -> Any:
        return msgspec.json.decode(self.body)

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {k.decode(): v.decode() for k, v in message["headers"]}
        else:
            assert self.status
            assert not self.is_complete
            self.pieces.append(message.get("body", b""))
            self.is_complete = not message.get("more_body", False)


class Connection:
    """One request by hand: the test feeds the body and hangs up when it likes."""

    def __init__(
        self, app: ASGIApp, method: str, path: str, headers: list[tuple[str, str]] = LOCAL
    ) -> None:
        self.app = app
        self.answer = Answer()
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        path, _, query = path.partition("?")
        self.scope: dict[str, Any] = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers],
            "client": ("127.0.0.1", 1234),
        }

    def feed(self, body: bytes, *, more: bool = False) -> None:
        self._incoming.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def hang_up(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def run(self) -> Answer:
        async with asyncio.timeout(PATIENCE_S):
            await self.app(self.scope, self._incoming.get, self.answer.take)
        return self.answer


async def ask(
    app: ASGIApp,
    method: str,
    path: str,
    body: Any = None,
    headers: list[tuple[str, str]] = LOCAL,
) -> Answer:
    """One request from beginning to end."""
    connection = Connection(app, method, path, headers)
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    connection.feed(data)
    return await connection.run()


@asynccontextmanager
async def serving(app: ASGIApp, service: Service, max_per_host: int = 256) -> AsyncIterator[int]:
    """The app behind a real socket, in this loop; gives the port."""
    sock = bind("127.0.0.1", 0)
    server = Server(app, service, max_per_host)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(server.serve([sock]))
        try:
            yield sock.getsockname()[1]
        finally:
            server.stop()
            await task


def http(path: str, body: bytes | None = None, extra: str = "", method: str = "") -> bytes:
    """The bytes of a request."""
    head = f"{method or ('GET' if body is None else 'POST')} {path} HTTP/1.1\r\nHost: localhost\r\n"
    if body is not None:
        head += f"Content-Length: {len(body)}\r\n"
    return f"{head}{extra}\r\n".encode() + (body or b"")


class Wire:
    """A client's end of a real connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next answer."""
        async with asyncio.timeout(PATIENCE_S):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = (line.split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), {name.lower(): value for name, value in pairs}

    async def chunk(self) -> bytes:
        """The next chunk of a streamed answer; b"" for the last one."""
        async with asyncio.timeout(PATIENCE_S):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """A whole answer, streamed or not."""
        status, headers = await self.head()
        if headers.get("transfer-encoding") != "chunked":
            return status, headers, await self.reader.readexactly(int(headers["content-length"]))
        body = b""
        while piece := await self.chunk():
            body += piece
        return status, headers, body

    async def is_closed(self) -> bool:
        """Wait for the server to close this connection."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.read() == b""

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Hang up the hard way."""
        self.writer.transport.abort()


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Wire]:
    wire = Wire(*await asyncio.open_connection("127.0.0.1", port))
    try:
        yield wire
    finally:
        wire.close()
