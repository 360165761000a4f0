"""`naiad ps` and `naiad stop`: the servers of this user that run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from naiad.cli.options import json_option, settings_options
from naiad.cli.progress import mebibytes
from naiad.cli.running import Running, began, is_same, running
from naiad.cli.settings import load
from naiad.errors import NaiadError, NotFound

if TYPE_CHECKING:
    import psutil

T = TypeVar("T")

#: A server may end its streams (10 s) and save what it computed (3 s) before it goes.
PATIENCE_S = 30.0
#: To one that hangs; a busy one answers within milliseconds, its engine is another process.
GLANCE_S = 0.5
LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class Row:
    """A server and what it says of itself. memory_bytes: of its processes, in physical memory."""

    server: Running
    state: str
    n_in_flight: int
    memory_bytes: int
    n_ctx: int

    def as_json(self) -> dict[str, Any]:
        """What --json prints; never the key."""
        since = datetime.fromtimestamp(self.server.began, UTC).replace(microsecond=0)
        return {
            "pid": self.server.pid,
            "model": self.server.name,
            "path": self.server.model,
            "state": self.state,
            "url": self.server.url,
            "in_flight": self.n_in_flight,
            "n_ctx": self.n_ctx,
            "memory_bytes": self.memory_bytes,
            "since": since.isoformat(),
            "is_private": self.server.is_private,
        }


@click.command()
@json_option
def ps(as_json: bool) -> None:
    """List the servers that run: model, state, requests, memory."""
    rows = at_once(look_at, running())
    if as_json:
        click.echo(json.dumps([row.as_json() for row in rows], indent=2))
    elif not rows:
        click.echo("No server runs. Start one with: naiad serve")
    else:
        click.echo("\n".join(table(rows)))


@click.command()
@click.argument("which", nargs=-1, metavar="[PID|PORT|MODEL]...")
@click.option("--all", "is_all", is_flag=True, help="All of them.")
@click.option("--force", is_flag=True, help="At once, without ending streams or saving.")
@settings_options("quiet")
def stop(which: tuple[str, ...], is_all: bool, force: bool, quiet: bool | None) -> int:
    """Stop servers as Ctrl-C would: streams may end, and what was computed is saved.

    With no argument, the one server that runs.
    """
    is_quiet = load({"quiet": quiet}).quiet
    chosen = choose(running(), which, is_all=is_all)
    n_left = 0
    for server in chosen:
        has_ended = end(server, force=force)
        n_left += not has_ended
        told = "Stopped" if has_ended else f"Still ending after {PATIENCE_S:.0f} s (see --force):"
        if not (is_quiet and has_ended):
            click.echo(f"{told} {server.name} at {server.url} (process {server.pid}).", err=True)
    return int(n_left > 0)


def choose(servers: list[Running], which: tuple[str, ...], *, is_all: bool) -> list[Running]:
    """The servers that the arguments mean, each once.

    Raises NotFound when there is none of that name, or several and none was named.
    """
    if is_all:
        return servers
    if not servers:
        raise NotFound("No server runs.")
    if not which:
        public = [server for server in servers if not server.is_private] or servers
        if len(public) > 1:
            told = ", ".join(f"{one.pid} ({one.name}, {one.url})" for one in public)
            raise NotFound(f"Several servers run; name one, or say --all: {told}.")
        return public
    return list({server.pid: server for word in which for server in _named(servers, word)}.values())


def _named(servers: list[Running], word: str) -> list[Running]:
    found = [server for server in servers if word.lower() in _names(server)]
    if not found:
        told = ", ".join(f"{server.name} at {server.url}" for server in servers)
        raise NotFound(f"No server is called {word!r}; there is: {told}.")
    return found


def _names(server: Running) -> set[str]:
    port = server.url.rpartition(":")[2]
    return {str(server.pid), port, server.url.lower(), server.name.lower(), server.model.lower()}


def end(server: Running, *, force: bool) -> bool:
    """Ask a server's process to end and wait for it; True when it is gone."""
    import psutil

    try:
        process = psutil.Process(server.pid)
        is_naiad = any("naiad" in word for word in process.cmdline())
        if not (is_naiad and is_same(process.create_time(), server.began)):
            return True  # the number belongs to another program by now
        process.kill() if force else process.terminate()
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied as error:
        raise NaiadError(f"Process {server.pid} belongs to somebody else.") from error
    return _has_ended(process)


def _has_ended(process: psutil.Process) -> bool:
    """Wait for a process that is not our child; one that its parent has not noticed has ended."""
    import psutil

    for _ in range(round(PATIENCE_S / LOOK_S)):
        try:
            process.wait(LOOK_S)
        except psutil.TimeoutExpired:
            if began(process.pid) is not None:
                continue
        return True
    return False


def glance(server: Running) -> dict[str, Any]:
    """What a server says of itself; nothing when it does not answer."""
    from naiad.cli.talk.wire import Api

    health: Any = {}
    with contextlib.suppress(NaiadError):
        health = Api(server.url, server.key).get("/health", GLANCE_S)
    return dict(health)


def at_once(ask: Callable[[Running], T], servers: list[Running]) -> list[T]:
    """Ask each server, all at the same time: one that hangs makes nobody wait for the next."""
    if len(servers) < 2:
        return [ask(server) for server in servers]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(len(servers)) as pool:
        return list(pool.map(ask, servers))


def look_at(server: Running) -> Row:
    """Ask a server how it is; one that does not answer is told so."""
    health = glance(server)
    engine = health.get("engine") or {}
    return Row(
        server,
        _state(health),
        int(health.get("in_flight", 0)),
        memory_of(server.pid),
        int(engine.get("n_ctx", 0)),
    )


def _state(health: dict[str, Any]) -> str:
    state = str(health.get("status", "silent"))
    return f"loading {100 * health.get('progress', 0):.0f} %" if state == "loading" else state


def memory_of(pid: int) -> int:
    """Bytes of physical memory that a process and its children hold; shared pages count once each.

    0 when the process is gone.
    """
    import psutil

    try:
        process = psutil.Process(pid)
        return sum(_resident(one) for one in [process, *process.children(recursive=True)])
    except psutil.Error:
        return 0


def _resident(process: psutil.Process) -> int:
    import psutil

    try:
        return int(process.memory_info().rss)
    except psutil.Error:  # it ended between the listing and the look
        return 0


def table(rows: list[Row]) -> list[str]:
    """The rows in columns."""
    cells = [["PID", "MODEL", "STATE", "REQUESTS", "MEMORY", "CONTEXT", "URL"]]
    for row in rows:
        name = row.server.name + (" (of a chat)" if row.server.is_private else "")
        memory, n_ctx = mebibytes(row.memory_bytes), f"{row.n_ctx:,}"
        told = [str(row.server.pid), name, row.state, str(row.n_in_flight), memory, n_ctx]
        cells.append([*told, row.server.url])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells
    ]
