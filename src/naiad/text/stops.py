"""Stop strings in a stream: nothing of a stop string is ever released, nothing else is lost.

Rule: the stop that is complete first ends the text; of several complete at the same character the
longest does, which is the one that starts first. This needs no look at what follows, so the result
does not depend on how the text is cut, and a stream stops at the very character that ends a stop.

Text is held back only while it may still become a stop: the longest suffix that is a proper prefix
of some stop. Each stop is followed by its own Knuth-Morris-Pratt automaton, so no character is
looked at twice, whatever was held back; failure tables grow only as far as a match ever got.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


class _Automaton:
    """Progress of one stop: how many of its first characters the text ends with."""

    __slots__ = ("_borders", "matched", "stop")

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        self._borders = [0]  # [k]: the longest proper border of stop[:k + 1]

    def advance(self, char: str) -> bool:
        """Take one character; True when the stop is complete."""
        self.matched = self._longer(self.matched, char)
        if self.matched > len(self._borders):
            self._borders.append(self._longer(self._borders[-1], char))
        return self.matched == len(self.stop)

    def _longer(self, matched: int, char: str) -> int:
        while self.stop[matched] != char:
            if matched == 0:
                return 0
            matched = self._borders[matched - 1]
        return matched + 1


class StopMatcher:
    """Finds the first of some stop strings in one stream of text.

    Args:
        stops: any number, any length; empty strings are ignored.
    """

    __slots__ = ("_held", "_live", "_matched", "_openers", "_opening")

    def __init__(self, stops: Iterable[str]) -> None:
        self._openers: dict[str, list[_Automaton]] = {}
        for stop in dict.fromkeys(stops):
            if stop:
                self._openers.setdefault(stop[0], []).append(_Automaton(stop))
        self._opening = re.compile("|".join(map(re.escape, self._openers)) or r"(?!)")
        self._live: list[_Automaton] = []  # those with matched > 0
        self._held = ""
        self._matched: str | None = None

    @property
    def matched(self) -> str | None:
        """The stop that ended the text, once there is one."""
        return self._matched

    def feed(self, text: str) -> tuple[str, str | None]:
        """The text that is safe to release, and the stop that ended it, if any.

        After a match everything fed is dropped.
        """
        if self._matched is not None:
            return "", self._matched
        if not self._live and self._opening.search(text) is None:
            return text, None
        buffer = self._held + text
        for place, char in enumerate(text, start=len(self._held) + 1):
            hit = self._advance(char)
            if hit is not None:
                self._matched, self._held = hit, ""
                return buffer[: place - len(hit)], hit
        kept = len(buffer) - max((one.matched for one in self._live), default=0)
        self._held = buffer[kept:]
        return buffer[:kept], None

    def finish(self) -> str:
        """Release what was held back: the end has come and it became no stop."""
        held, self._held, self._live = self._held, "", []
        return held

    def _advance(self, char: str) -> str | None:
        watched = self._live
        fresh = self._openers.get(char)
        if fresh is not None:
            watched = watched + [one for one in fresh if not one.matched]
        complete = [one.stop for one in watched if one.advance(char)]
        self._live = [one for one in watched if one.matched]
        return max(complete, key=len, default=None)
