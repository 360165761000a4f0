"""The server that `naiad run` and `chat` talk to: one that runs, or one of their own."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from naiad.cli.listen import base_url
from naiad.cli.progress import reporter
from naiad.cli.running import running
from naiad.cli.talk.wire import Api, ServerLost
from naiad.config import Config
from naiad.errors import EngineUnavailable, NaiadError

#: How long the look at a server takes at most when nobody said that there is one.
GLANCE_S = 0.5
#: Between two looks at a server that still loads its model; HTTP has no way to be told.
LOADING_LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers. model: its name there. is_own: ends when this program ends."""

    api: Api
    model: str
    is_own: bool = False


def find_running(path: Path | None, config: Config) -> Server | None:
    """A running server that serves the model in this file, or any model when path is None.

    Looked for among the servers of this user, then at the address of the settings.
    """
    for note in running():
        if not note.is_private and (path is None or note.model == str(path)):
            return Server(Api(note.url, note.key), note.name)
    return _at_address(path, config)


def _at_address(path: Path | None, config: Config) -> Server | None:
    api = Api(base_url(config.host, config.port), config.api_key)
    try:
        health = api.get("/health", GLANCE_S)
    except ServerLost:
        return None
    if not isinstance(health, dict) or "integrity_violations" not in health:
        return None  # another program listens there
    name = str(health.get("model") or "")
    return Server(api, name) if path is None or path.stem == name else None


def named(url: str, key: str | None) -> Server:
    """The server at an address that the user gave, with http:// or without.

    Raises ServerLost when none answers there.
    """
    url = url if "://" in url else f"http://{url}"
    note = next((note for note in running() if note.url == url.rstrip("/")), None)
    api = Api(url.rstrip("/").removesuffix("/v1"), key or (note.key if note else None))
    health = api.get("/health")
    return Server(api, str(health.get("model") or "") if isinstance(health, dict) else "")


def wait_ready(server: Server) -> None:
    """Wait while the server loads its model, with a bar. Raises EngineUnavailable if it cannot."""
    health = server.api.get("/health")
    if not isinstance(health, dict) or health.get("ready", True):
        return
    with reporter(in_bytes=False) as progress:
        while not health["ready"]:
            if health["status"] == "failed":
                raise EngineUnavailable(f"The server at {server.api.url}: {health['reason']}")
            progress.update("The server loads its model", health["progress"], 1.0)
            time.sleep(LOADING_LOOK_S)
            health = server.api.get("/health")


@contextlib.contextmanager
def own_server(model: str | None, arguments: Sequence[str], *, is_quiet: bool) -> Iterator[Server]:
    """Start a server for this program alone, on a free port with a key of its own.

    It ends when the block does, and also when this program is killed: it watches its input.

    Raises EngineUnavailable with the server's own sentence when it does not start.
    """
    key = secrets.token_urlsafe(32)
    command = [sys.executable, "-m", "naiad", "serve", *([model] if model else [])]
    command += ["--host", "127.0.0.1", "--port", "0", "--until-eof", "--json", *arguments]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "NAIAD_API_KEY": key, "NAIAD_LOG_JSON": "false"},
            text=True,
            start_new_session=True,  # Ctrl-C is for the answer, not for the engine
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            ready = _until_ready(process.stdout, log, is_quiet=is_quiet)
            yield Server(Api(ready["url"], key), ready["model"], is_own=True)
        finally:
            process.stdin.close()
            process.stdout.close()
            process.returncode = 0  # it saves what it computed and ends by itself


def _until_ready(lines: IO[str], log: IO[str], *, is_quiet: bool) -> dict[str, Any]:
    """Follow the JSON lines of a starting server until it is ready."""
    with contextlib.ExitStack() as stack:
        progress = None if is_quiet else stack.enter_context(reporter(in_bytes=False))
        for line in lines:
            told = json.loads(line)
            if told["event"] == "ready":
                return dict(told)
            if progress is not None:
                progress.update("Loading the model", told["progress"], 1.0)
    raise EngineUnavailable(_last_words(log))


def _last_words(log: IO[str]) -> str:
    log.seek(0)
    told = [line.strip() for line in log if line.strip()]
    said = [line.removeprefix("naiad: ") for line in told if line.startswith("naiad: ")]
    return (said or told or ["The server ended before it was ready."])[-1]


class Keeper:
    """The server of a conversation; one of its own is started anew when it has died."""

    def __init__(
        self, stack: contextlib.ExitStack, start: Any, server: Server | None = None
    ) -> None:
        self._stack = stack
        self._start = start
        self.server = server or self._begin()

    def _begin(self) -> Server:
        started: Server = self._stack.enter_context(self._start())
        return started

    def renew(self) -> bool:
        """Start a new server in place of an own one that died; False when it is not ours."""
        if not self.server.is_own:
            return False
        with contextlib.suppress(NaiadError):
            self.server.api.get("/health", GLANCE_S)
            return False
        self.server = self._begin()
        return True
