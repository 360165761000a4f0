"""Logprobs of the newest answers, for clients that ask for them afterwards."""

from __future__ import annotations

from collections.abc import Sequence

from naiad.types import Caller, TokenLogprob

_MOST_TOKENS = 10_000


class RecentLogprobs:
    """The newest answer of each caller and handle that asked to be remembered.

    most_tokens: when there are more than these in all, the oldest answers are forgotten; the newest
        never is.
    """

    def __init__(self, most_tokens: int = _MOST_TOKENS) -> None:
        self._most_tokens = most_tokens
        self._answers: dict[tuple[str, str | None], list[TokenLogprob]] = {}  # oldest first

    def begin(self, caller: Caller, handle: str | None) -> list[TokenLogprob]:
        """A new answer, which takes the place of the one before; to be added to."""
        self._answers.pop((caller.identity, handle), None)
        n_tokens = sum(map(len, self._answers.values()))
        while n_tokens > self._most_tokens:
            n_tokens -= len(self._answers.pop(next(iter(self._answers))))
        return self._answers.setdefault((caller.identity, handle), [])

    def find(self, caller: Caller, handle: str | None) -> Sequence[TokenLogprob]:
        """What that answer has told so far; nothing when there is none."""
        return tuple(self._answers.get((caller.identity, handle), ()))
