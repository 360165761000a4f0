"""What goes wrong outside naiad: the engine dies, the server dies, files and ports are bad."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from e2e.client import ServerProcess, descendants, free_port, post_async, serving, stream
from naiad.testing.exact_models import character
from naiad.testing.watermark import watermark_text
from patience import PATIENCE_S

pytestmark = [pytest.mark.engine, pytest.mark.soak]


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_gone(pids: list[int]) -> list[int]:
    """The pids that are still there after the deadline."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and any(map(is_alive, pids)):
        time.sleep(0.01)
    return [pid for pid in pids if is_alive(pid)]


async def until_served(server: ServerProcess) -> None:
    await asyncio.to_thread(server.wait_ready)


async def test_the_worker_is_killed_in_the_middle_of_16_streams(
    watermark: Path, tmp_path: Path
) -> None:
    with serving(tmp_path / "log", str(watermark), "--parallel", "16", "--ctx", "8192") as server:
        arrived = asyncio.Barrier(17)

        def once(tasks: set[asyncio.Task[object]]) -> object:
            seen: list[bool] = []

            def on_piece() -> None:
                if not seen:
                    seen.append(True)
                    tasks.add(asyncio.create_task(arrived.wait()))

            return on_piece

        waits: set[asyncio.Task[object]] = set()
        streams = [
            asyncio.create_task(
                stream(server, "openai", character(i), 8000, on_piece=once(waits))  # type: ignore[arg-type]
            )
            for i in range(16)
        ]
        await arrived.wait()
        os.kill(server.worker_pid(), signal.SIGKILL)
        answers = await asyncio.gather(*streams)
        await asyncio.gather(*waits)
        for i, answer in enumerate(answers):
            assert answer.terminals == ["error"]
            assert answer.pieces
            assert watermark_text(i, len(answer.text)) == answer.text
            # Of the death itself: no time limit was waited for, whatever it would have said.
            assert "the engine stopped (signal 9)" in answer.errors[0]["message"]
        await until_served(server)
        after = await stream(server, "kobold", character(5), 20)
        assert after.text == watermark_text(5, 20)
        status, health = server.get("/health")
        assert (status, health["restarts"], health["integrity_violations"]) == (200, 1, 0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_the_server(
    number: signal.Signals, watermark: Path, tmp_path: Path
) -> None:
    server = ServerProcess([str(watermark)], tmp_path / "log")
    server.wait_ready()
    family = descendants(server.pid)
    assert family
    server.process.send_signal(number)
    server.process.wait(PATIENCE_S)
    assert wait_until_gone(family) == []


async def test_disconnects_free_the_engine_in_queue_prefill_and_decode(
    watermark: Path, tmp_path: Path
) -> None:
    """One slot: a stream that never ends unless its client's hang-up stops it, ten times over."""
    with serving(tmp_path / "log", str(watermark), "--parallel", "1", "--ctx", "8192") as server:
        for i in range(10):
            running = asyncio.create_task(stream(server, "openai", character(i), 8000, cut_after=3))
            queued = asyncio.create_task(stream(server, "openai", character(i) * 4000, 4000))
            whole = asyncio.create_task(
                post_async(server, "/api/v1/generate", {"prompt": character(i), "max_length": 8000})
            )
            await running
            queued.cancel()
            whole.cancel()
            await asyncio.gather(queued, whole, return_exceptions=True)
            answer = await stream(server, "kobold", character(9), 10)
            assert answer.text == watermark_text(9, 10)
        server.wait_idle()


BAD_BODIES: list[tuple[str, object, str]] = [
    ("no JSON", b"{not json", "JSON"),
    ("not an object", b"[1, 2]", "object"),
    ("wrong type", {"prompt": 5}, "prompt"),
    ("no prompt", {}, "prompt"),
    ("zero tokens", {"prompt": "一", "max_tokens": 0, "max_length": 0}, "max_"),
    ("negative tokens", {"prompt": "一", "max_tokens": -5, "max_length": -5}, "max_"),
    ("text for a number", {"prompt": "一", "temperature": "hot"}, "temperature"),
]


def test_bad_requests_get_their_own_dialects_error(watermark: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "log", str(watermark), "--ctx", "4096", "--strict-model") as server:
        for what, body, needle in BAD_BODIES:
            for path in ("/v1/completions", "/api/v1/generate", "/api/extra/generate/stream"):
                status, reply = server.post(path, body)
                message = reply["error"]["message"] if path[1] == "v" else reply["detail"]["msg"]
                assert status == 400, (what, path, reply)
                assert needle in message, (what, path, message)
        status, reply = server.post("/v1/completions", {"prompt": "一", "model": "gpt-3.5-turbo"})
        assert (status, reply["error"]["code"]) == (404, "model_not_found")
        status, reply = server.post("/v1/completions", {"prompt": "一" * 5000})
        assert reply["error"]["code"] == "context_length_exceeded"
        assert "5001" in reply["error"]["message"]
        assert "4096" in reply["error"]["message"]
        # KoboldAI's clients expect the oldest text to go, and are told how much did.
        status, reply = server.post("/api/v1/generate", {"prompt": "一" * 5000, "max_length": 3})
        assert (status, reply["results"][0]["completion_tokens"]) == (200, 3)
        assert reply["results"][0]["dropped_tokens"] >= 5000 - 4096
        status, reply = server.post("/v1/completions", {"prompt": "一", "max_tokens": 3})
        assert status == 404 or reply["choices"][0]["text"] == watermark_text(0, 3)


def run_serve(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "naiad", "serve", *args],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_bad_starts_say_why_in_a_sentence(watermark: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.gguf"
    foreign.write_bytes(b"PK\x03\x04 not a model at all")
    truncated = tmp_path / "truncated.gguf"
    truncated.write_bytes(watermark.read_bytes()[:3_000_000])
    port = str(free_port())
    for args, needle in [
        ([str(tmp_path / "missing.gguf")], "missing.gguf"),
        ([str(foreign)], "GGUF"),
        ([str(truncated)], "truncated.gguf"),
        (["no-such-model"], "no-such-model"),
    ]:
        done = run_serve(*args, "--port", port)
        assert done.returncode == 1, done
        assert needle in done.stderr
        assert "Traceback" not in done.stderr + done.stdout


def test_a_port_in_use_is_named(watermark: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = str(sock.getsockname()[1])
        done = run_serve(str(watermark), "--port", port)
    assert done.returncode == 1
    assert port in done.stderr
    assert "Traceback" not in done.stderr
