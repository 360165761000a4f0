"""What is typed while an answer comes: not shown in the middle of it, and not lost.

The terminal keeps it until the answer ends, and drops it when Ctrl-C stops the answer.
"""

from __future__ import annotations

import codecs
import os
import re
import select
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

#: Arrows and other keys that send several characters.
_KEYS = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|O.|.)?", re.DOTALL)
_READ_BYTES = 1 << 16
#: To the rest of a character: a terminal sends its bytes together, though reads may part them.
_REST_S = 0.1
_LFLAG, _CC = 3, 6  # places in what termios gives


@contextmanager
def without_echo() -> Iterator[Callable[[], bytes]]:
    """Keep the terminal from showing what is typed until the block ends.

    Gives a function that takes the keys typed so far, to be called within the block: `edited`
    makes a text of them, at best of all together, since a take may end within a character. What
    nobody takes is left to whoever reads the terminal next. Without a terminal, and in the
    background of a shell, nothing changes.
    """
    if not (sys.stdin.isatty() and _is_in_front(fd := sys.stdin.fileno())):
        yield lambda: b""
        return
    before = termios.tcgetattr(fd)
    silent = [*before[:_CC], [*before[_CC]]]
    silent[_LFLAG] &= ~(termios.ECHO | termios.ICANON)  # Ctrl-C stays what it is
    silent[_CC][termios.VMIN], silent[_CC][termios.VTIME] = 1, 0
    termios.tcsetattr(fd, termios.TCSADRAIN, silent)
    try:
        yield lambda: _waiting(fd)
    finally:
        if _is_in_front(fd):  # else the shell has set it for itself
            with suppress(termios.error):  # it hung up
                termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _is_in_front(fd: int) -> bool:
    """Whether this program may set and read the terminal: in the background that would stop it.

    A terminal that controls nobody here stops nobody.
    """
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return True


def _waiting(fd: int) -> bytes:
    """What can be read without waiting, and the rest of a character that has begun: whoever reads
    the terminal next could make nothing of it. Nothing more where the terminal hung up.
    """
    found = b""
    with suppress(OSError):
        while _is_readable(fd, _REST_S if _is_cut(found) else 0) and (
            read := os.read(fd, _READ_BYTES)
        ):
            found += read
    return found


def _is_readable(fd: int, wait_s: float) -> bool:
    return _is_in_front(fd) and bool(select.select([fd], [], [], wait_s)[0])


def _is_cut(typed: bytes) -> bool:
    """Whether it ends within a character."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
    decoder.decode(typed)
    return bool(decoder.getstate()[0])


def edited(typed: bytes) -> str:
    """The text that keys make: without those that move or control, with what was deleted gone.

    A space at the end stays: more may be typed behind it.
    """
    text: list[str] = []
    for char in _KEYS.sub("", typed.decode(errors="ignore")).replace("\r", "\n"):
        if char in "\x7f\b":
            del text[-1:]
        elif char == "\x15":  # Ctrl-U
            text.clear()
        elif char in "\n\t" or char.isprintable():
            text.append(char)
    return "".join(text).lstrip().rstrip("\n")
