"""The source of naiad as the tests of its shape see it: every file is read and parsed once."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

SRC = Path(__file__).parents[1] / "src" / "naiad"
FILES = tuple(sorted(SRC.rglob("*.py")))

_PARTS = ("body", "orelse", "finalbody", "handlers", "cases")


def _below(node: ast.AST) -> Iterator[ast.AST]:
    """Statements at any depth; expressions, nine nodes of ten, hold none."""
    for part in _PARTS:
        inner = getattr(node, part, ())
        for child in inner if isinstance(inner, list) else ():
            yield child
            yield from _below(child)


@cache
def statements(path: Path) -> tuple[ast.AST, ...]:
    """All statements of the file, with what is inside functions, classes and branches."""
    return tuple(_below(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def n_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")
