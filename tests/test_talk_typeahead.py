"""What is typed while an answer comes, at a terminal made for the test."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from unittest.mock import Mock

import pytest

from naiad.cli.talk.chat import Chat, at_terminal
from naiad.cli.talk.conversation import Conversation
from naiad.cli.talk.typeahead import edited, without_echo


@pytest.fixture
def typist(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The other end of the terminal that standard input is."""
    outer, inner = os.openpty()
    with os.fdopen(inner, "r", closefd=True) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield outer
    os.close(outer)


def test_it_is_kept_and_not_shown(typist: int) -> None:
    before = termios.tcgetattr(sys.stdin)
    with without_echo() as typed:
        os.write(typist, "and näxt?\r".encode())
        assert edited(typed()) == "and näxt?"
        assert typed() == b""
    assert termios.tcgetattr(sys.stdin) == before
    os.write(typist, b"seen\r")
    assert os.read(typist, 100) == b"seen\r\n"  # nothing of what was typed before


@pytest.mark.parametrize("n_first", [1, 2, 3])
def test_a_take_waits_for_the_rest_of_a_character(
    typist: int, monkeypatch: pytest.MonkeyPatch, n_first: int
) -> None:
    char = "🐟".encode()
    to_come = [char[:n_first], char[n_first:]]

    def looks(fds: list[int], _w: list[int], _x: list[int], wait_s: float) -> tuple[list[int], ...]:
        assert (wait_s > 0) == (len(to_come) == 1)
        if to_come:
            os.write(typist, to_come.pop(0))
        return really(fds, _w, _x, wait_s)

    really = select.select
    monkeypatch.setattr("naiad.cli.talk.typeahead.select.select", looks)
    with without_echo() as typed:
        assert edited(typed()) == "🐟"


def test_what_nobody_takes_is_left_to_the_next_reader(typist: int) -> None:
    with without_echo():
        os.write(typist, b"ls\r")
    assert os.read(sys.stdin.fileno(), 100) == b"ls\n"


def test_the_terminal_is_as_before_after_a_failure(typist: int) -> None:
    before = termios.tcgetattr(sys.stdin)
    with pytest.raises(KeyboardInterrupt), without_echo():
        raise KeyboardInterrupt
    assert termios.tcgetattr(sys.stdin) == before


def test_without_a_terminal_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull) as null:  # noqa: PTH123 - as standard input is
        monkeypatch.setattr(sys, "stdin", null)
        with without_echo() as typed:
            assert typed() == b""


def test_in_the_background_the_terminal_is_left_alone(
    typist: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = termios.tcgetattr(sys.stdin)
    os.write(typist, b"ls\r")
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp() + 1)
    with without_echo() as typed:
        assert termios.tcgetattr(sys.stdin) == before
        assert typed() == b""
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp())
    with without_echo() as typed:
        monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp() + 1)
        silent = termios.tcgetattr(sys.stdin)
        assert typed() == b""
    assert termios.tcgetattr(sys.stdin) == silent


@pytest.mark.soak
@pytest.mark.parametrize("goes_when", ["before", "within"])
def test_in_the_background_of_a_shell_nobody_is_stopped(goes_when: str) -> None:
    outer, inner = os.openpty()
    done = subprocess.run(
        [sys.executable, "-c", _SHELL, goes_when], stdin=inner, start_new_session=True, check=False
    )
    os.close(inner)
    os.close(outer)
    assert done.returncode == 0


_SHELL = """
import fcntl, os, signal, sys, termios
from naiad.cli.talk.chat import Chat, at_terminal
from naiad.cli.talk.conversation import Conversation
from naiad.cli.talk.typeahead import without_echo

fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.tcsetpgrp(0, os.getpgrp())
job = os.fork()
if not job:
    if sys.argv[1] == "before":
        os.setpgid(0, 0)
    with without_echo() as typed:
        if sys.argv[1] == "within":
            os.setpgid(0, 0)
        typed()
    os._exit(0)
_, status = os.waitpid(job, os.WUNTRACED)
if os.WIFSTOPPED(status):
    os.kill(job, signal.SIGKILL)
sys.exit(status != 0)
"""


def test_after_a_hang_up_the_failure_is_told_and_not_the_terminals(typist: int) -> None:
    with pytest.raises(ValueError, match="real"), without_echo() as typed:
        os.write(typist, b"ls")
        os.dup2(os.open(os.devnull, os.O_WRONLY), typist)
        assert typed() in {b"", b"ls"}
        raise ValueError("the real one")


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        (b"\r", ""),
        (b"one\rtwo\r\r", "one\ntwo"),
        (b"  one \r two ", "one \n two "),
        (b"onw\x7fe", "one"),
        (b"\x7f\x7fone", "one"),
        (b"wrong\x15right", "right"),
        (b"a\x1b[A\x1b[1;5Cb\x1bOPc\x1b", "abc"),
        (b"\x1b[200~pasted\x1b[201~", "pasted"),
        (b"\x04\x00x\xff", "x"),
    ],
)
def test_keys_make_a_text(typed: bytes, text: str) -> None:
    assert edited(typed) == text


def test_takes_may_end_anywhere_and_lose_nothing(
    typist: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A space, a character of two bytes, and one that is deleted after it was taken."""
    drafts: list[str] = []

    def prompter(*, keeps_history: bool) -> Callable[[str], str]:
        os.write(typist, b"\x96re\x7f")
        return read

    def read(draft: str) -> str:
        drafts.append(draft)
        raise EOFError

    monkeypatch.setattr("naiad.cli.talk.prompt.prompter", prompter)
    chat = Chat(Mock(), Conversation(), Mock())
    at_terminal(chat, keeps_history=False, keys="one mö".encode()[:-1])
    assert drafts == ["one mÖr"]
