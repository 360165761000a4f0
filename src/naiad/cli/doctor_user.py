"""What `naiad doctor` says of the user's own things: settings file, servers, other models, disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from naiad.cli.options import elsewhere
from naiad.cli.progress import mebibytes
from naiad.cli.running import running
from naiad.cli.settings import default_file
from naiad.config import Config
from naiad.models.catalogue import installed

#: (name, is all well, text, what to do)
Look = tuple[str, bool, str, str]

#: Less room than this, and hardly a model can be fetched.
LITTLE_DISK = 4 << 30


def look_at_users(config_file: str | None, folder: Path, settings: Config) -> Iterator[Look]:
    """Everything of the user's that `serve` and `run` would use."""
    yield _settings_file(config_file)
    yield _disk(folder)
    found = installed(folder, elsewhere(settings))
    others = [model for model in found if model.path.parent != folder]
    if others:
        places = sorted({model.place or str(model.path.parent) for model in others})
        yield "other models", True, f"{len(others)} in {', '.join(places)} (naiad list)", ""
    servers = [f"{server.name} at {server.url}" for server in running()]
    yield "servers", True, ", ".join(servers) or "none runs", ""


def _settings_file(named: str | None) -> Look:
    """Its values have been checked by then: a bad one ends every command with a sentence."""
    path = Path(named).expanduser() if named else default_file()
    there = path.is_file()
    return "settings", True, f"{path}{'' if there else ' (not there: all defaults)'}", ""


def _disk(folder: Path) -> Look:
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    is_enough = free >= LITTLE_DISK
    todo = "" if is_enough else "Make room, or set another models_dir."
    return "disk", is_enough, f"{mebibytes(free)} free for models in {folder}", todo
