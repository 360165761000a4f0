"""Stages that change the logits of few tokens and cut none: biases, bans, penalties.

At the head of an order they are written into the row of logits before anything is cut, so no cut
can lose a token they would have raised; the row is put back afterwards. Later in an order they
change the candidates that are left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from naiad.engine.sampling.history import History, Tally
from naiad.engine.sampling.rows import Left
from naiad.native.sampler import Ids, Logits
from naiad.types import SamplingParams

Which = npt.NDArray[np.intp] | slice
_ALL = slice(None)


class Change(NamedTuple):
    """New logits for some tokens. apply: of (their logits, which of `ids` those are)."""

    ids: Ids
    apply: Callable[[Logits, Which], Logits]


class Shaper(Protocol):
    """A stage that changes the logits of few tokens."""

    def change(self) -> Change | None:
        """What to change for the next token; None for nothing."""

    def accept(self, token: int) -> None:
        """A token came; the history has it already."""

    def rewind(self, n_tokens: int) -> None:
        """The last tokens are taken back; the history still has them."""


class Undo(NamedTuple):
    """What a row held before."""

    ids: Ids
    logits: Logits


def shape_row(row: Logits, shapers: Iterable[Shaper]) -> list[Undo]:
    """Write changes into a row. Returns what `unshape` needs to put it back."""
    done = []
    for shaper in shapers:
        change = shaper.change()
        if change is not None and len(change.ids):
            old = row[change.ids]
            row[change.ids] = change.apply(old, _ALL)
            done.append(Undo(change.ids.copy(), old))
    return done


def unshape(row: Logits, done: list[Undo]) -> None:
    for undo in reversed(done):
        row[undo.ids] = undo.logits


def shape_left(left: Left, shaper: Shaper) -> Left:
    """The same to candidates that are left."""
    change = shaper.change()
    if change is None:
        return left
    _, at, which = np.intersect1d(left.ids, change.ids, assume_unique=True, return_indices=True)
    logits = left.logits.copy()
    logits[at] = change.apply(logits[at], which)
    return Left(left.ids, logits)


class Biases:
    """Added to the logit: several for one token add up, and minus infinity bans it."""

    def __init__(self, biases: Iterable[tuple[int, float]], n_vocab: int) -> None:
        total: dict[int, float] = {}
        for token, bias in biases:
            if 0 <= token < n_vocab:
                total[token] = total.get(token, 0.0) + bias
        by = np.array(list(total.values()), np.float32)
        ids = np.array(list(total), np.int32)
        self._change = Change(ids, lambda logits, which: logits + by[which])
        self.is_on = bool(total)
        is_ban = all(bias == -math.inf for bias in total.values())
        self.banned = frozenset(total) if is_ban else None  # where nothing else is done

    def change(self) -> Change | None:
        return self._change

    def accept(self, token: int) -> None:
        pass  # biases do not look back

    def rewind(self, n_tokens: int) -> None:
        pass


class Penalties:
    """Repetition, frequency and presence penalties over the last tokens.

    Each token that stands in the window: its logit x becomes x / r if x > 0, else x * r, less
    n * frequency + presence, where it stands there n times (llama.cpp's stage). With a slope other
    than 1, tokens that stand only in the older half of the window (rounded down) have
    1 + (r - 1) * slope for r where r > 1 (KoboldCpp's rule).
    """

    def __init__(self, p: SamplingParams, history: History, n_ctx: int) -> None:
        self._p = p
        self._history = history
        self._size = look_back(p.penalty_last_n, n_ctx)
        self._tally = Tally(history)

    def change(self) -> Change | None:
        self._move(len(self._history))
        p, counts = self._p, self._tally.counts
        off = counts * np.float32(p.frequency_penalty) + np.float32(p.presence_penalty)
        repeat = self._repeat()

        def apply(logits: Logits, which: Which) -> Logits:
            r = repeat[which]
            changed: Logits = np.where(logits > 0, logits / r, logits * r) - off[which]
            return changed

        return Change(self._tally.ids, apply)

    def _repeat(self) -> Logits:
        p, ids = self._p, self._tally.ids
        repeat = np.full(len(ids), p.repetition_penalty, np.float32)
        if p.penalty_slope != 1 and p.repetition_penalty > 1:
            n = min(len(self._history), self._size)
            far_only = self._tally.last < len(self._history) - (n - n // 2)
            repeat[far_only] = 1 + (p.repetition_penalty - 1) * p.penalty_slope
        return repeat

    def accept(self, token: int) -> None:
        pass  # the window moves when it is next asked for

    def rewind(self, n_tokens: int) -> None:
        self._move(len(self._history) - n_tokens)

    def _move(self, end: int) -> None:
        self._tally.move(max(0, end - self._size), end)


def look_back(last_n: int, n_ctx: int) -> int:
    """Tokens looked back over; -1 means the whole context."""
    return n_ctx if last_n < 0 else min(last_n, n_ctx)


def bans(tokens: Iterable[int]) -> list[tuple[int, float]]:
    """Biases that ban."""
    return [(token, -math.inf) for token in tokens]
