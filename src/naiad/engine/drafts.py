"""Guessing what a stream says next from what it said before: drafts without a second model.

Answers repeat their prompt and themselves: code that is edited, names, JSON keys, quotes. Where the
last tokens occurred earlier, what followed them then is a good guess (prompt lookup decoding,
Saxena 2023). Several guessed tokens are computed in one step, and each is accepted only if it is
the very token that would have been chosen there, by the same draw: the answer is the same, only
sooner.

Whether a guess is worth its computing is known before any is made: each token that comes is
compared with what would have been guessed, so the share of right guesses is learned at no cost.
"""

from __future__ import annotations

from dataclasses import replace

from naiad.engine.cost import StepCost
from naiad.engine.scheduler import Chunk
from naiad.engine.sequence import Sequence

#: Tokens that must have occurred before in the same order.
_MATCH = 3
#: The most tokens guessed at once.
MOST_DRAFT = 8
#: How much of the share of right guesses is kept with each new one; where it begins.
_MEMORY, _FIRST_SHARE = 0.9, 0.3
#: A draft must promise this much more than it costs.
_MARGIN = 1.2
#: Every so many steps one goes without, so that the cost of a plain step stays known.
_PLAIN_EVERY = 32
#: Guesses may stretch a step to this many of its own, or to half of what streams may wait.
_STRETCH = 1.5


class NgramDrafter:
    """Guesses for one sequence: `catch_up` with its tokens, then `draft`."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens  # the sequence's own list, which grows
        self._after: dict[tuple[int, ...], int] = {}  # the last _MATCH tokens -> what came next
        self._n_seen = _MATCH
        self.share = _FIRST_SHARE  # of guesses that were right

    def catch_up(self) -> None:
        """Take in the tokens that came since the last time."""
        tokens, after = self._tokens, self._after
        n_new_from = self._n_seen
        for at in range(n_new_from, len(tokens)):
            key = tuple(tokens[at - _MATCH : at])
            guess = after.get(key)
            if guess is not None:
                is_right = tokens[guess] == tokens[at]
                self.share += (1 - _MEMORY) * (is_right - self.share)
            after[key] = at
        self._n_seen = max(self._n_seen, len(tokens))

    def draft(self, most: int) -> tuple[int, ...]:
        """Up to `most` tokens that may come next; () when the last ones never occurred before."""
        at = self._after.get(tuple(self._tokens[-_MATCH:]))
        return () if at is None else tuple(self._tokens[at : at + most])

    def n_worth(self, cost: StepCost, n_running: int) -> int:
        """How many tokens to guess so that the time won, by expectation, exceeds the time spent.

        With a share p of right guesses, the i-th of a draft is accepted with p^i; each accepted
        token saves this stream one step, which it shares with n_running - 1 others.
        """
        won = cost.decode_s / max(n_running, 1)
        spent = cost.draft_s(len(self._tokens)) * _MARGIN
        n, chance = 0, self.share
        while n < MOST_DRAFT and chance * won > spent:
            n += 1
            chance *= self.share
        return n


class Drafting:
    """Who guesses in a step, and how much, so that the others' streams hardly notice.

    n_ctx: tokens of a sequence at most. target_s: see StepBudget.
    """

    def __init__(self, n_ctx: int, target_s: float) -> None:
        self._n_ctx = n_ctx
        self._target_s = target_s
        self._drafters: dict[int, NgramDrafter] = {}
        self._n_steps = 0

    def extend(self, chunks: list[Chunk], cost: StepCost) -> list[Chunk]:
        """The same chunks, with guesses where they promise to save time. Only for steps that
        decode and nothing else.
        """
        self._n_steps += 1
        if self._n_steps % _PLAIN_EVERY == 0 or any(c.n_tokens > 1 for c in chunks):
            return chunks
        longest = max(self._target_s / 2, cost.decode_s * _STRETCH)
        left_s = longest - cost.decode_s
        extended: list[Chunk] = []
        for chunk in chunks:
            draft = self._draft(chunk.sequence, cost, len(chunks), left_s)
            left_s -= len(draft) * cost.draft_s(len(chunk.sequence.tokens))
            extended.append(replace(chunk, draft=draft) if draft else chunk)
        return extended

    def _draft(
        self, sequence: Sequence, cost: StepCost, n_running: int, left_s: float
    ) -> tuple[int, ...]:
        drafter = self._drafters.get(sequence.uid)
        if drafter is None:
            drafter = self._drafters[sequence.uid] = NgramDrafter(sequence.tokens)
        drafter.catch_up()
        n_left = min(
            sequence.job.max_tokens - sequence.n_generated, self._n_ctx - len(sequence.tokens)
        )
        n_affordable = int(min(left_s / cost.draft_s(len(sequence.tokens)), MOST_DRAFT))
        n = min(drafter.n_worth(cost, n_running), n_left - 1, n_affordable)
        return drafter.draft(n) if n > 0 else ()

    def forget(self, uid: int) -> None:
        """Its tokens are no longer what they were, or it is over."""
        self._drafters.pop(uid, None)
