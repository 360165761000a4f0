"""End to end over a real loopback socket: hang-ups, slow readers, kept and shared connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from fakes import FAKE, FakeEngine, FakeStream, decode, make_service, silent
from http_client import connected, http, serving
from naiad.config import Config
from naiad.http import protocol
from naiad.http.app import build_app
from naiad.service.service import Service
from naiad.types import FinishReason
from patience import PATIENCE_S

GENERATE = "/fake/generate"
STREAM = b'{"prompt": "hey", "stream": true}'
WHOLE = b'{"prompt": "hey"}'


def parts(engine: FakeEngine, **config: Any) -> tuple[ASGIApp, Service]:
    settings = Config(max_queue=10, **config)
    service = make_service(engine, settings)
    return build_app(service, settings, [FAKE], lambda path: FAKE), service


@asynccontextmanager
async def server(engine: FakeEngine, **config: Any) -> AsyncIterator[int]:
    app, service = parts(engine, **config)
    async with serving(app, service) as port:
        yield port


async def test_tokens_arrive_one_by_one_and_the_connection_lives_on() -> None:
    engine = FakeEngine(silent)
    async with server(engine) as port, connected(port) as wire:
        for uid in (1, 2):
            await wire.send(http(GENERATE, STREAM))
            status, headers = await wire.head()
            assert (status, headers["content-type"]) == (200, "text/event-stream")
            assert "server" not in headers
            assert "date" in headers
            assert await wire.chunk() == b"open 3\n"
            for text in ("a", "語"):
                engine.streams[uid].put(text)
                assert await wire.chunk() == f"delta {text}\n".encode()
            engine.streams[uid].end(FinishReason.LENGTH)
            assert await wire.chunk() == b"close length -\n"
            assert await wire.chunk() == b""
        await wire.send(http("/ping"))
        assert (await wire.answer())[0] == 200


@pytest.mark.parametrize("way", ["close", "reset"])
@pytest.mark.parametrize("body", [STREAM, WHOLE])
@pytest.mark.parametrize("phase", ["queue", "prefill", "decode"])
async def test_a_hang_up_aborts_exactly_once(phase: str, body: bytes, way: str) -> None:
    engine = FakeEngine(silent)
    if phase == "queue":
        engine.gate.clear()
    async with server(engine) as port, connected(port) as wire:
        await wire.send(http(GENERATE, body))
        if phase == "queue":
            await engine.until(lambda: engine.n_waiting == 1)
        else:
            await engine.until(lambda: bool(engine.streams))
        if phase == "decode":
            engine.streams[1].put("text")
        if phase == "decode" and body == STREAM:
            await wire.head()
        getattr(wire, way)()
        if phase == "queue":
            await engine.until(lambda: engine.n_waiting == 0)
            assert engine.streams == {}
        else:
            await engine.until(lambda: bool(engine.aborted))
    assert engine.aborted == ([] if phase == "queue" else [1])


async def test_a_client_that_shuts_only_its_side_counts_as_gone() -> None:
    engine = FakeEngine(silent)
    async with server(engine) as port, connected(port) as wire:
        await wire.send(http(GENERATE, STREAM))
        await engine.until(lambda: bool(engine.streams))
        wire.writer.write_eof()
        await engine.until(lambda: engine.aborted == [1])


async def test_one_hang_up_disturbs_no_other_stream() -> None:
    engine = FakeEngine(silent)
    async with server(engine) as port, connected(port) as leaving, connected(port) as staying:
        for wire in (leaving, staying):
            await wire.send(http(GENERATE, STREAM))
            await wire.head()
        leaving.reset()
        await engine.until(lambda: engine.aborted == [1])
        engine.streams[2].put("mine")
        engine.streams[2].end(FinishReason.STOP)
        assert [await staying.chunk() for _ in range(3)] == [
            b"open 3\n",
            b"delta mine\n",
            b"close stop -\n",
        ]


async def test_a_client_that_does_not_read_costs_bounded_memory() -> None:
    """The front stops taking from the mailbox, which merges; the text arrives whole later."""
    engine = FakeEngine(silent)
    async with server(engine) as port, connected(port) as wire:
        await wire.send(http(GENERATE, STREAM))
        await wire.head()
        wire.reader._transport.pause_reading()  # type: ignore[attr-defined]
        stream = engine.streams[1]
        n_puts = 0
        while stream.most_merged < 50:
            stream.put("x" * 10_000)
            n_puts += 1
            await asyncio.sleep(0)
            assert n_puts < 5000, "the front takes whatever comes"
        wire.reader._transport.resume_reading()  # type: ignore[attr-defined]
        stream.end(FinishReason.STOP)
        body = b""
        while piece := await wire.chunk():
            body += piece
    assert body.count(b"x") == n_puts * 10_000
    assert body.count(b"close stop -\n") == 1


async def test_after_an_aborted_stream_the_connection_is_as_good_as_new() -> None:
    engine = FakeEngine(silent)
    async with server(engine) as port, connected(port) as wire, connected(port) as other:
        await wire.send(http(GENERATE, STREAM))
        await wire.head()
        await other.send(http("/fake/abort", b""))
        assert decode((await other.answer())[2]) == {"done": True}
        assert await wire.chunk() == b"open 3\n"
        assert await wire.chunk() == b"close cancelled -\n"
        assert await wire.chunk() == b""
        engine.script = echo_all
        await wire.send(http(GENERATE, WHOLE))
        assert decode((await wire.answer())[2])["text"] == "hey"


def echo_all(stream: FakeStream) -> None:
    stream.put(str(stream.job.prompt))
    stream.end(FinishReason.STOP)


async def test_requests_sent_ahead_are_answered_in_order() -> None:
    async with server(FakeEngine()) as port, connected(port) as wire:
        bodies = [b'{"prompt": "%d"}' % i for i in range(5)]
        await wire.send(b"".join(http(GENERATE, body) for body in bodies))
        texts = [decode((await wire.answer())[2])["text"] for _ in bodies]
    assert texts == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("body", [STREAM, WHOLE])
async def test_a_hang_up_is_seen_behind_a_request_sent_ahead(body: bytes) -> None:
    engine = FakeEngine(silent)
    async with server(engine) as port, connected(port) as wire:
        await wire.send(http(GENERATE, body) + http(GENERATE, body))
        await engine.until(lambda: bool(engine.streams))
        wire.close()
        await engine.until(lambda: engine.aborted == [1])
    assert list(engine.streams) == [1], "the one sent ahead was never started"


async def test_a_body_in_chunks() -> None:
    async with server(FakeEngine()) as port, connected(port) as wire:
        await wire.send(http(GENERATE, None, "Transfer-Encoding: chunked\r\n", "POST"))
        for part in (b'{"pro', b'mpt": "', b'hey"}'):
            await wire.send(b"%x\r\n%s\r\n" % (len(part), part))
        await wire.send(b"0\r\n\r\n")
        status, _, body = await wire.answer()
    assert (status, decode(body)["text"]) == (200, "hey")


async def test_a_body_of_100_mb_is_refused_and_not_kept() -> None:
    """Declared: refused at once. In chunks: refused as it passes the limit."""
    async with server(FakeEngine(), max_body_bytes=1_000_000) as port:
        async with connected(port) as wire:
            head = f"Content-Length: {100_000_000}\r\nExpect: 100-continue\r\n"
            await wire.send(http(GENERATE, None, head, "POST"))
            assert (await wire.answer())[0] == 413
        async with connected(port) as wire:
            await wire.send(http(GENERATE, None, "Transfer-Encoding: chunked\r\n", "POST"))
            for _ in range(100):
                await wire.send(b"%x\r\n%s\r\n" % (1_000_000, b"x" * 1_000_000))
            await wire.send(b"0\r\n\r\n")
            assert (await wire.answer())[0] == 413
            await wire.send(http(GENERATE, WHOLE))
            assert (await wire.answer())[0] == 200, "the rest was read and dropped"


async def test_a_body_that_is_cut_off_starts_nothing() -> None:
    engine = FakeEngine()
    async with server(engine) as port, connected(port) as wire, connected(port) as other:
        await wire.send(http(GENERATE, WHOLE)[:-3])
        wire.close()
        await other.send(http(GENERATE, WHOLE))
        assert (await other.answer())[0] == 200
    assert len(engine.streams) == 1


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nBroken\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_no_http_is_refused_and_disturbs_nobody(garbage: bytes) -> None:
    async with server(FakeEngine()) as port, connected(port) as wire, connected(port) as other:
        await wire.send(garbage)
        status, _ = await wire.head()
        assert 400 <= status < 500
        await other.send(http("/ping"))
        assert (await other.answer())[0] == 200


@pytest.mark.parametrize(
    "head",
    [
        "X-Large: " + "x" * protocol.MAX_HEAD_BYTES + "\r\n",
        "".join(f"X-{i}: 1\r\n" for i in range(protocol.MAX_HEADERS + 1)),
        "".join(f"X-{i}: {'x' * 5000}\r\n" for i in range(8)),
    ],
)
async def test_a_head_that_is_too_large_is_refused(head: str) -> None:
    async with server(FakeEngine()) as port, connected(port) as wire:
        await wire.send(http("/ping", extra=head))
        assert (await wire.head())[0] == 431


class Sink(asyncio.Transport):
    """Keeps what is written, and whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_shut = False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.is_shut = True

    def is_closing(self) -> bool:
        return self.is_shut


