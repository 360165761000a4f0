"""Imports go one way. The table is the architecture; there is no list of exceptions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "naiad"

#: room -> rooms it may import (itself always). A room is a package or a top-level module.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "types": {"errors"},
    "config": {"errors", "types"},
    "text": set(),
    "chat": {"errors", "types"},
    "ipc": {"errors", "types"},
    "native": {"errors", "types"},
    "engine": {"native", "ipc", "types", "errors", "config"},
    "client": {"ipc", "types", "errors", "config"},
    "service": {"client", "chat", "text", "types", "errors", "config"},
    "ui": set(),
    "dialects": {"ui", "types", "errors"},
    "http": {"dialects", "service", "ui", "types", "errors", "config"},
    "models": {"errors", "types", "config"},
    "setup": {"errors"},
    "bench": {"errors"},
    "tune": {"engine", "native", "config", "errors"},
    "testing": {"engine", "client", "ipc", "types", "errors", "config"},
    "cli": {
        "http",
        "dialects",
        "service",
        "client",
        "models",
        "setup",
        "bench",
        "tune",
        "engine",
        "config",
        "types",
        "errors",
        "testing",
    },
}


def room_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path}"
            module = node.module or ""
            names = [f"{module}.{a.name}" for a in node.names] if module == "naiad" else [module]
        for name in names:
            parts = name.split(".")
            if parts[0] == "naiad" and len(parts) > 1 and parts[1] != "__version__":
                yield parts[1]


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda p: str(p.relative_to(SRC)))
def test_imports_go_one_way(path: Path) -> None:
    room = room_of(path)
    if room in {"__init__", "__main__"}:
        return
    allowed = ALLOWED[room] | {room}
    wrong = sorted(set(imported_rooms(path)) - allowed)
    assert not wrong, f"{room} must not import {wrong}"


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda p: str(p.relative_to(SRC)))
def test_ctypes_stays_in_native(path: Path) -> None:
    if room_of(path) == "native":
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {
        a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names
    }
    names |= {
        (n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)
    }
    assert not names & {"ctypes", "llama_cpp"}
