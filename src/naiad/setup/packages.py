"""Install naiad and what it needs, by pip, and show how far that is:
`python -m naiad.setup.packages . | '.[dev]'`.

pip either says a line for everything it considers, or nothing for half a minute. On a terminal its
lines become one that redraws itself; elsewhere they become one at the end.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

PIP = ("install", "--disable-pip-version-check", "--no-input", "--progress-bar", "off", "-e")

_NAME = r"[A-Za-z][\w.]*(?:-[A-Za-z][\w.]*)*"  # up to what begins a version
_FOUND = re.compile(rf"(?:Collecting|\s+Downloading|Processing) (?:\S*/)?({_NAME})")
_SIZE = re.compile(r" (\([\d.]+ [kMG]?B\))$")
_INSTALLING = re.compile(r"Installing collected packages: (.*)")
_INSTALLED = re.compile(r"Successfully installed (.*)")
#: Widest line that is redrawn: a longer one would leave its halves behind in a narrow terminal.
_WIDTH = 70
#: Lines of pip that are shown when it fails.
LAST_LINES = 25


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns pip's exit status."""
    (what,) = sys.argv[1:] if arguments is None else arguments
    shown = Shown(_write, sys.stdout.isatty())
    command = [sys.executable, "-m", "pip", *PIP, what]
    try:
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as pip:
            assert pip.stdout is not None
            shown.follow(pip.stdout)
    except KeyboardInterrupt:
        return 130
    shown.end(has_failed=pip.returncode != 0)
    return pip.returncode


@dataclass(slots=True)
class Shown:
    """pip's work in few words, and its own last words when it fails."""

    write: Callable[[str], object]
    is_terminal: bool
    clock: Callable[[], float] = time.monotonic
    _began: float = 0.0
    _found: set[str] = field(default_factory=set)
    _n_installed: int = 0
    _last: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))

    def follow(self, lines: Iterable[str]) -> None:
        """Take pip's lines as they come."""
        self._began = self.clock()
        if self.is_terminal:
            self.write("  asking pip")
        for line in lines:
            self._last.append(line)
            told = self._told(line.rstrip())
            if told and self.is_terminal:
                self.write(f"\r\x1b[K  {told[:_WIDTH]}  {self._elapsed()}")

    def end(self, *, has_failed: bool) -> None:
        """Say what there is now, or why not."""
        self.write("\r\x1b[K" if self.is_terminal else "")
        if has_failed:
            self.write("".join(self._last))
        elif self._n_installed:
            s = "" if self._n_installed == 1 else "s"
            self.write(f"  {self._n_installed} package{s} in {self._elapsed()}.\n")

    def _told(self, line: str) -> str:
        if match := _FOUND.match(line):
            name = match[1].replace("_", "-").lower()
            self._found.add(name)
            size = _SIZE.search(line)
            return " ".join([f"{len(self._found)} found: {name}", *(size.groups() if size else ())])
        if match := _INSTALLING.match(line):
            return f"putting {len(match[1].split())} into place"
        if match := _INSTALLED.match(line):
            self._n_installed = len(match[1].split())
        return ""

    def _elapsed(self) -> str:
        seconds = int(self.clock() - self._began)
        return f"{seconds // 60}:{seconds % 60:02}"


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
