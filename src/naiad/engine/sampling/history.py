"""The tokens a sequence has said so far, and counts of the last of them; both can go back."""

from __future__ import annotations

import numpy as np

from naiad.native.sampler import Ids

_REBUILD = 200  # moves from which counting anew is cheaper


class History:
    """Token ids in an array that grows."""

    def __init__(self, tokens: list[int]) -> None:
        self._array: Ids = np.array(tokens, np.int32)
        self._n = len(tokens)

    def __len__(self) -> int:
        return self._n

    def append(self, token: int) -> None:
        if self._n == len(self._array):
            grown = np.empty(2 * self._n + 64, np.int32)
            grown[: self._n] = self._array
            self._array = grown
        self._array[self._n] = token
        self._n += 1

    def rewind(self, n_tokens: int) -> None:
        self._n -= n_tokens

    def last(self, n: int) -> Ids:
        """The last n tokens, or all of them where there are fewer; a view."""
        return self._array[max(0, self._n - n) : self._n]

    def between(self, start: int, end: int) -> Ids:
        """Tokens [start, end); a view."""
        return self._array[start:end]


class Tally:
    """How often each token stands in a window of a history, kept as the window moves."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._start = self._end = 0
        self._n = 0
        self._ids = np.empty(64, np.int32)
        self._counts = np.empty(64, np.int32)
        self._places: dict[int, int] = {}

    @property
    def ids(self) -> Ids:
        """The distinct tokens of the window, in no order; a view valid until it moves."""
        return self._ids[: self._n]

    @property
    def counts(self) -> Ids:
        """How often each of `ids` stands there."""
        return self._counts[: self._n]

    def move(self, start: int, end: int) -> None:
        """Count tokens [start, end) of the history instead."""
        if abs(start - self._start) + abs(end - self._end) > _REBUILD:
            self._rebuild(start, end)
        out = self._history.between
        self._remove(out(self._start, min(start, self._end)))
        self._remove(out(max(end, self._start), self._end))
        self._add(out(start, min(self._start, end)))
        self._add(out(max(self._end, start), end))
        self._start, self._end = start, end

    def _rebuild(self, start: int, end: int) -> None:
        ids, counts = np.unique(self._history.between(start, end), return_counts=True)
        self._ids, self._counts, self._n = ids, counts.astype(np.int32), len(ids)
        self._places = {token: place for place, token in enumerate(ids.tolist())}
        self._start, self._end = start, end

    def _add(self, tokens: Ids) -> None:
        for token in tokens.tolist():
            place = self._places.get(token)
            if place is not None:
                self._counts[place] += 1
                continue
            if self._n == len(self._ids):
                self._ids = np.resize(self._ids, 2 * self._n + 64)
                self._counts = np.resize(self._counts, 2 * self._n + 64)
            self._places[token] = self._n
            self._ids[self._n], self._counts[self._n] = token, 1
            self._n += 1

    def _remove(self, tokens: Ids) -> None:
        for token in tokens.tolist():
            place = self._places[token]
            self._counts[place] -= 1
            if self._counts[place] == 0:
                self._drop(token, place)

    def _drop(self, token: int, place: int) -> None:
        """Fill the hole with the last entry."""
        self._n -= 1
        moved = int(self._ids[self._n])
        self._ids[place], self._counts[place] = moved, self._counts[self._n]
        self._places[moved] = place
        del self._places[token]
