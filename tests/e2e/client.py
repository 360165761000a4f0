"""A raw client for end-to-end tests: it sees every byte and every end, and hangs up at will."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

#: For what hangs; long, since nothing that works waits for it, however busy the machine is.
DEADLINE_S = 400.0


@dataclass
class Answer:
    """What one stream said: text pieces in order, and how it ended."""

    status: int = 0
    pieces: list[str] = field(default_factory=list)
    terminals: list[str] = field(default_factory=list)
    errors: list[Any] = field(default_factory=list)
    body: bytes = b""

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class ServerProcess:
    """A `naiad serve` in a process group of its own, on a free port or on that one."""

    def __init__(
        self, args: list[str], log: Path, env: dict[str, str] | None = None, port: int = 0
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        command = [sys.executable, "-m", "naiad", "serve", *args, "--port", str(self.port)]
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_ready(self) -> None:
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError):
                if self.get("/health")[0] == 200:
                    return
            time.sleep(0.05)  # waits for a process to start; no answer depends on it
        raise AssertionError(f"the server did not start:\n{self.log.read_text()[-3000:]}")

    def get(self, path: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=DEADLINE_S) as response:
                return response.status, json.loads(response.read() or b"null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or b"null")

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def wait_idle(self) -> None:
        """Until nothing is in flight: of a hang-up the server learns a little later."""
        end = time.monotonic() + DEADLINE_S
        while self.get("/health")[1]["in_flight"]:
            assert time.monotonic() < end, "a request that nobody waits for goes on"

    def worker_pid(self) -> int:
        """The engine worker: the descendant that runs naiad.engine.worker."""
        for child in psutil.Process(self.pid).children(recursive=True):
            if "naiad.engine.worker" in child.cmdline():
                return child.pid
        raise AssertionError("no worker process below the server")

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            raise


@contextlib.contextmanager
def serving(log: Path, *args: str, env: dict[str, str] | None = None) -> Iterator[ServerProcess]:
    server = ServerProcess(list(args), log, env)
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


def free_port() -> int:
    """One that nobody listens on, and that no outgoing connection will be given meanwhile.

    Systems give those ports from 32768 on.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_000), 1000):
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def descendants(pid: int) -> list[int]:
    """The processes below one, as long as they live."""
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def openai_body(prompt: str, n: int, **more: Any) -> tuple[str, dict[str, Any]]:
    body = {"prompt": prompt, "max_tokens": n, "temperature": 0, "stream": True}
    return "/v1/completions", body | more


def kobold_body(prompt: str, n: int, **more: Any) -> tuple[str, dict[str, Any]]:
    body = {"prompt": prompt, "max_length": n, "temperature": 0, "top_k": 1, "rep_pen": 1.0}
    return "/api/extra/generate/stream", body | {"ban_eos_token": True} | more


BODIES: dict[str, Callable[..., tuple[str, dict[str, Any]]]] = {
    "openai": openai_body,
    "kobold": kobold_body,
}


async def stream(
    server: ServerProcess,
    dialect: str,
    prompt: str,
    n: int,
    *,
    cut_after: int | None = None,
    on_sent: Callable[[], None] | None = None,
    on_piece: Callable[[], None] | None = None,
    **more: Any,
) -> Answer:
    """One stream over a socket of its own; `cut_after` pieces the client is gone without a word."""
    path, body = BODIES[dialect](prompt, n, **more)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    answer = Answer()
    try:
        writer.write(request_bytes(server, path, body))
        await writer.drain()
        if on_sent:
            on_sent()
        async with asyncio.timeout(DEADLINE_S):
            await _read_events(reader, answer, cut_after, on_piece)
    finally:
        writer.transport.abort()
    return answer


def request_bytes(server: ServerProcess, path: str, body: Any) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
        "Content-Type: application/json\r\nConnection: close\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


async def _read_events(
    reader: asyncio.StreamReader,
    answer: Answer,
    cut_after: int | None,
    on_piece: Callable[[], None] | None,
) -> None:
    answer.status = int((await reader.readline()).split()[1])
    while line := await reader.readline():
        if line.startswith(b"data:"):
            _read_event(line[5:].strip(), answer)
        elif answer.status != 200:
            answer.body += line
        if answer.pieces and on_piece:
            on_piece()
        if cut_after is not None and len(answer.pieces) >= cut_after:
            return


def _read_event(data: bytes, answer: Answer) -> None:
    if data == b"[DONE]":
        return
    event = json.loads(data)
    if "error" in event:
        answer.errors.append(event["error"])
        answer.terminals.append("error")
        return
    choice = (event.get("choices") or [event])[0]
    text = choice.get("text", choice.get("token", ""))
    if text:
        answer.pieces.append(text)
    if choice.get("finish_reason"):
        answer.terminals.append(choice["finish_reason"])


async def post_async(server: ServerProcess, path: str, body: Any) -> bytes:
    """One request on a connection of its own; the whole response as bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(request_bytes(server, path, body))
        await writer.drain()
        async with asyncio.timeout(DEADLINE_S):
            return await reader.read()
    finally:
        writer.transport.abort()
