"""Asking a real server the same thing at every door, streamed and whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dialect_folds import Said
from e2e.client import ServerProcess, serving
from e2e.doors import DOORS

PROMPT = "Once upon a time"
CHATS = [name for name, door in DOORS.items() if door.is_chat]
TEXTS = [name for name, door in DOORS.items() if not door.is_chat]
# One thread: several wait at barriers for one that a busy machine has put off.
FLAGS = ("--parallel", "4", "--ctx", "1024", "--threads", "1", "--no-disk-cache")
CUT = {"length", "limit", "max_tokens", "incomplete"}
ENDED = {"stop", "eos", "end_turn", "completed", "tool_calls", "tool_use"}


@pytest.fixture(scope="module")
def server(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("doors") / "server.log"
    with serving(log, str(starter), *FLAGS) as server:
        yield server


def ask(
    server: ServerProcess, kind: str, n: int, prompt: str = PROMPT, **fields: Any
) -> tuple[Said, Said]:
    """What is said whole, and streamed."""
    door = DOORS[kind]
    whole = door.post(server.url, prompt, n, is_streamed=False, **fields).said
    return whole, door.post(server.url, prompt, n, is_streamed=True, **fields).said


def same(server: ServerProcess, kind: str, n: int, prompt: str = PROMPT, **fields: Any) -> Said:
    """What is said, after it was seen that it is the same streamed and whole."""
    whole, streamed = ask(server, kind, n, prompt, **fields)
    assert streamed == whole, (kind, fields)
    return whole


def refused(server: ServerProcess, name: str, **fields: Any) -> str:
    """The message of a refusal, after it was seen that it comes before any header both ways."""
    replies = [
        DOORS[name].post(server.url, PROMPT, 2, is_streamed=way, **fields) for way in (False, True)
    ]
    assert [reply.status for reply in replies] == [400, 400], [reply.body for reply in replies]
    assert replies[0].message == replies[1].message
    return replies[0].message


def shown(name: str, field: str) -> str:
    """A field's name in errors."""
    return f"options.{field}" if name.startswith("ollama") else field
