"""A model leaves memory and comes back, in a whole server with a real one."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from e2e.client import ServerProcess, descendants, serving
from patience import PATIENCE_S

pytestmark = [pytest.mark.engine, pytest.mark.model, pytest.mark.soak]

ASK = {"messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 8}


@pytest.fixture(scope="module")
def server(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("unload") / "server.log"
    # A load that takes long must not be told of between signs of life.
    flags = ("--ctx", "1024", "--no-disk-cache", "--heartbeat-s", "3600")
    with serving(log, str(starter), *flags) as running:
        yield running


def unload(server: ServerProcess) -> None:
    """Unload the model, and wait for the end of its worker."""
    worker = psutil.Process(server.worker_pid())
    status, told = server.post("/api/generate", {"keep_alive": 0})
    assert (status, told["done_reason"]) == (200, "unload")
    worker.wait(PATIENCE_S)


def stream(server: ServerProcess, path: str, body: dict[str, Any]) -> list[str]:
    data = json.dumps({**body, "stream": True, "return_progress": True}).encode()
    request = urllib.request.Request(server.url + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return [line.decode().strip() for line in answer if line.strip()]


def test_an_unloaded_model_is_gone_and_comes_back(server: ServerProcess) -> None:
    unload(server)
    # What is left is the helper of the templates; no process holds the model.
    sizes = [psutil.Process(pid).memory_info().rss for pid in descendants(server.pid)]
    assert all(size < 80 << 20 for size in sizes), sizes
    status, health = server.get("/health")
    assert (status, health["status"], health["ready"]) == (200, "unloaded", True)
    assert server.get("/api/ps")[1] == {"models": []}
    status, told = server.post("/v1/chat/completions", ASK)
    assert (status, bool(told["choices"][0]["message"]["content"])) == (200, True)
    assert len(server.get("/api/ps")[1]["models"]) == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", ASK),
        ("/api/chat", {"messages": ASK["messages"], "options": {"num_predict": 8}}),
        ("/api/extra/generate/stream", {"prompt": "Once", "max_length": 8}),
    ],
)
def test_streams_tell_how_far_the_load_is(
    server: ServerProcess, path: str, body: dict[str, Any]
) -> None:
    unload(server)
    lines = stream(server, path, body)
    loads = [line for line in lines if "model_load" in line]
    assert loads
    assert lines[: len(loads)] == loads or path.startswith("/api/extra")
    assert len(lines) > len(loads)


def test_a_tokeniser_is_brought_back_too(server: ServerProcess) -> None:
    unload(server)
    status, told = server.post("/api/extra/tokencount", {"prompt": "one two"})
    assert (status, told["value"] > 1) == (200, True)
