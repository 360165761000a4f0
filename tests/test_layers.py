"""Imports go one way. The table is the architecture; there is no list of exceptions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from source_tree import FILES, SRC, statements

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


ROOMS = sorted({room_of(path) for path in FILES} - {"__init__", "__main__"})
each_room = pytest.mark.parametrize("room", ROOMS)


def imported_modules(path: Path) -> Iterator[str]:
    """Dotted names; of `from naiad import x`, `naiad.x`."""
    for node in statements(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path}"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names]
            yield from names if module == "naiad" else [module]


def imported_rooms(path: Path) -> set[str]:
    """The rooms of naiad that the file imports."""
    parts = (name.split(".") for name in imported_modules(path))
    return {part[1] for part in parts if part[0] == "naiad" and len(part) > 1} - {"__version__"}


def wrong_imports(room: str) -> dict[str, set[str]]:
    allowed = ALLOWED[room] | {room}
    found = {path: imported_rooms(path) - allowed for path in FILES if room_of(path) == room}
    return {str(path.relative_to(SRC)): rooms for path, rooms in found.items() if rooms}


@each_room
def test_imports_go_one_way(room: str) -> None:
    assert wrong_imports(room) == {}, f"{room} may import {sorted(ALLOWED[room])}"


def test_the_check_of_imports_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALLOWED, "http", set())
    assert "dialects" in wrong_imports("http")["http/endpoint.py"]


def test_ctypes_stays_in_native() -> None:
    users = {
        room_of(path)
        for path in FILES
        for name in imported_modules(path)
        if name.split(".")[0] in {"ctypes", "llama_cpp"}
    }
    assert users <= {"native"}
