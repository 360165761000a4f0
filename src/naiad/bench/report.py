"""The report: a table for people, a JSON object for programs. Pure but for printing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.table import Table

from naiad.bench.client import Target
from naiad.bench.figures import Spread, Summary

_COUNTS = ("streams", "failed", "wrong", "tok/s")
_TIMES = ("TTFT\np50", "\np99", "gap\np50", "\np99", "\nmax", "tail\np50")


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _cells(times: Spread | None, *names: str) -> list[str]:
    return [_ms(getattr(times, name) if times else None) for name in names]


def _row(line: Summary) -> list[str]:
    return [
        line.name,
        str(line.streams),
        str(line.failed),
        str(line.wrong),
        f"{line.tokens_per_s:.1f}",
        *_cells(line.ttft, "p50", "p99"),
        *_cells(line.gap, "p50", "p99", "max"),
        *_cells(line.tail, "p50"),
    ]


def table(lines: Sequence[Summary]) -> Table:
    """One row for each line; times in milliseconds."""
    made = Table(title="What the client saw (times in ms)", box=SIMPLE_HEAD, pad_edge=False)
    made.add_column("scenario", no_wrap=True)
    for name in (*_COUNTS, *_TIMES):
        made.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        bad = line.failed or line.wrong
        made.add_row(*_row(line), style="red" if bad else None)
    return made


def notes(lines: Sequence[Summary]) -> list[str]:
    """What does not fit the table: each scenario's own figures, lumped answers, errors."""
    said = []
    for line in lines:
        figures = [f"{name} {value}" for name, value in line.extra.items() if value is not None]
        if line.lumped:
            figures.append(f"{line.lumped} answers came in one event")
        said += [f"{line.name}: {', '.join(figures)}"] if figures else []
        said += [f"{line.name}: error: {error}" for error in line.errors]
    return said


def as_json(target: Target, lines: Sequence[Summary]) -> bytes:
    """The whole report, indented; never the key."""
    report: dict[str, Any] = {
        "target": {
            "host": target.host,
            "port": target.port,
            "dialect": target.dialect,
            "model": target.model,
        },
        "unit": "milliseconds",
        "results": [msgspec.to_builtins(line) for line in lines],
    }
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
