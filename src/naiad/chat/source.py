"""Text that comes in pieces, read as if it were all there. Pure.

Parsers are generators: they yield when they need more text, and go on when some has come. None of
them decides before the text so far leaves only one way, so how the text was cut never matters.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

T = TypeVar("T")

#: Yields to wait for more text; returns what it was to read.
Reading = Generator[None, None, T]


def split_first(text: str, marks: Sequence[str]) -> tuple[str, str | None, str]:
    """The text before the first of these marks, that mark, and the text behind it.

    Without any: the text that cannot belong to a mark, None, and the end that may begin one.
    """
    found = [(place, mark) for mark in marks if (place := text.find(mark)) >= 0]
    if found:
        # Of marks at one place the longest counts, or the rest of it would be left as text.
        place, mark = min(found, key=lambda one: (one[0], -len(one[1])))
        return text[:place], mark, text[place + len(mark) :]
    held = max((_overlap(text, mark) for mark in marks), default=0)
    return text[: len(text) - held], None, text[len(text) - held :]


def _overlap(text: str, mark: str) -> int:
    """How many characters at the end of a text begin the mark."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-size:]):
            return size
    return 0


class Source:
    """What is not yet read. `has_ended`: no more will come."""

    __slots__ = ("has_ended", "text")

    def __init__(self) -> None:
        self.text = ""
        self.has_ended = False

    def take(self) -> str:
        """All that is there."""
        text, self.text = self.text, ""
        return text

    def unread(self, text: str) -> None:
        """Put text back in front."""
        self.text = text + self.text

    def spaces(self) -> Reading[str]:
        """Skip white space, up to something else or the end; returns what was skipped."""
        skipped = ""
        while True:
            rest = self.text.lstrip()
            skipped += self.text[: len(self.text) - len(rest)]
            self.text = rest
            if rest or self.has_ended:
                return skipped
            yield

    def accept(self, *marks: str) -> Reading[str | None]:
        """Read the longest of these marks that comes next; None if none does."""
        while not self.has_ended and any(
            len(mark) > len(self.text) and mark.startswith(self.text) for mark in marks
        ):
            yield
        fitting = [mark for mark in marks if self.text.startswith(mark)]
        if not fitting:
            return None
        best = max(fitting, key=len)
        self.text = self.text[len(best) :]
        return best

    def until(
        self, marks: Sequence[str], tell: Callable[[str], None], *, keeps_end: bool = False
    ) -> Reading[str | None]:
        """Tell the text before the first of these marks as it comes, and read the mark.

        White space right before a mark is dropped, and so it is at the end of all unless
        `keeps_end`. Returns None at the end.
        """
        while True:
            before, mark, after = split_first(self.text, marks)
            sure = before.rstrip()
            tell(sure)
            if mark is not None:
                self.text = after
                return mark
            self.text = before[len(sure) :] + after
            if self.has_ended:
                rest = self.take()
                tell(rest if keeps_end else rest.rstrip())
                return None
            yield

    def rest(self, tell: Callable[[str], None]) -> Reading[None]:
        """Tell all that comes as it comes."""
        while True:
            tell(self.take())
            if self.has_ended:
                return
            yield
