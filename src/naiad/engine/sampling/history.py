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
    """How often each token stands in a window of a history, and where last, kept as it moves."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._start = self._end = 0
        self._n = 0
        self._table = np.empty((3, 64), np.int32)  # ids, counts, where each stands last
        self._places: dict[int, int] = {}

    @property
    def ids(self) -> Ids:
        """The distinct tokens of the window, in no order; a view valid until it moves."""
        return self._table[0, : self._n]

    @property
    def counts(self) -> Ids:
        """How often each of `ids` stands there."""
        return self._table[1, : self._n]

    @property
    def last(self) -> Ids:
        """The place in the history where each of `ids` stands last."""
        return self._table[2, : self._n]

    def move(self, start: int, end: int) -> None:
        """Count tokens [start, end) of the history instead.

        Going back counts anew: only the history knows where a token stood before its last place.
        """
        is_back = start < self._start or end < self._end
        if is_back or start - self._start + end - self._end > _REBUILD:
            self._rebuild(start, end)
        self._add(self._end, end)
        self._remove(self._history.between(self._start, start))
        self._start, self._end = start, end

    def _rebuild(self, start: int, end: int) -> None:
        tokens = self._history.between(start, end)[::-1]
        ids, at, counts = np.unique(tokens, return_index=True, return_counts=True)
        self._n = len(ids)
        self._table = np.array((ids, counts, end - 1 - at), np.int32)
        self._places = {token: place for place, token in enumerate(ids.tolist())}
        self._start, self._end = start, end

    def _add(self, start: int, end: int) -> None:
        for at, token in enumerate(self._history.between(start, end).tolist(), start):
            place = self._places.get(token)
            if place is not None:
                self._table[1, place] += 1
                self._table[2, place] = at
                continue
            if self._n == self._table.shape[1]:
                more = np.empty((3, self._n + 64), np.int32)
                self._table = np.concatenate((self._table, more), axis=1)
            self._places[token] = self._n
            self._table[:, self._n] = token, 1, at
            self._n += 1

    def _remove(self, tokens: Ids) -> None:
        for token in tokens.tolist():
            place = self._places[token]
            self._table[1, place] -= 1
            if self._table[1, place] == 0:
                self._drop(token, place)

    def _drop(self, token: int, place: int) -> None:
        """Fill the hole with the last entry."""
        self._n -= 1
        moved = int(self._table[0, self._n])
        self._table[:, place] = self._table[:, self._n]
        self._places[moved] = place
        del self._places[token]
