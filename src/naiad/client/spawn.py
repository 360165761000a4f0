"""How a worker comes to be: a child process (always, in production) or a thread (in tests).

The worker belongs to another room, and in production to another process; it is known here only by
its module's name.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import site
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import msgspec

import naiad
from naiad.config import EngineConfig

WORKER_MODULE = "naiad.engine.worker"
WAIT_POLICY = "OMP_WAIT_POLICY"

#: What a worker prints rather than logs: the last words of native code, mostly.
output_logger = logging.getLogger("naiad.worker.output")
logger = logging.getLogger(__name__)


class WorkerHandle(Protocol):
    """A started worker. `pid` is None when it is no process."""

    @property
    def sock(self) -> socket.socket:
        """The front's end of the pair."""
        ...

    @property
    def pid(self) -> int | None: ...

    def kill(self) -> None:
        """End it by force; no error when it has ended already."""
        ...

    async def reap(self, grace_s: float) -> int:
        """Its exit code, a negative signal number as in subprocess; kills it after the grace."""
        ...


#: Starts the worker of an epoch. Raises OSError when that cannot be done.
Launch = Callable[[EngineConfig, int], Awaitable[WorkerHandle]]
#: Serves a config on the calling thread until the socket ends; the exit code.
RunWorker = Callable[[socket.socket, int, EngineConfig], int]


async def launch_process(config: EngineConfig, epoch: int) -> WorkerHandle:
    """Start `python -m naiad.engine.worker` on one end of a socket pair; see Launch."""
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(  # noqa: ASYNC220 - returns as soon as the child has started
            _command(config, epoch, theirs.fileno()),
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
            env=_environment(config),
            start_new_session=True,  # the terminal's Ctrl-C reaches the front only
        )
    except OSError:
        ours.close()
        os.close(reading)
        raise
    finally:
        theirs.close()
        os.close(writing)
    output = os.fdopen(reading, "rb", buffering=0)
    loop = asyncio.get_running_loop()
    transport, lines = await loop.connect_read_pipe(OutputLog, output)
    return ProcessHandle(process, ours, transport, lines)


async def launch_thread(config: EngineConfig, epoch: int) -> WorkerHandle:
    """Run the worker in a thread of this process; see Launch."""
    run: RunWorker = importlib.import_module(WORKER_MODULE).run_in_thread
    return ThreadHandle(run, config, epoch)


class ProcessHandle:
    """A worker in a child process."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        sock: socket.socket,
        transport: asyncio.ReadTransport,
        output: OutputLog,
    ) -> None:
        self.sock = sock
        self._process = process
        self._transport = transport
        self._output = output

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL; see WorkerHandle."""
        self._process.kill()

    async def reap(self, grace_s: float) -> int:
        """See WorkerHandle. What the process printed is in the log when this returns."""
        ending = asyncio.create_task(asyncio.to_thread(self._process.wait))
        await asyncio.wait({ending}, timeout=grace_s)
        if not ending.done():
            self.kill()
        code = await ending
        # A grandchild may hold the pipe open for ever: do not wait for its end longer than that.
        await asyncio.wait({self._output.ended}, timeout=grace_s)
        self._transport.close()
        return code


class ThreadHandle:
    """A worker in a thread: it can be asked to end, not forced."""

    pid = None

    def __init__(self, run: RunWorker, config: EngineConfig, epoch: int) -> None:
        self.sock, theirs = socket.socketpair()
        self._code = 1
        self._thread = threading.Thread(
            target=self._run, args=(run, theirs, epoch, config), name="naiad-worker", daemon=True
        )
        self._thread.start()

    def _run(self, run: RunWorker, sock: socket.socket, epoch: int, config: EngineConfig) -> None:
        self._code = run(sock, epoch, config)

    def kill(self) -> None:
        """Hang up, which is all that can be done to a thread."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    async def reap(self, grace_s: float) -> int:
        """See WorkerHandle; a thread that does not end is left behind, and said so."""
        await asyncio.to_thread(self._thread.join, grace_s)
        if self._thread.is_alive():
            logger.warning("a worker thread did not end within %.1f s", grace_s)
        return self._code


class OutputLog(asyncio.Protocol):
    """Logs each line of a pipe. `ended` is done when the pipe is."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            _log_output(line)
        if len(self._rest) > 8192:  # no line; keep memory bounded all the same
            _log_output(self._rest)
            self._rest = b""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        _log_output(self._rest)
        if not self.ended.done():
            self.ended.set_result(None)


def _log_output(line: bytes) -> None:
    if line.strip():
        output_logger.warning("%s", line.decode(errors="replace").rstrip())


def _command(config: EngineConfig, epoch: int, fd: int) -> list[str]:
    level = logging.getLevelName(logging.getLogger("naiad").getEffectiveLevel())
    return [
        sys.executable, "-P", "-m", WORKER_MODULE,
        "--fd", str(fd),
        "--epoch", str(epoch),
        "--config", msgspec.json.encode(config).decode(),
        "--log-level", level,
    ]  # fmt: skip


def _environment(config: EngineConfig) -> dict[str, str]:
    """Ours, and the worker finds this same naiad, also when it is run from a source tree.

    OpenMP reads how its threads shall wait when it is loaded, so this is the only way to tell it.
    What the user has set stands. Large pages (GLIBC_TUNABLES) are left to the user: where they are
    at hand the pool is filled 0.4 s sooner, but a virtual machine that gave its free memory back to
    the host gets it again page by page, and a start then takes 3 s longer; decoding is no faster.
    """
    measured = config.tuning.wait_policy if config.tuning else None
    env = ({WAIT_POLICY: measured} if measured else {}) | dict(os.environ)
    root = str(Path(naiad.__file__).parents[1])
    if root in site.getsitepackages():
        return env
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**env, "PYTHONPATH": os.pathsep.join(paths)}
