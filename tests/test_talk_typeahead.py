"""What is typed while an answer comes, at a terminal made for the test."""

from __future__ import annotations

import os
import sys
import termios
from collections.abc import Iterator

import pytest

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
        assert typed() == "and näxt?"
        assert typed() == ""
    assert termios.tcgetattr(sys.stdin) == before
    os.write(typist, b"seen\r")
    assert os.read(typist, 100) == b"seen\r\n"  # nothing of what was typed before


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
            assert typed() == ""


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        (b"\r", ""),
        (b"one\rtwo\r\r", "one\ntwo"),
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
