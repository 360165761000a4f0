"""Masks of all streams of a step, worked out side by side where that pays.

One stream's mask takes tens of microseconds, rarely milliseconds; sixty-four in a row take longer
than a small model's step. llguidance fills them on threads of its own, the interpreter let go.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from naiad.engine.grammar.follower import SLOW_S, Follower

if TYPE_CHECKING:
    from llguidance import LLExecutor

#: One stream's mask as llguidance writes it: a bit for each token, the lowest first.
Bits = npt.NDArray[np.int32]

_MAX_THREADS = 8
_FEWEST = 8  # streams from which waking threads costs less than it saves
_N_APART = 64  # steps in which each stream's time is taken, after one that was slow


class MaskBatch:
    """Scratch and threads for the masks of a step. The threads end with it."""

    def __init__(self, n_vocab: int, n_threads: int | None = None) -> None:
        """n_threads: by default one for two processors, at most 8; with 1 nothing is done here."""
        self._n_threads = n_threads or min(_MAX_THREADS, max(1, (os.cpu_count() or 1) // 2))
        self._n_words = (n_vocab + 31) // 32
        self._bits = np.zeros((0, self._n_words), np.int32)
        self._executor: LLExecutor | None = None
        self._n_apart = 0

    def fill(self, followers: Sequence[Follower | None]) -> list[Bits | None]:
        """For `Follower.mask`, until the next call; None where it had better work it out itself.

        Who held a step up cannot be told of masks that are filled together, so after a slow one
        they are not, for a while.
        """
        found: list[Bits | None] = [None] * len(followers)
        if self._n_apart:
            self._n_apart -= 1
            return found
        many = [(i, f) for i, f in enumerate(followers) if f is not None and not f.is_waiting]
        if self._n_threads < 2 or len(many) < _FEWEST:
            return found
        began = time.perf_counter()
        bits = self._filled([follower for _, follower in many])
        if time.perf_counter() - began > SLOW_S:
            self._n_apart = _N_APART
        for row, (i, _) in zip(bits, many, strict=True):
            found[i] = row
        return found

    def _filled(self, followers: list[Follower]) -> Bits:
        """Shape (streams, words)."""
        from llguidance import LLExecutor
        from llguidance.numpy import fill_next_token_bitmask_par

        if self._executor is None:
            self._executor = LLExecutor(self._n_threads)
        if len(self._bits) < len(followers):
            self._bits = np.zeros((len(followers), self._n_words), np.int32)
        bits = self._bits[: len(followers)]
        places = [(follower.matcher, row) for row, follower in enumerate(followers)]
        fill_next_token_bitmask_par(self._executor, places, bits)
        return bits
