"""Frames on a stream socket: four bytes of length, little-endian, then one msgpack message.

`FrameDecoder` does no I/O: it takes bytes cut anywhere and gives whole payloads. Two thin shells
carry it: `WorkerChannel` for threads over a blocking socket, `FrontChannel` for asyncio, where a
frame goes from the socket straight into a callback, with no task in between.

Both directions are capped, because a length that makes no sense is the first sign of a peer that
has lost its mind, and believing it would reserve gigabytes.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import cast

import msgspec

from naiad.ipc.messages import AnyCommand, AnyEvent

HEADER = struct.Struct("<I")
#: The largest payload either side sends or believes. A prompt of a million tokens takes 5 MB.
MAX_FRAME_BYTES = 64 * 1024 * 1024
READ_BYTES = 256 * 1024

_encoder = msgspec.msgpack.Encoder()
_commands: msgspec.msgpack.Decoder[AnyCommand] = msgspec.msgpack.Decoder(AnyCommand)
_events: msgspec.msgpack.Decoder[AnyEvent] = msgspec.msgpack.Decoder(AnyEvent)

#: What msgspec raises for bytes that are no message of ours.
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
#: What it raises for values that no frame can carry: lone surrogates, integers beyond 64 bits.
_UNENCODABLE = (msgspec.MsgspecError, UnicodeEncodeError, OverflowError, RecursionError)


class ChannelError(Exception):
    """The peer's bytes are no frames of ours; the channel is unusable from here on."""


class FrameRefused(ValueError):
    """A message of ours cannot be sent: over the cap or not encodable. The channel is fine."""


class FrameDecoder:
    """Bytes in, payloads out. `limit` is the largest payload believed, in bytes."""

    def __init__(self, limit: int = MAX_FRAME_BYTES) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytearray]:
        """Take bytes, cut anywhere; yield each payload that is now complete.

        The frames before a bad one are still yielded, however the bytes were cut; then it raises
        ChannelError.
        """
        self._buffer += data
        return self._payloads()

    def finish(self) -> None:
        """The peer has closed: raise ChannelError if it did so within a frame."""
        if self._buffer:
            raise ChannelError(f"the channel closed within a frame, {len(self._buffer)} bytes in")

    def _payloads(self) -> Iterator[bytearray]:
        buffer = self._buffer
        while len(buffer) >= HEADER.size:
            (size,) = HEADER.unpack_from(buffer)
            if size > self._limit:
                raise ChannelError(f"a frame of {size} bytes is over the cap of {self._limit}")
            end = HEADER.size + size
            if len(buffer) < end:
                return
            payload = buffer[HEADER.size : end]
            del buffer[:end]
            yield payload


def encode_frame(message: AnyCommand | AnyEvent, limit: int = MAX_FRAME_BYTES) -> bytearray:
    """Header and payload, ready to be written. Raises FrameRefused."""
    frame = bytearray(HEADER.size)
    try:
        _encoder.encode_into(message, frame, HEADER.size)
    except _UNENCODABLE as error:
        raise FrameRefused(f"it cannot be encoded: {error}") from error
    size = len(frame) - HEADER.size
    if size > limit:
        raise FrameRefused(f"it takes {size} bytes, and at most {limit} can be sent")
    HEADER.pack_into(frame, 0, size)
    return frame


def decode_command(payload: bytes | bytearray) -> AnyCommand:
    """What the front said. Raises ChannelError."""
    try:
        return _commands.decode(payload)
    except _UNDECODABLE as error:
        raise ChannelError(f"not a command: {error}") from error


def decode_event(payload: bytes | bytearray) -> AnyEvent:
    """What the worker said. Raises ChannelError."""
    try:
        return _events.decode(payload)
    except _UNDECODABLE as error:
        raise ChannelError(f"not an event: {error}") from error


class WorkerChannel:
    """The worker's end. One thread reads; any thread sends, and waits while the front is slow."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._writing = threading.Lock()
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)

    def send(self, event: AnyEvent) -> None:
        """Write one event, whole. Raises FrameRefused, or OSError when the front is gone."""
        self.send_bytes(encode_frame(event))

    def send_bytes(self, frame: bytes | bytearray) -> None:
        """Write bytes that are a frame already (or, in fault tests, are not)."""
        with self._writing:
            self._sock.sendall(frame)

    def commands(self) -> Iterator[AnyCommand]:
        """Each command as it comes, until the front closes. Raises ChannelError."""
        frames = FrameDecoder()
        while data := self._receive():
            for payload in frames.feed(data):
                yield decode_command(payload)
        frames.finish()

    def shut(self, how: int = socket.SHUT_RDWR) -> None:
        """End the conversation and wake the reader; the descriptor stays until close()."""
        try:
            self._sock.shutdown(how)
        except OSError:
            return  # the front has closed it already

    def close(self) -> None:
        """Give the descriptor back. Only after the reader has ended."""
        self._sock.close()

    def _receive(self) -> bytes:
        """Wait for bytes by poll: a blocked recv would be woken whenever the front reads a frame.

        (The kernel tells every sleeper on a socket that there is room to write again, and only
        poll can say that it does not care. That wake-up costs a running decode its processor.)
        """
        self._readable.poll()
        try:
            return self._sock.recv(READ_BYTES)
        except ConnectionError:
            return b""  # the front died with unread frames of ours: an end like any other


class FrontChannel(asyncio.Protocol):
    """The front's end.

    Args:
        on_event: called with each event, in order, from within the read.
        on_lost: called once when the channel is gone, with why, or None for a plain end.
    """

    def __init__(
        self,
        on_event: Callable[[AnyEvent], None],
        on_lost: Callable[[Exception | None], None],
    ) -> None:
        self._on_event = on_event
        self._on_lost = on_lost
        self._frames = FrameDecoder()
        self._fault: ChannelError | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._fault is not None:
            return
        try:
            for payload in self._frames.feed(data):
                self._on_event(decode_event(payload))
        except ChannelError as error:
            self._fault = error
            self.abort()

    def eof_received(self) -> None:
        try:
            self._frames.finish()
        except ChannelError as error:
            self._fault = self._fault or error

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost(self._fault or exc)

    def send(self, command: AnyCommand) -> None:
        """Write one command; it never waits, and a dead worker is no error here (on_lost says it).

        What can pile up is bounded by the callers: one small frame per request in flight.
        Raises FrameRefused.
        """
        frame = encode_frame(command)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    def abort(self) -> None:
        """Drop the connection now; on_lost follows."""
        if self._transport is not None:
            self._transport.abort()
