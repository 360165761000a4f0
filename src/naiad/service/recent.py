"""Logprobs of the newest answers, for clients that ask for them afterwards."""

from __future__ import annotations

from collections.abc import Sequence

from naiad.types import Caller, TokenLogprob

_MOST_TOKENS = 10_000


class RecentLogprobs:
    """The newest answer of each caller and handle that asked to be remembered.

    most_tokens: when there are more than these in all, the oldest answers are forgotten; the newest
        never is. Each answer counts as one more than its tokens: empty ones are bounded too.
    """

    def __init__(self, most_tokens: int = _MOST_TOKENS) -> None:
        self._most_tokens = most_tokens
        self._answers: dict[tuple[str, str | None], list[TokenLogprob]] = {}  # oldest first

    def begin(
        self, caller: Caller, handle: str | None, *, is_told: bool = True
    ) -> list[TokenLogprob]:
        """A new answer, which takes the place of the one before; to be added to.

        is_told: whether its tokens' logprobs are; nothing is kept when they are not.
        """
        self._answers.pop((caller.identity, handle), None)
        if not is_told:
            return []
        size = sum(map(_size, self._answers.values()))
        while size > self._most_tokens:
            size -= _size(self._answers.pop(next(iter(self._answers))))
        return self._answers.setdefault((caller.identity, handle), [])

    def find(self, caller: Caller, handle: str | None) -> Sequence[TokenLogprob]:
        """What that answer has told so far; nothing when there is none."""
        return tuple(self._answers.get((caller.identity, handle), ()))


def _size(answer: Sequence[TokenLogprob]) -> int:
    return len(answer) + 1
