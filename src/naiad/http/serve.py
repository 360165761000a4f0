"""Running the app: the socket, the server, the signals, the end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from typing import Any, cast

import uvicorn
import uvloop
from starlette.types import ASGIApp

from naiad.config import Config
from naiad.errors import ConfigError
from naiad.http.protocol import Guests, LimitedProtocol
from naiad.service.service import Service

GRACE_S = 5.0  # open streams may go on this long after the signal to stop
HURRY_S = 5.0  # and have this long to send their last event
KEEP_ALIVE_S = 75  # longer than the idle time of clients' and proxies' connection pools
BACKLOG = 2048
TICK_S = 1.0  # how often the Date header is renewed
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

log = logging.getLogger(__name__)

Announce = Callable[[], Awaitable[None]]


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 for a free one. Do this first: all else takes longer to fail.

    Raises ConfigError when the address is in use, not ours, forbidden or unknown.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ConfigError(
            f"The host {host!r} is unknown ({error.strerror}); 127.0.0.1 is this machine alone, "
            "0.0.0.0 every address it has.",
            param="host",
        ) from error
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _bind_error(error, host, port) from error
    return sock


async def serve(
    app: ASGIApp,
    service: Service,
    config: Config,
    sock: socket.socket | None = None,
    announce: Announce | None = None,
) -> None:
    """Start the service, answer requests until SIGINT or SIGTERM, then end everything.

    Open streams get GRACE_S to finish; what is left then ends with an explicit error. A second
    signal exits at once.

    sock: from `bind`; None to bind to the config's host and port here.
    announce: awaited beside the server once it listens (while the model loads), e.g. to wait for
        the model and print where to point a client. An exception it raises stops the server and
        is raised here.

    Raises ConfigError when the address cannot be bound.
    """
    sock = sock or bind(config.host, config.port)
    server = Server(app, service, config.max_connections_per_host)
    with sock, _signals(server):
        try:
            await service.start()
            async with asyncio.TaskGroup() as group:
                chores = group.create_task(_announce(server, announce))
                await server.serve([sock])
                chores.cancel()
        finally:
            await service.close()
    if server.failure is not None:
        raise server.failure


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine such as `serve(...)` on a fresh uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


class Server(uvicorn.Server):
    """uvicorn, with our signals, no polling, and an end that no stream leaves without a word.

    max_per_host: connections that one other machine may hold, 1 or more.
    """

    def __init__(self, app: ASGIApp, service: Service, max_per_host: int = 256) -> None:
        super().__init__(_uvicorn_config(app, max_per_host))
        self._service = service
        self._stop = asyncio.Event()
        self.failure: Exception | None = None  # of what ran beside the server

    def stop(self) -> None:
        """Begin to shut down; returns at once."""
        self.should_exit = True
        self._stop.set()

    def interrupt(self) -> None:
        """Begin to shut down; called again, leave the process at once."""
        if self.should_exit:
            leave_now()
        n_running = self._service.n_in_flight
        if n_running:
            log.info(
                "stopping: %d in progress may take %g s more; Ctrl-C again stops at once",
                n_running,
                GRACE_S,
            )
        self.stop()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn would raise the signal again at the end, and Ctrl-C would print a traceback;
        # `serve` catches signals itself, from before the model loads until all is closed.
        yield

    async def main_loop(self) -> None:
        while not self.should_exit:
            await self.on_tick(0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        async with asyncio.TaskGroup() as group:
            ending = group.create_task(self._end_streams())
            await super().shutdown(sockets)
            ending.cancel()

    async def _end_streams(self) -> None:
        await asyncio.sleep(GRACE_S)
        await self._service.close()  # every open stream now ends with an error of its own


def leave_now() -> None:
    """Exit without cleaning up; the worker notices that its socket is closed, and follows."""
    os._exit(130)


async def _announce(server: Server, announce: Announce | None) -> None:
    if announce is None:
        return
    try:
        await announce()
    except Exception as error:
        server.failure = error
        server.stop()


@contextlib.contextmanager
def _signals(server: Server) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # the owner calls stop()
        return
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, server.interrupt)
    try:
        yield
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


def _uvicorn_config(app: ASGIApp, max_per_host: int) -> uvicorn.Config:
    for name in ("uvicorn.error", "uvicorn.asgi"):
        # What it would say, we have said with more knowledge of the request.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return uvicorn.Config(
        app,
        http=cast(type[asyncio.Protocol], partial(LimitedProtocol, guests=Guests(max_per_host))),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(GRACE_S + HURRY_S),
        backlog=BACKLOG,
    )


def _bind_error(error: OSError, host: str, port: int) -> ConfigError:
    where = f"port {port} on {host}"
    reasons = {
        errno.EADDRINUSE: f"{where.capitalize()} is already in use by another program. Stop that "
        "program, or choose another port with --port.",
        errno.EACCES: f"No permission to use {where}: ports below 1024 belong to the system. "
        "Choose another with --port.",
        errno.EADDRNOTAVAIL: f"{host} is no address of this machine. Choose another with --host.",
    }
    message = reasons.get(error.errno or 0, f"Cannot listen at {where}: {error.strerror}.")
    return ConfigError(message, param="host" if error.errno == errno.EADDRNOTAVAIL else "port")
