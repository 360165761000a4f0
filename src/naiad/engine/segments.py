"""What is left of an earlier prompt inside a new one: the pieces that kept their order but moved.

Front ends that run out of context keep the system prompt, drop the oldest turns and insert lore, so
the new prompt is the old one with gaps and insertions. Everything after the first difference would
be computed again, though nearly all of it was computed before, only at other positions. This file
finds those pieces; `naiad.engine.lane` loads and shifts them. Pure: token ids in, ranges out.

The search is rsync's: the old tokens' windows are looked up by their hash in a table of all windows
of the new ones, and matches grow in both directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Ids: TypeAlias = npt.NDArray[np.int64]

#: Tokens of one looked-up window; a piece shorter than twice this may be missed.
WINDOW = 32
#: Shorter pieces are not worth the inexactness of a shift.
MIN_SEGMENT = 64
_PRIME = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens [old, old + n) of the earlier sequence are [new, new + n) of the new one."""

    old: int
    new: int
    n: int

    @property
    def shift(self) -> int:
        """How far the positions move; negative when older turns were dropped."""
        return self.new - self.old

    @property
    def end(self) -> int:
        """Where it ends in the new sequence."""
        return self.new + self.n


class SegmentFinder:
    """Looks for pieces of earlier prompts in new[start:end]; one table serves many of them."""

    def __init__(self, new: list[int], start: int, end: int) -> None:
        self._new = np.array(new[:end], np.int64)
        self._start = start
        self._places: dict[int, tuple[int, ...]] = {}
        for offset, value in enumerate(_window_hashes(self._new)[start:].tolist()):
            known = self._places.get(value, ())
            if len(known) < _MOST_PLACES:
                self._places[value] = (*known, start + offset)

    def segments(self, old: list[int], start: int) -> list[Segment]:
        """Pieces of old[start:], in order in both, none overlapping.

        Greedy from the left: at each place the first piece of at least MIN_SEGMENT tokens is taken.
        """
        tokens = np.array(old, np.int64)
        hashes = _window_hashes(tokens).tolist()
        found: list[Segment] = []
        at_old, at_new, probe = start, self._start, start
        while probe < len(hashes):
            places = self._places.get(hashes[probe], ())
            segment = self._grow(tokens, places, probe, at_old, at_new)
            if segment is None:
                probe += WINDOW
                continue
            found.append(segment)
            at_old = probe = segment.old + segment.n
            at_new = segment.end
        return found

    def _grow(
        self, old: Ids, places: tuple[int, ...], probe: int, at_old: int, at_new: int
    ) -> Segment | None:
        """The piece around old position `probe`: the leftmost place that is long enough."""
        for place in places:
            if place < at_new:
                continue
            back = _common_suffix(old[at_old:probe], self._new[at_new:place])
            ahead = _common_prefix(old[probe:], self._new[place:])
            if ahead >= WINDOW and back + ahead >= MIN_SEGMENT:
                return Segment(probe - back, place - back, back + ahead)
        return None


#: Of a window that occurs over and over, this many places are tried.
_MOST_PLACES = 8


def _window_hashes(tokens: Ids) -> npt.NDArray[np.uint64]:
    """A hash of each WINDOW consecutive tokens; collisions cost time, matches are compared."""
    n = len(tokens) - WINDOW + 1
    if n <= 0:
        return np.zeros(0, np.uint64)
    values = (tokens.astype(np.uint64) + np.uint64(1)) * _PRIME
    hashed = np.zeros(n, np.uint64)
    for offset in range(WINDOW):
        part = values[offset : offset + n]
        hashed = hashed * _PRIME + (part ^ (part >> np.uint64(7)))
    return hashed


def _common_prefix(a: Ids, b: Ids) -> int:
    n = min(len(a), len(b))
    differs = np.flatnonzero(a[:n] != b[:n])
    return int(differs[0]) if len(differs) else n


def _common_suffix(a: Ids, b: Ids) -> int:
    return _common_prefix(a[::-1], b[::-1])
