"""Which servers run: each `naiad serve` leaves a note while it lives, readable by its user only.

A note holds the server's key, so that `naiad chat` of the same user needs none; the folder and the
files are closed to everybody else. A note is believed only while the very process that wrote it
lives: process numbers are used again, so the time at which the process began is compared too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

#: Names the folder for what naiad remembers between runs: notes of servers, history of chats.
STATE_ENV = "NAIAD_STATE_DIR"
_CLOCK_MOVES_S = 60.0


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """One server. began: start of its process, seconds since 1970, as the system tells it.

    model: path or name as the server was told, "" for the scripted engine. key: what requests must
    show, None for none. is_private: started by `naiad run` or `chat` for itself alone.
    """

    pid: int
    began: float
    url: str
    model: str
    key: str | None = None
    is_private: bool = False
    version: str = ""

    @property
    def name(self) -> str:
        """The model's name, as the server tells its clients."""
        return Path(self.model).stem if self.model.lower().endswith(".gguf") else self.model


def state_dir(env: Mapping[str, str] = os.environ) -> Path:
    """The folder for what naiad remembers: NAIAD_STATE_DIR, else the user's state folder."""
    if named := env.get(STATE_ENV):
        return Path(named).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_state_dir("naiad"))


def private_folder(path: Path) -> Path:
    """The folder, made if need be, and closed to other users."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    return path


@contextlib.contextmanager
def noted(server: Running) -> Iterator[None]:
    """Leave the note of a server for as long as the block runs.

    A folder that cannot be written is no reason not to serve: then there is no note.
    """
    path: Path | None = None
    with contextlib.suppress(OSError):
        path = _write(server)
    try:
        yield
    finally:
        if path is not None:
            path.unlink(missing_ok=True)


def _write(server: Running) -> Path:
    path = private_folder(state_dir() / "servers") / f"{server.pid}.json"
    scratch = path.with_suffix(".new")
    scratch.unlink(missing_ok=True)
    handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(msgspec.json.encode(server))
    scratch.replace(path)
    return path


def running() -> list[Running]:
    """The servers of this user that run now, the newest first; notes of dead ones are removed."""
    found = []
    for path in sorted((state_dir() / "servers").glob("*.json")):
        server = _read(path)
        if server is not None and is_same(began(server.pid), server.began):
            found.append(server)
        else:
            path.unlink(missing_ok=True)
    return sorted(found, key=lambda server: -server.began)


def began(pid: int) -> float | None:
    """When the process with this number began, or None when there is none."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def is_same(one: float | None, other: float) -> bool:
    """Whether two readings of when a process began are of one process.

    Systems reckon it from the time of their own start, which moves when the clock is set.
    """
    return one is not None and abs(one - other) < _CLOCK_MOVES_S


def _read(path: Path) -> Running | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Running)
    except (OSError, msgspec.DecodeError):
        return None
