"""One stream's place in its grammar: what may come next, what must, and the way back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from llguidance import LLMatcher

Mask = npt.NDArray[np.bool_]

#: Seconds of the processor in all that the slow steps of one stream may hold everybody else up.
_PATIENCE_S = 2.0
SLOW_S = 0.05  # of one step


class Pieces(Protocol):
    """What is needed of a vocabulary."""

    n_tokens: int
    eog: frozenset[int]

    def piece(self, token: int, *, special: bool = False) -> bytes: ...

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...


class Follower:
    """Follows one stream. Not thread-safe.

    Args:
        matcher: at the grammar's beginning; owned from now on.
        vocab: the vocabulary that the matcher was made for.
        after: the grammar begins behind this text (the end of a reasoning section); until then all
            but an end is allowed. None: it begins at once.

        opening: only an answer that begins with this text has such a section, and may.

    is_waiting: that text has not come yet. matcher: to fill masks of several streams together.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        vocab: Pieces,
        after: str | None = None,
        opening: str | None = None,
    ) -> None:
        self.matcher = matcher
        self._vocab = vocab
        self._after = after.encode() if after else None
        self._openers: list[int] = []
        if after and opening:
            self._openers = vocab.encode(opening, add_special=False, parse_special=True)[:1]
        self.is_waiting = self._after is not None and not self._openers
        self._before = bytearray()  # what was said before the grammar began
        self._ends: list[int] = []  # where each token of it ends
        self._n_followed = 0  # tokens since
        self._slow_s = 0.0
        self._failure = ""

    @property
    def is_complete(self) -> bool:
        """True when nothing but an end may follow."""
        return not self.is_waiting and self.matcher.is_stopped() and not self.matcher.is_error()

    @property
    def failure(self) -> str:
        """Why the grammar cannot be followed any longer; "" while it can."""
        return self._failure or self.matcher.get_error()

    def mask(self, filled: npt.NDArray[np.int32] | None = None) -> Mask:
        """Which tokens may come next, shape (n_vocab,). Owned by the caller.

        filled: what the matcher would say now; see naiad.engine.grammar.masks.
        """
        n = self._vocab.n_tokens
        if self.is_waiting:
            mask = np.ones(n, np.bool_)
            mask[list(self._vocab.eog)] = False
            return mask
        bits = self._bits() if filled is None else filled.view(np.uint8)
        mask = np.unpackbits(bits, count=n, bitorder="little").view(np.bool_)
        if self._may_open:
            mask[self._openers] = True
        return mask

    def _bits(self) -> npt.NDArray[np.uint8]:
        began = time.thread_time()
        bits = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
        self._count(time.thread_time() - began)
        return bits

    @property
    def _may_open(self) -> bool:
        """At the beginning of an answer that may reason first."""
        return bool(self._openers) and not self._n_followed and not self._ends

    def _count(self, seconds: float) -> None:
        if seconds > SLOW_S:
            self._slow_s += seconds
        if self._slow_s > _PATIENCE_S:
            self._failure = "it takes too long to tell what it allows next"

    def forced(self) -> list[int]:
        """Tokens that are the only way on; [] where there is a choice."""
        is_free = self.is_waiting or self._may_open
        return [] if is_free else self.matcher.compute_ff_tokens()

    def allows(self, token: int) -> bool:
        """Whether it may come next; for tokens the mask allows, only at the very beginning is this
        news: one token may hold the end of the reasoning and text that the grammar does not know.
        """
        if not self.is_waiting:
            return True
        rest = self._rest_behind(self._before + self._vocab.piece(token, special=True))
        return self.matcher.validate_tokens(rest) == len(rest)

    def accept(self, token: int) -> bool:
        """A token came. False when the grammar does not allow it, and cannot be followed now."""
        is_opened = self._may_open and token in self._openers
        if not self.is_waiting and not (is_opened and not self.matcher.validate_tokens([token])):
            self._n_followed += 1
            return self.matcher.consume_token(token)
        assert self._after is not None
        self._before += self._vocab.piece(token, special=True)
        self._ends.append(len(self._before))
        self.is_waiting = self._after not in self._before
        return self.matcher.consume_tokens(self._rest_behind(self._before))

    def rewind(self, n_tokens: int) -> None:
        """Take the last tokens back; no more than were accepted."""
        n_back = min(n_tokens, self._n_followed)
        if n_back and not self.matcher.rollback(n_back):
            self._failure = "its place could not be found again"
        self._n_followed -= n_back
        if n_tokens > n_back:
            del self._ends[len(self._ends) - (n_tokens - n_back) :]
            del self._before[self._ends[-1] if self._ends else 0 :]
            self.matcher.reset()
            self.is_waiting = not self._may_open

    # -- the beginning -----------------------------------------------------------------------

    def _rest_behind(self, said: bytearray) -> list[int]:
        """Tokens of what was said behind the text that the grammar waits for, blanks left out."""
        assert self._after is not None
        start = said.find(self._after)
        rest = said[start + len(self._after) :].decode("utf-8", "replace") if start >= 0 else ""
        return self._vocab.encode(rest.lstrip(), add_special=False, parse_special=False)
