"""Asking a real server the same thing at every door, streamed and whole."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer

from dialect_folds import Said
from e2e.client import DEADLINE_S, ServerProcess, serving
from e2e.doors import DOORS
from naiad.engine.grammar.definition import define

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


def check_form(said: Said, schema: dict[str, Any]) -> None:
    """What ended is valid; what was cut is the beginning of something that the schema allows."""
    if said.end in ENDED:
        jsonschema.validate(json.loads(said.text), schema)
        return
    assert said.end in CUT, said
    matcher = LLMatcher(LLTokenizer("byte"), define("json_schema", json.dumps(schema)))
    text = said.text.encode()
    assert matcher.try_consume_tokens(list(text)) == len(text), said


@contextlib.contextmanager
def talking(
    server: ServerProcess, kinds: list[str], prompt: str
) -> Iterator[list[threading.Event]]:
    """Streams without end, one at each of these doors; each sets its event with all that it says.

    One that ends begins anew, so that all of them are there until this is left, however long it is.
    """
    is_over = threading.Event()
    events = [threading.Event() for _ in kinds]

    def talk(kind: str, event: threading.Event) -> None:
        while not is_over.is_set():
            for _ in DOORS[kind].lines(server.url, prompt + kind, 200, ignore_eos=True):
                event.set()
                if is_over.is_set():
                    return

    with ThreadPoolExecutor(len(kinds)) as threads:
        talks = [threads.submit(talk, *one) for one in zip(kinds, events, strict=True)]
        try:
            yield events
        finally:
            is_over.set()
        for one in talks:
            one.result()


def hear(events: list[threading.Event]) -> None:
    """Wait until each of them has said something more."""
    for event in events:
        event.clear()
    for event in events:
        assert event.wait(DEADLINE_S)
