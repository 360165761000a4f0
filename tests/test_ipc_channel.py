"""Frames, cut every way; the two shells around them over real socket pairs."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.ipc.channel import (
    HEADER,
    ChannelError,
    FrameDecoder,
    FrameRefused,
    FrontChannel,
    WorkerChannel,
    decode_command,
    decode_event,
    encode_frame,
)
from naiad.ipc.messages import (
    Abort,
    Accepted,
    AnyCommand,
    AnyEvent,
    CacheTold,
    CallFailed,
    Detokenize,
    Detokenized,
    LoadFailed,
    Loading,
    LogLine,
    Ready,
    Refused,
    Shutdown,
    StepDone,
    StreamItem,
    Submit,
    Tokenize,
    Tokenized,
)
from naiad.types import CacheCounts, FinishReason, ModelInfo, SamplingParams

COMMANDS: list[AnyCommand] = [
    Submit(1, "text", None, SamplingParams(seed=2**64 - 1, logit_bias=((3, -1.5),))),
    Submit(2, [1, 2, 3], 5, SamplingParams(), "namespace"),
    Abort(7),
    Tokenize(1, "Grüße 😀", False, False),
    Detokenize(2, [1, 2]),
    Shutdown(),
]
ITEM = StreamItem(5, 0, [1], b"\xff", FinishReason.ERROR, 3, ("engine_failed", "why"))
EVENTS: list[AnyEvent] = [
    Loading(1, 0.5),
    Ready(1, ModelInfo(name="m")),
    LoadFailed(1, "model_file", "no"),
    Accepted(1, 2, 3),
    Refused(1, 2, "code", "why", {"n_ctx": 5}),
    StepDone(1, 9, [ITEM, StreamItem(6, 4, [], b"")]),
    CacheTold(1, CacheCounts(n_saved=3, n_bytes_on_disk=1 << 40)),
    Tokenized(1, 1, [1]),
    Detokenized(1, 2, b"\xf0"),
    CallFailed(1, 3, "code", "why"),
    LogLine(1, "info", "naiad", "text"),
]


def frame(payload: bytes) -> bytes:
    return HEADER.pack(len(payload)) + payload


def decoded(chunks: list[bytes]) -> list[bytes]:
    decoder = FrameDecoder()
    found = [bytes(payload) for chunk in chunks for payload in decoder.feed(chunk)]
    decoder.finish()
    return found


payloads_st = st.lists(st.binary(max_size=40), max_size=6)


class TestFrameDecoder:
    @given(payloads=payloads_st)
    def test_whole_and_byte_by_byte(self, payloads: list[bytes]) -> None:
        data = b"".join(map(frame, payloads))
        assert decoded([data]) == payloads
        assert decoded([data[i : i + 1] for i in range(len(data))]) == payloads

    @given(payloads=payloads_st, cuts=st.lists(st.integers(0, 300), max_size=8))
    def test_cut_anywhere(self, payloads: list[bytes], cuts: list[int]) -> None:
        data = b"".join(map(frame, payloads))
        edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
        chunks = [data[a:b] for a, b in itertools.pairwise(edges)]
        assert decoded(chunks) == payloads

    @given(payloads=payloads_st, tail=st.binary(min_size=1, max_size=3))
    def test_half_a_header_at_the_end(self, payloads: list[bytes], tail: bytes) -> None:
        decoder = FrameDecoder()
        assert list(decoder.feed(b"".join(map(frame, payloads)) + tail)) == payloads
        with pytest.raises(ChannelError, match="within a frame"):
            decoder.finish()

    def test_half_a_payload_at_the_end(self) -> None:
        decoder = FrameDecoder()
        assert list(decoder.feed(frame(b"whole") + frame(b"half")[:-1])) == [b"whole"]
        with pytest.raises(ChannelError, match="7 bytes in"):
            decoder.finish()

    @given(cut=st.integers(0, 16))
    def test_frames_before_an_oversize_one_come_out(self, cut: int) -> None:
        data = frame(b"good") + HEADER.pack(101) + b"xxxx"
        decoder = FrameDecoder(limit=100)
        found: list[bytes] = []
        with pytest.raises(ChannelError, match="101 bytes is over the cap of 100"):
            for chunk in (data[:cut], data[cut:]):
                found += map(bytes, decoder.feed(chunk))
        assert found == [b"good"]

    def test_text_on_the_channel_is_an_oversize_frame(self) -> None:
        with pytest.raises(ChannelError):
            list(FrameDecoder().feed(b"GGML_ASSERT(false) failed"))

    def test_bytes_are_taken_even_when_nobody_looks(self) -> None:
        decoder = FrameDecoder()
        decoder.feed(frame(b"a"))
        assert list(decoder.feed(b"")) == [b"a"]


class TestMessages:
    @pytest.mark.parametrize("command", COMMANDS, ids=lambda c: type(c).__name__)
    def test_commands_come_back_as_they_went(self, command: AnyCommand) -> None:
        assert decode_command(encode_frame(command)[HEADER.size :]) == command

    @pytest.mark.parametrize("event", EVENTS, ids=lambda e: type(e).__name__)
    def test_events_come_back_as_they_went(self, event: AnyEvent) -> None:
        assert decode_event(encode_frame(event)[HEADER.size :]) == event

    @given(payload=st.binary(max_size=60))
    def test_any_bytes_decode_or_raise_our_error(self, payload: bytes) -> None:
        for decode in (decode_command, decode_event):
            try:
                decode(payload)
            except ChannelError:
                continue

    def test_a_command_is_no_event(self) -> None:
        with pytest.raises(ChannelError, match="not an event"):
            decode_event(encode_frame(Abort(1))[HEADER.size :])

    def test_the_cap_holds_for_what_we_send(self) -> None:
        with pytest.raises(FrameRefused, match="at most 50"):
            encode_frame(Tokenize(1, "x" * 60), limit=50)

    @pytest.mark.parametrize("command", [Tokenize(1, "\ud800"), Abort(2**70)])
    def test_what_no_frame_can_carry_is_refused(self, command: AnyCommand) -> None:
        with pytest.raises(FrameRefused):
            encode_frame(command)


class TestWorkerChannel:
    @pytest.fixture
    def ends(self) -> Iterator[tuple[WorkerChannel, socket.socket]]:
        ours, theirs = socket.socketpair()
        channel = WorkerChannel(ours)
        yield channel, theirs
        theirs.close()
        channel.close()

    def test_commands_until_the_end(self, ends: tuple[WorkerChannel, socket.socket]) -> None:
        channel, front = ends
        for command in COMMANDS:
            front.sendall(encode_frame(command))
        front.shutdown(socket.SHUT_WR)
        assert list(channel.commands()) == COMMANDS

    def test_an_end_within_a_frame(self, ends: tuple[WorkerChannel, socket.socket]) -> None:
        channel, front = ends
        front.sendall(encode_frame(Abort(1)) + b"\x09")
        front.shutdown(socket.SHUT_WR)
        commands = channel.commands()
        assert next(commands) == Abort(1)
        with pytest.raises(ChannelError):
            next(commands)

    def test_a_front_that_died_with_unread_frames_is_a_plain_end(
        self, ends: tuple[WorkerChannel, socket.socket]
    ) -> None:
        channel, front = ends
        channel.send(Loading(1, 0.0))
        front.close()
        assert list(channel.commands()) == []
        with pytest.raises(OSError, match="Broken pipe"):
            channel.send(Loading(1, 0.1))
        channel.shut()


class Front:
    """A FrontChannel on one end of a pair, and what it said."""

    def __init__(self) -> None:
        self.events: list[AnyEvent] = []
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.channel = FrontChannel(self.events.append, self.lost.set_result)

    async def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self.channel, sock=ours)
        return theirs


class TestFrontChannel:
    async def test_events_then_a_plain_end(self) -> None:
        front = Front()
        with await front.connect() as worker:
            for event in EVENTS:
                worker.sendall(encode_frame(event))
        assert await front.lost is None
        assert front.events == EVENTS

    @pytest.mark.parametrize(
        "bad",
        [HEADER.pack(2**31), frame(b"\xc1junk"), frame(b""), frame(msgspec.msgpack.encode([1]))],
        ids=["oversize", "junk", "empty", "no message"],
    )
    async def test_a_bad_frame_ends_it_at_once(self, bad: bytes) -> None:
        front = Front()
        with await front.connect() as worker:
            worker.sendall(encode_frame(EVENTS[0]) + bad + encode_frame(EVENTS[1]))
            assert isinstance(await front.lost, ChannelError)
        assert front.events == EVENTS[:1]

    async def test_half_a_frame_then_the_end(self) -> None:
        front = Front()
        with await front.connect() as worker:
            worker.sendall(encode_frame(EVENTS[0])[:-1])
        assert isinstance(await front.lost, ChannelError)

    async def test_commands_arrive_and_after_the_end_are_dropped(self) -> None:
        front = Front()
        with await front.connect() as worker:
            front.channel.send(Abort(3))
            assert list(take(worker, 1)) == [Abort(3)]
        await front.lost
        front.channel.send(Abort(4))


def take(sock: socket.socket, n: int) -> Iterator[Any]:
    commands = WorkerChannel(sock).commands()
    return (next(commands) for _ in range(n))
