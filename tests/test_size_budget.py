"""The size budget is part of the gate: small functions, small files, everything typed."""

from __future__ import annotations

import ast
import statistics
from pathlib import Path

from source_tree import FILES, SRC, n_lines, statements

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions() -> list[tuple[str, Function]]:
    return [
        (f"{path.relative_to(SRC)}:{node.name}", node)
        for path in FILES
        for node in statements(path)
        if isinstance(node, Function)
    ]


def length(node: Function) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def test_functions_are_short() -> None:
    found = functions()
    assert statistics.median(length(node) for _, node in found) <= 8
    assert [name for name, node in found if length(node) > 60] == []


def test_files_are_short() -> None:
    lines = {p.relative_to(SRC): n_lines(p) for p in FILES}
    assert {name: n for name, n in lines.items() if n > 450} == {}


def test_everything_is_typed() -> None:
    bare = [
        name
        for name, node in functions()
        for arg in (*node.args.args, *node.args.kwonlyargs)
        if arg.annotation is None and arg.arg not in {"self", "cls"}
    ]
    assert bare == []


def test_as_many_lines_of_test_as_of_source() -> None:
    tests = Path(__file__).parent.rglob("*.py")
    assert sum(map(n_lines, tests)) >= sum(map(n_lines, FILES))
