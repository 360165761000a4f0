"""The socket, the signals and the end of the server."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from typing import Any

import pytest

from fakes import FAKE, FakeEngine, make_service, silent
from http_client import connected, http
from naiad.config import Config
from naiad.errors import ConfigError, ModelFileError
from naiad.http import serve as module
from naiad.http.app import build_app
from naiad.http.serve import Server, bind, run, serve
from naiad.service.service import Service
from naiad.types import FinishReason
from patience import PATIENCE_S

STREAM = b'{"prompt": "hey", "stream": true}'


def build(engine: FakeEngine) -> tuple[Any, Service, Config]:
    config = Config(max_queue=2)
    service = make_service(engine, config)
    return build_app(service, config, [FAKE], lambda path: FAKE), service, config


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def test_a_port_in_use_is_named_with_a_way_out() -> None:
    with bind("127.0.0.1", 0) as sock, pytest.raises(ConfigError) as refused:
        bind("127.0.0.1", port_of(sock))
    for word in ("Port", "in use", "--port", "127.0.0.1"):
        assert word in refused.value.message


def test_a_port_is_free_again_at_once() -> None:
    with bind("127.0.0.1", 0) as sock:
        port = port_of(sock)
        with socket.create_connection(("127.0.0.1", port)), sock.accept()[0]:
            pass
    bind("127.0.0.1", port).close()


@pytest.mark.parametrize("host", ["203.0.113.1", "no-such-host.invalid"])
def test_a_host_that_is_not_ours_is_named(host: str) -> None:
    with pytest.raises(ConfigError, match=host) as refused:
        bind(host, 0)
    assert refused.value.param == "host"


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_ipv6() -> None:
    try:
        sock = bind("::1", 0)
    except ConfigError:
        pytest.skip("this machine has no IPv6 loopback")
    with sock:
        assert sock.family == socket.AF_INET6


async def test_a_signal_ends_an_idle_server_quietly(capfd: pytest.CaptureFixture[str]) -> None:
    engine = FakeEngine()
    app, service, config = build(engine)
    sock = bind("127.0.0.1", 0)

    async def announce() -> None:
        async with connected(port_of(sock)) as wire:
            await wire.send(http("/health"))
            assert (await wire.answer())[0] == 200
        os.kill(os.getpid(), signal.SIGINT)

    await serve(app, service, config, sock, announce)
    assert engine.is_closed
    assert sock.fileno() == -1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_open_streams_end_with_an_error_of_their_own(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.01)
    monkeypatch.setattr(module, "HURRY_S", PATIENCE_S)
    engine = FakeEngine(silent)
    app, service, config = build(engine)
    sock = bind("127.0.0.1", 0)
    pieces: list[bytes] = []

    async def announce() -> None:
        async with connected(port_of(sock)) as wire:
            await wire.send(http("/fake/generate", STREAM))
            await wire.head()
            os.kill(os.getpid(), number)
            while piece := await wire.chunk():
                pieces.append(piece)

    caplog.set_level("INFO")
    await serve(app, service, config, sock, announce)
    assert pieces == [b"open 3\n", b"close error engine_failed\n"]
    assert [text for text in caplog.messages if "1 in progress" in text]


async def test_a_stream_that_ends_within_the_grace_ends_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "GRACE_S", PATIENCE_S)
    engine = FakeEngine(silent)
    app, service, config = build(engine)
    sock = bind("127.0.0.1", 0)
    pieces: list[bytes] = []

    async def announce() -> None:
        async with connected(port_of(sock)) as wire:
            await wire.send(http("/fake/generate", STREAM))
            await wire.head()
            os.kill(os.getpid(), signal.SIGTERM)
            engine.streams[1].put("whole")
            engine.streams[1].end(FinishReason.STOP)
            while piece := await wire.chunk():
                pieces.append(piece)

    await serve(app, service, config, sock, announce)
    assert pieces[-2:] == [b"delta whole\n", b"close stop -\n"]


async def test_a_second_signal_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    app, service, _ = build(FakeEngine())
    server = Server(app, service)
    server.interrupt()
    assert (server.should_exit, left) == (True, [])
    server.interrupt()
    assert left == [130]


async def test_a_failure_beside_the_server_stops_it_and_is_raised() -> None:
    engine = FakeEngine()
    app, service, config = build(engine)

    async def announce() -> None:
        raise ModelFileError("The model file is damaged.")

    with pytest.raises(ModelFileError):
        await serve(app, service, config, bind("127.0.0.1", 0), announce)
    assert engine.is_closed


async def test_a_signal_ends_an_announcement_that_still_waits() -> None:
    engine = FakeEngine()
    app, service, config = build(engine)
    cancelled = False

    async def announce() -> None:
        nonlocal cancelled
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled = True

    await serve(app, service, config, bind("127.0.0.1", 0), announce)
    assert cancelled
    assert engine.is_closed


def test_run_uses_a_fast_loop() -> None:
    names: list[str] = []

    async def main() -> None:
        names.append(type(asyncio.get_running_loop()).__module__)

    run(main())
    assert names == ["uvloop"]


def test_serving_on_the_fast_loop() -> None:
    engine = FakeEngine()
    app, service, config = build(engine)
    sock = bind("127.0.0.1", 0)
    statuses: list[int] = []

    async def announce() -> None:
        async with connected(port_of(sock)) as wire:
            await wire.send(http("/fake/generate", STREAM))
            statuses.append((await wire.answer())[0])
        os.kill(os.getpid(), signal.SIGTERM)

    run(serve(app, service, config, sock, announce))
    assert statuses == [200]
