"""Environments for programs of others: each its own, so that none bends the versions of another.

They lie in .envs, are made when they are first needed, and again when what they should hold
changes. Tests of `make test` need none of them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".envs"
_STAMP = "packages.json"


class Unavailable(Exception):
    """The machine lacks what an environment needs; the message says what to install."""


def python_env(name: str, packages: Sequence[str]) -> Path:
    """The folder of the programs of a virtual environment that holds these packages of PyPI."""
    home = FOLDER / f"py-{name}"
    programs = home / "bin"
    if not _is_made(home, packages):
        _say(f"making {home.name} with {', '.join(packages)}")
        shutil.rmtree(home, ignore_errors=True)
        run([sys.executable, "-m", "venv", str(home)])
        run([str(programs / "python"), "-m", "pip", "install", "--quiet", *packages])
        _note(home, packages)
    return programs


def node_env(name: str, packages: Sequence[str]) -> Path:
    """A folder whose node_modules hold these packages of npm. Raises Unavailable without Node."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise Unavailable(f"{program} is missing: install Node.js 20 or later")
    home = FOLDER / f"js-{name}"
    if not _is_made(home, packages):
        _say(f"making {home.name} with {', '.join(packages)}")
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        (home / "package.json").write_text('{"private": true, "type": "module"}', encoding="utf-8")
        quiet = ["--no-audit", "--no-fund", "--loglevel=error"]
        run(["npm", "install", *quiet, *packages], cwd=home)
        _note(home, packages)
    return home


def clean_environ(**more: str) -> dict[str, str]:
    """The environment for a program of others: no settings of ours, no paths of this tree."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("NAIAD_") and name not in {"PYTHONPATH", "VIRTUAL_ENV"}
    }
    return {**kept, **more}


def server_environ() -> dict[str, str]:
    """The environment for a server from this tree, which no `naiad run` or `stop` shall find."""
    return clean_environ(PYTHONPATH=str(ROOT / "src"), NAIAD_STATE_DIR=str(FOLDER / "state"))


def _is_made(home: Path, packages: Sequence[str]) -> bool:
    stamp = home / _STAMP
    return stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == list(packages)


def _note(home: Path, packages: Sequence[str]) -> None:
    (home / _STAMP).write_text(json.dumps(list(packages)), encoding="utf-8")


def run(command: list[str], cwd: Path | None = None) -> None:
    """Raises Unavailable where it fails."""
    try:
        subprocess.run(command, cwd=cwd, env=clean_environ(), check=True)
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"{command[0]} failed with exit code {error.returncode}") from None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
