"""Progress on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import click

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Reporter(AbstractContextManager["Reporter"], Protocol):
    """Shows how far a piece of work is. Work may have several stages, one after the other."""

    def update(self, stage: str, done: float, total: float, now: str = "") -> None:
        """Show that `done` of `total` is reached in this stage; both in the reporter's unit.

        now: what of it is being done.
        """
        ...


def reporter(*, in_bytes: bool, is_quiet: bool = False) -> Reporter:
    """A reporter that suits standard error; without in_bytes, only per cent are shown."""
    if is_quiet:
        return QuietReporter()
    return BarReporter(in_bytes) if sys.stderr.isatty() else LineReporter(in_bytes)


def _to_stderr(line: str) -> None:
    click.echo(line, err=True)


class QuietReporter(Reporter):
    """Shows nothing."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def update(self, stage: str, done: float, total: float, now: str = "") -> None:  # noqa: ARG002
        return None


class LineReporter(QuietReporter):
    """A plain line whenever another quarter is done, or something else is being done; for logs and
    pipes. say: takes each line.
    """

    def __init__(self, in_bytes: bool, say: Callable[[str], object] = _to_stderr) -> None:
        self._in_bytes = in_bytes
        self._say = say
        self._last: tuple[str, int, str] | None = None

    def update(self, stage: str, done: float, total: float, now: str = "") -> None:
        quarter = int(done * 4 / total) if total else 4
        if self._last == (stage, quarter, now):
            return
        self._last = (stage, quarter, now)
        if now:
            self._say(f"{stage}: {100 * done / total:.0f} %, {now}")
            return
        of = f" of {mebibytes(total)}" if self._in_bytes else ""
        self._say(f"{stage}: {quarter * 25} %{of}")


class BarReporter(Reporter):
    """One bar per stage, with speed and remaining time for bytes."""

    def __init__(self, in_bytes: bool) -> None:
        self._in_bytes = in_bytes
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()]
        of_bytes = [DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
        shown = [*columns, *(of_bytes if self._in_bytes else [])]
        self._progress = Progress(*shown, console=Console(stderr=True), transient=True)
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, stage: str, done: float, total: float, now: str = "") -> None:
        assert self._progress is not None, "use the reporter in a with statement"
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        title = f"{stage}: {now}" if now else stage
        self._progress.update(self._tasks[stage], completed=done, total=total, description=title)


def mebibytes(n_bytes: float) -> str:
    """A size for people: "93.8 MiB", "1.2 GiB"."""
    if n_bytes >= 1 << 30:
        return f"{n_bytes / (1 << 30):.1f} GiB"
    return f"{n_bytes / (1 << 20):.1f} MiB"
