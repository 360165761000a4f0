"""The load generator against a server that says exactly what a test tells it to."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any

import pytest

from naiad.bench import scenarios
from naiad.bench.client import Client, Stream, parse_target
from naiad.bench.exchange import Exchange
from naiad.bench.figures import Summary
from naiad.bench.load import Sizes
from naiad.bench.results import Outcome
from naiad.bench.wire import Ask
from patience import PATIENCE_S

Body = dict[str, Any]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


class Peer:
    """The server's side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def hung_up(self) -> None:
        """Wait until the client has closed its side."""
        with suppress(ConnectionError):
            await self._reader.read()


Answer = Callable[[Body, Peer], Awaitable[None]]


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def event(text: str, finish: str | None = None) -> bytes:
    choice = {"delta": {"content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


class Transport(asyncio.Transport):
    """Keeps what is written; nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def abort(self) -> None:
        self.is_aborted = True


def connected(*times: float) -> tuple[Exchange, Transport]:
    clock = iter(times)
    exchange, transport = Exchange(b"GET", lambda: next(clock)), Transport()
    exchange.connection_made(transport)
    return exchange, transport


def test_every_chunk_is_stamped_when_it_arrives() -> None:
    exchange, transport = connected(1.0, 2.0, 3.0, 4.5)
    exchange.data_received(CHUNKED)
    exchange.data_received(chunk(b"data: a\n\n") + chunk(b"data: b\n\n"))
    exchange.data_received(chunk(b"data: c\n\n") + b"0\r\n\r\n")
    got = exchange.recording
    assert got.chunks == ((3.0, b"data: a\n\n"), (3.0, b"data: b\n\n"), (4.5, b"data: c\n\n"))
    assert (got.started_at, got.ended_at, got.status) == (1.0, 4.5, 200)
    assert got.outcome is Outcome.COMPLETE
    assert (transport.written, transport.is_aborted) == (b"GET", True)


def test_http_may_be_cut_anywhere() -> None:
    whole = CHUNKED + chunk(b"data: a\n\n") + b"0\r\n\r\n"
    exchange, _ = connected(*range(len(whole) + 1))
    for i in range(len(whole)):
        exchange.data_received(whole[i : i + 1])
    assert b"".join(data for _, data in exchange.recording.chunks) == b"data: a\n\n"
    assert exchange.recording.outcome is Outcome.COMPLETE


def test_without_a_length_the_connection_ends_the_answer() -> None:
    exchange, _ = connected(1.0, 2.0, 3.0)
    exchange.data_received(HEAD + b"\r\ndata: a\n\n")
    exchange.connection_lost(None)
    assert (exchange.recording.outcome, exchange.recording.ended_at) == (Outcome.COMPLETE, 3.0)


@pytest.mark.parametrize(
    ("data", "error"),
    [(CHUNKED + chunk(b"data: a"), None), (b"", None), (HEAD + b"\r\nx", OSError("reset"))],
)
def test_an_early_end_is_a_cut(data: bytes, error: Exception | None) -> None:
    exchange, _ = connected(1.0, 2.0, 3.0)
    exchange.data_received(data)
    exchange.connection_lost(error)
    assert exchange.recording.outcome is Outcome.CUT


def test_what_is_no_http_is_broken() -> None:
    exchange, _ = connected(1.0, 2.0)
    exchange.data_received(b"220 mail.example.org ESMTP\r\n")
    assert exchange.recording.outcome is Outcome.BROKEN


def test_only_the_first_end_counts() -> None:
    exchange, _ = connected(1.0, 2.0, 3.0, 4.0)
    exchange.data_received(HEAD + b"Content-Length: 2\r\n\r\nok")
    exchange.fail(Outcome.TIMEOUT, "late")
    exchange.connection_lost(None)
    assert (exchange.recording.outcome, exchange.recording.ended_at) == (Outcome.COMPLETE, 2.0)


async def test_waiting_for_events_ends_with_the_events_or_the_stream() -> None:
    exchange, _ = connected(1.0, 2.0, 3.0)
    two, nine = (asyncio.ensure_future(exchange.wait_events(n)) for n in (2, 9))
    await asyncio.sleep(0)
    exchange.data_received(CHUNKED + chunk(b"data: a\n\ndata: b\n\n"))
    await two
    assert not nine.done()
    exchange.data_received(b"0\r\n\r\n")
    await nine
    await exchange.wait_ended()


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[str]:
    """A server that reads one request per connection and lets the test answer it."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            await answer(json.loads(await reader.readexactly(length)), Peer(reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def client_for(url: str, timeout_s: float = PATIENCE_S) -> Client:
    ticks = count()
    return Client(parse_target(url, timeout_s=timeout_s), clock=lambda: float(next(ticks)))


async def echo(body: Body, peer: Peer) -> None:
    """Streams the last four words of the question, one event each."""
    parts = [event(f"{word} ") for word in body["messages"][-1]["content"].split()[-4:]]
    answer = [*parts, event("", "length"), b"data: [DONE]\n\n"]
    await peer.send(CHUNKED + b"".join(map(chunk, answer)) + b"0\r\n\r\n")


async def test_a_stream_is_asked_for_and_read() -> None:
    async with serving(echo) as url:
        got = await client_for(url).ask(Ask("say one two three four", 4))
    assert (got.text, got.n_tokens, got.finish, got.error) == (
        "one two three four ",
        4,
        "length",
        None,
    )


async def test_a_refusal_is_a_failed_stream() -> None:
    async def refuse(_body: Body, peer: Peer) -> None:
        body = b'{"error":{"message":"the queue is full"}}'
        head = f"HTTP/1.1 503 Busy\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        await peer.send(head + body)

    async with serving(refuse) as url:
        got = await client_for(url).ask(Ask("hello", 4))
    assert got.error == "HTTP 503: the queue is full"


async def test_a_silent_server_meets_the_deadline() -> None:
    asked = asyncio.Event()

    async def say_nothing(_body: Body, peer: Peer) -> None:
        asked.set()
        await peer.hung_up()

    async with serving(say_nothing) as url:
        for wait in (Stream.wait_ended, lambda stream: stream.wait_events(1)):
            async with client_for(url, timeout_s=600).open(Ask("hello", 4)) as stream:
                await asked.wait()
                stream._deadline = asyncio.get_running_loop().time()
                await wait(stream)
            assert stream.result().error == "no end within 600 s"


async def test_nobody_there_is_a_failed_stream() -> None:
    async with serving(echo) as url:
        pass
    got = await client_for(url).ask(Ask("hello", 4))
    assert got.error is not None
    assert got.error.startswith("cannot connect")


async def test_leaving_a_running_stream_hangs_up() -> None:
    hung_up = asyncio.Event()

    async def go_on(_body: Body, peer: Peer) -> None:
        await peer.send(CHUNKED + chunk(event("one")))
        await peer.hung_up()
        hung_up.set()

    async with serving(go_on) as url, client_for(url).open(Ask("hello", 4)) as stream:
        await stream.wait_events(1)
        stream.drop()
        await hung_up.wait()
    assert (stream.result().text, stream.result().error) == ("one", None)


async def run(name: str, answer: Answer, **sizes: Any) -> list[Summary]:
    ticks: list[None] = []
    chosen = Sizes(**sizes, rng=random.Random(1))
    async with serving(answer) as url:
        lines = await scenarios.SCENARIOS[name](client_for(url), chosen, lambda: ticks.append(None))
    assert len(ticks) == scenarios.num_streams(name, chosen)
    return lines


async def test_consecutive_streams_are_right_when_they_echo_their_marker() -> None:
    (line,) = await run("consecutive", echo, streams=5)
    assert (line.streams, line.failed, line.wrong, line.lumped) == (5, 0, 0, 0)
    assert line.extra["last_token_to_next_first_p50"] is not None


async def test_consecutive_shows_a_server_that_hands_out_the_previous_answer() -> None:
    previous: list[Body] = []

    async def one_behind(body: Body, peer: Peer) -> None:
        previous.append(body)
        await echo(previous[-2:][0], peer)

    (line,) = await run("consecutive", one_behind, streams=5)
    assert (line.failed, line.wrong) == (0, 4)


async def test_concurrent_streams_are_open_at_the_same_time() -> None:
    meeting = asyncio.Barrier(3)

    async def together(body: Body, peer: Peer) -> None:
        await meeting.wait()
        await echo(body, peer)

    lines = await run("concurrent", together, concurrency=(3, 6))
    assert [(line.name, line.streams, line.failed) for line in lines] == [
        ("concurrent 3", 3, 0),
        ("concurrent 6", 6, 0),
    ]


async def test_a_shared_prefix_is_the_same_in_every_request() -> None:
    systems: list[str] = []

    async def note(body: Body, peer: Peer) -> None:
        systems.append(body["messages"][0]["content"])
        await echo(body, peer)

    lines = await run("shared-prefix", note, sharers=3, prefix_tokens=50)
    assert [line.name for line in lines] == ["shared prefix, cold", "shared prefix, warm"]
    assert len(systems) == 6
    assert len(set(systems)) == 1


async def test_interference_looks_at_the_running_streams_while_the_newcomer_waits() -> None:
    running: list[Peer] = []

    async def answer(body: Body, peer: Peer) -> None:
        if body["max_tokens"] != 4000:
            for other in running:
                await other.send(chunk(event("more ")))
            return await echo(body, peer)
        running.append(peer)
        await peer.send(CHUNKED + b"".join(chunk(event("go ")) for _ in range(8)))
        return await peer.hung_up()

    alone, newcomer, streams = await run("interference", answer, running=2, long_tokens=60)
    assert [alone.failed, newcomer.failed, streams.failed] == [0, 0, 0]
    assert newcomer.extra["ttft_over_alone"] is not None
    assert (streams.streams, streams.extra["running_when_it_came"]) == (2, 2)