async def test_a_header_without_an_end_is_not_collected() -> None:
    config = uvicorn.Config(silent_app, http=protocol.LimitedProtocol, log_config=None)
    connection = protocol.LimitedProtocol(config, ServerState(), {}, guests=protocol.Guests(1))
    sink = Sink()
    connection.connection_made(sink)
    connection.data_received(b"GET / HTTP/1.1\r\nX: ")
    n_pieces = 0
    while not sink.is_shut:
        connection.data_received(b"x" * 1000)
        n_pieces += 1
    connection.connection_lost(None)
    assert n_pieces == protocol.MAX_HEAD_BYTES // 1000 + 1
    assert sink.written.startswith(b"HTTP/1.1 431 ")


async def silent_app(scope: Any, receive: Any, send: Any) -> None:
    """Never reached."""


async def test_a_large_path_is_refused_and_a_large_body_is_no_head() -> None:
    async with server(FakeEngine()) as port, connected(port) as wire:
        body = b'{"prompt": "%s"}' % (b"x" * 100_000)
        await wire.send(http(GENERATE, body))
        assert (await wire.answer())[0] == 200
        await wire.send(http("/" + "x" * protocol.MAX_HEAD_BYTES))
        assert (await wire.head())[0] == 431


@pytest.mark.parametrize("sent", [b"", b"GET / HTT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
async def test_a_head_that_does_not_arrive_is_given_up(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_RECEIPT_S", 0.01)
    async with server(FakeEngine()) as port, connected(port) as wire:
        with contextlib.suppress(ConnectionError):  # given up before it was sent, or while it was
            await wire.send(sent)
            assert await wire.is_closed()


async def test_a_running_stream_has_no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever timer its head had is cancelled; a short one might be over before the head came."""
    timers: list[asyncio.TimerHandle | None] = []
    arm = protocol.LimitedProtocol._arm

    def noting(connection: protocol.LimitedProtocol) -> None:
        arm(connection)
        timers.append(connection._head_timer)

    monkeypatch.setattr(protocol.LimitedProtocol, "_arm", noting)
    engine = FakeEngine(silent)
    async with server(engine, heartbeat_s=0.02) as port, connected(port) as wire:
        await wire.send(http(GENERATE, STREAM))
        await wire.head()
        assert [await wire.chunk() for _ in range(3)] == [b"open 3\n", b"beat\n", b"beat\n"]
        assert [timer is not None and timer.cancelled() for timer in timers] == [True]


@pytest.mark.parametrize("body", [STREAM, WHOLE])
async def test_an_http_1_0_client_gets_no_chunks_and_the_end_of_the_connection(
    body: bytes,
) -> None:
    async with server(FakeEngine()) as port, connected(port) as wire:
        await wire.send(http(GENERATE, body).replace(b"HTTP/1.1", b"HTTP/1.0"))
        status, headers = await wire.head()
        assert status == 200
        assert "transfer-encoding" not in headers
        assert headers["connection"] == "close"
        async with asyncio.timeout(PATIENCE_S):
            text = await wire.reader.read()
    whole = b'{"text":"hey","reason":"stop"}'
    assert text == (whole if body == WHOLE else b"open 3\ndelta hey\nclose stop -\n")


async def test_a_machine_may_hold_so_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "is_loopback", lambda host: False)
    app, service = parts(FakeEngine())
    async with (
        serving(app, service, max_per_host=2) as port,
        connected(port) as first,
        connected(port) as second,
    ):
        for wire in (first, second):
            await wire.send(http("/ping"))
            assert (await wire.answer())[0] == 200
        async with connected(port) as third:
            status, headers, _ = await third.answer()
            assert (status, headers["connection"]) == (503, "close")
        await first.send(http("/ping", extra="Connection: close\r\n"))
        await first.answer()
        assert await first.is_closed()  # and the server has let it go before it closed it
        async with connected(port) as fourth:
            await fourth.send(http("/ping"))
            assert (await fourth.answer())[0] == 200


def test_connections_are_counted_by_machine_but_not_this_ones_own() -> None:
    guests = protocol.Guests(1)
    assert guests.enter("192.0.2.1")
    assert not guests.enter("192.0.2.1")
    assert guests.enter("192.0.2.2")
    assert all(guests.enter(own) for own in ("127.0.0.1", "::1", "::ffff:127.0.0.1") * 3)
    guests.leave("127.0.0.1")
    guests.leave("192.0.2.1")
    assert guests.enter("192.0.2.1")


async def test_many_streams_at_once_keep_their_own_text() -> None:
    engine = FakeEngine(silent)
    n_streams = 12

    async def one(port: int, i: int) -> bytes:
        async with connected(port) as wire:
            await wire.send(http(GENERATE, b'{"prompt": "%d", "stream": true}' % i))
            return (await wire.answer())[2]

    async with server(engine) as port, asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(port, i)) for i in range(n_streams)]
        await engine.until(lambda: len(engine.streams) == n_streams)
        for k in range(20):
            for stream in engine.streams.values():
                stream.put(f"<{stream.job.prompt}.{k}>")
            await asyncio.sleep(0)
        for stream in engine.streams.values():
            stream.end(FinishReason.STOP)
    for i, task in enumerate(tasks):
        text = task.result().decode().replace("\ndelta ", "").replace("delta ", "")
        expected = "".join(f"<{i}.{k}>" for k in range(20))
        assert expected in text.replace("\n", "")
        assert text.count("close stop") == 1
