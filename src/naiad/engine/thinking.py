"""A limit on a stream's reasoning: counts its tokens, and says which must come when it is used up.

Whether a section is open is read off the bytes that were said, so it does not matter how tags are
split into tokens.
"""

from __future__ import annotations

import codecs
from typing import Protocol

from naiad.types import ReasoningLimit


class Pieces(Protocol):
    """What is needed of a vocabulary."""

    def piece(self, token: int, *, special: bool = False) -> bytes: ...

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...


class ThinkingWatch:
    """Watches one stream from its first token on; the last tokens can be taken back."""

    def __init__(self, limit: ReasoningLimit, vocab: Pieces) -> None:
        self._limit = limit
        self._vocab = vocab
        self._opening = (limit.opening or "").encode()
        self._closing = limit.closing.encode()
        self._ending: list[int] | None = None  # tokenised when it is needed
        self._said = bytearray()  # up to the end of the section
        self._ends: list[int] = []  # where each token of it ends
        self._n_after = 0  # tokens since
        self._began: int | None = 0 if limit.opening is None else None  # tokens before the section
        self._cut: int | None = None  # tokens before the ending that was forced
        self._is_over = False

    def forced(self) -> list[int]:
        """The tokens that must come now; [] while the model is free. Ask before each token."""
        if self._is_over or self._began is None:
            return []
        n_tokens = len(self._ends)
        if self._cut is None:
            is_used_up = n_tokens - self._began >= self._limit.n_tokens
            if not is_used_up or not _is_whole(self._said):
                return []
            self._cut = n_tokens
        return self._ending_tokens()[n_tokens - self._cut :]

    def _ending_tokens(self) -> list[int]:
        if self._ending is None:
            text = self._limit.ending
            self._ending = self._vocab.encode(text, add_special=False, parse_special=True)
        return self._ending

    def accept(self, token: int) -> None:
        """A token came."""
        if self._is_over:
            self._n_after += 1
            return
        self._said += self._vocab.piece(token, special=True)
        self._ends.append(len(self._said))
        self._is_over = self._ends_with(token)

    def _ends_with(self, token: int) -> bool:
        """Whether the section ends with this one, the newest; or none has begun, nor will."""
        if self._began is None:
            begun = self._said.lstrip()
            if begun.startswith(self._opening):
                self._began = len(self._ends)
            return self._began is None and not self._opening.startswith(begun)
        if self._cut is not None:
            ending, n_forced = self._ending_tokens(), len(self._ends) - self._cut
            return token != ending[n_forced - 1] or n_forced == len(ending)
        before = self._ends[-2] if len(self._ends) > 1 else 0
        return self._said.find(self._closing, max(0, before - len(self._closing))) >= 0

    def rewind(self, n_tokens: int) -> None:
        """Take the last tokens back; no more than were accepted."""
        n_back = min(n_tokens, self._n_after)
        self._n_after -= n_back
        if n_tokens == n_back:
            return
        del self._ends[len(self._ends) - (n_tokens - n_back) :]
        del self._said[self._ends[-1] if self._ends else 0 :]
        n_left = len(self._ends)
        self._is_over = False
        if self._cut is not None and n_left < self._cut:
            self._cut = None
        if self._began is not None and self._opening and n_left < self._began:
            self._began = None


def _is_whole(said: bytearray) -> bool:
    """Whether it does not end within a character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(bytes(said[-4:]))
    return not decoder.getstate()[0]
