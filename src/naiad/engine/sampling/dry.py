"""DRY, "don't repeat yourself": penalties for tokens that would go on with a repetition.

Source: p-e-w, text-generation-webui pull request 5677. Where the last n tokens also stand earlier
in the window, followed by the token t, t loses multiplier * base ** (n - allowed_length), for the
greatest such n of at least allowed_length. Exponents that overflow a float are cut. A sequence
breaker ends the stretch of tokens that may match: only those after its last occurrence count, and
a token that holds one is never penalised. Breakers are looked for in the text, so it does not
matter how they are split into tokens.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from naiad.engine.sampling.history import History
from naiad.engine.sampling.shaping import Change, Which
from naiad.native.sampler import Ids, Logits
from naiad.types import SamplingParams

Piece = Callable[[int], bytes]
Places = npt.NDArray[np.intp]

_LN_FLOAT_MAX = 88.7228391  # exponents of a base are cut so that its power is a float32
_LONGEST = 1024
_KEPT = 16  # steps back that cost nothing


class Dry:
    """The stage. piece: a token's bytes; without it nothing breaks a sequence."""

    def __init__(
        self, p: SamplingParams, history: History, n_ctx: int, piece: Piece | None
    ) -> None:
        self._p = p
        self._history = history
        # 0 means the whole context as well: what switches the stage off is its multiplier.
        self._size = n_ctx if p.dry_last_n <= 0 else min(p.dry_last_n, n_ctx)
        reach = _LN_FLOAT_MAX / math.log(p.dry_base) if p.dry_base > 1.000001 else _LONGEST
        self._longest = p.dry_allowed_length + min(int(reach), _LONGEST)
        encoded = [breaker.encode("utf-8", "replace") for breaker in p.dry_breakers if breaker]
        self._breakers = Breakers(encoded, history, piece, self._longest)
        self._runs: deque[Ids] = deque(maxlen=_KEPT)
        self._recount(len(history))

    def change(self) -> Change | None:
        runs = self._runs[-1]
        least = max(1, self._p.dry_allowed_length)
        longest = min(self._longest, self._breakers.n_since)
        places = np.flatnonzero(runs >= least)
        # What matches must lie inside the window: place i has i + 1 tokens up to it.
        lengths = np.minimum(np.minimum(runs[places], places + 1), longest)
        is_long = lengths >= least
        if not is_long.any():
            return None
        window = self._history.last(len(runs) + 1)
        return self._penalised(window[places[is_long] + 1], lengths[is_long])

    def _recount(self, end: int) -> None:
        """Runs of the window that ends there, from the tokens that can matter."""
        self._runs.clear()
        first = max(0, end - self._longest)
        start = max(0, first - self._size)
        self._runs.append(np.zeros(max(0, first - start - 1), np.int32))
        for last in range(first, end):
            self._extend(last)

    def _extend(self, last: int) -> None:
        """The token at `last` is new: a run goes on where the token after it is the same."""
        start = max(0, last + 1 - self._size)
        here = self._history.between(start, last) == self._history.between(last, last + 1)
        old = self._runs[-1]
        if len(here) > len(old):  # the window still grows
            old = np.concatenate((np.zeros(1, np.int32), old))
        self._runs.append(here * (old + 1))

    def _penalised(self, following: Ids, lengths: Places) -> Change | None:
        found: dict[int, int] = {}
        for token, n in zip(following.tolist(), lengths.tolist(), strict=True):
            found[token] = max(n, found.get(token, 0))
        kept = {t: n for t, n in found.items() if not self._breakers.is_in(t)}
        over = np.array(list(kept.values()), np.float64) - self._p.dry_allowed_length
        off = (self._p.dry_multiplier * self._p.dry_base**over).astype(np.float32)

        def apply(logits: Logits, which: Which) -> Logits:
            return logits - off[which]

        return Change(np.array(list(kept), np.int32), apply)

    def accept(self, token: int) -> None:
        self._breakers.accept(token)
        self._extend(len(self._history) - 1)

    def rewind(self, n_tokens: int) -> None:
        self._breakers.rewind(n_tokens)
        if n_tokens < len(self._runs):
            for _ in range(n_tokens):
                self._runs.pop()
        else:
            self._recount(len(self._history) - n_tokens)


class Breakers:
    """How many tokens have come since the last sequence breaker; can go back."""

    def __init__(
        self, breakers: list[bytes], history: History, piece: Piece | None, longest: int
    ) -> None:
        self._breakers = breakers if piece is not None else []
        self._piece: Piece = piece or (lambda _: b"")
        self._history = history
        self._n_tail = max((len(b) for b in self._breakers), default=1) - 1
        self._tail = b""
        self._since = [longest]  # before the tokens that are looked at: no breaker known
        for token in history.last(longest).tolist() if self._breakers else ():
            self.accept(token)

    @property
    def n_since(self) -> int:
        return self._since[-1]

    def is_in(self, token: int) -> bool:
        piece = self._piece(token)
        return any(breaker in piece for breaker in self._breakers)

    def accept(self, token: int) -> None:
        if not self._breakers:
            return
        piece = self._piece(token)
        n_tail = len(self._tail)
        ends_here = any(
            breaker in self._tail[max(0, n_tail + 1 - len(breaker)) :] + piece
            for breaker in self._breakers
        )
        self._since.append(0 if ends_here else self._since[-1] + 1)
        self._extend(piece)

    def _extend(self, piece: bytes) -> None:
        text = self._tail + piece
        self._tail = text[max(0, len(text) - self._n_tail) :]

    def rewind(self, n_tokens: int) -> None:
        """The history still has the tokens that are taken back."""
        if not self._breakers:
            return
        del self._since[len(self._since) - n_tokens :]
        end = len(self._history) - n_tokens
        self._tail = b""
        for token in self._history.between(max(0, end - 64), end).tolist():
            self._extend(self._piece(token))
