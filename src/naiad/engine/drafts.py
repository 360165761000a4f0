"""Guessing what a stream says next from what it said before: drafts without a second model.

Answers repeat their prompt and themselves: code that is edited, names, JSON keys, quotes. Where the
last tokens occurred earlier, what followed them then is a good guess (prompt lookup decoding,
Saxena 2023). Several guessed tokens are computed in one step, and each is accepted only if it is
the very token that would have been chosen there, by the same draw: the answer is the same, only
sooner.

Whether a guess is worth its computing is known before any is made: each token that comes is
compared with what would have been guessed, so the share of right guesses is learned at no cost. The
longer the text has followed an earlier piece, the more surely it goes on with it, so the shares are
kept by the length of the match.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace

from naiad.engine.cost import StepCost
from naiad.engine.draft_model import ModelDrafting
from naiad.engine.scheduler import Chunk
from naiad.engine.sequence import Sequence
from naiad.engine.worth import MOST_DRAFT, best_length

#: Tokens that must have occurred before in the same order.
_MATCH = 3
#: Tokens of a long prompt that are taken in with one step, since every stream waits for that.
MOST_READ = 2048
#: Lengths of matches from which on guesses are counted together, and the share of right ones that
#: is expected of each before any was seen.
_LENGTHS = (_MATCH, 4, 6, 8, 16, 32)
_FIRST_SHARES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
#: How much of a share is kept with each new guess: of a sequence, and of all of them.
_OWN_MEMORY, _MEMORY = 0.9, 0.95
#: Every so many steps one goes without, so that the cost of a plain step stays known.
_PLAIN_EVERY = 32
#: Guesses may stretch a step to this many of its own, or to half of what streams may wait.
_STRETCH = 1.5


class Shares:
    """The share of guesses that were right, by how many tokens had matched before."""

    def __init__(self, of: Shares | None = None, memory: float = _MEMORY) -> None:
        """Begins with what `of` has learned. memory: what is kept with each new guess."""
        self._shares: list[float] = list(of._shares if of else _FIRST_SHARES)
        self._memory = memory

    def of(self, n_matched: int) -> float:
        """n_matched: at least _MATCH."""
        return self._shares[bisect_right(_LENGTHS, n_matched) - 1]

    def saw(self, n_matched: int, *, is_right: bool) -> None:
        i = bisect_right(_LENGTHS, n_matched) - 1
        self._shares[i] += (1 - self._memory) * (is_right - self._shares[i])


class NgramDrafter:
    """Guesses for one sequence: `catch_up` with its tokens, then `draft`."""

    def __init__(self, tokens: list[int], everyone: Shares | None = None) -> None:
        """everyone: what is learned here is learned there as well."""
        self._tokens = tokens  # the sequence's own list, which grows
        self._after: dict[tuple[int, ...], int] = {}  # _MATCH tokens -> where the next one stands
        self._n_seen = 0
        self._next = -1  # where the earlier text goes on that the last tokens follow; -1: none
        self._n_matched = 0
        self._everyone = everyone or Shares()
        self.shares = Shares(self._everyone, _OWN_MEMORY)

    def catch_up(self) -> None:
        """Take in the tokens that came since the last time, at most MOST_READ."""
        tokens, start = self._tokens, self._n_seen
        end = min(len(tokens), start + MOST_READ)
        for at in range(start, end):
            if self._next >= 0:
                self._follow(tokens[at])
            key = tuple(tokens[max(at - _MATCH + 1, 0) : at + 1])
            if len(key) == _MATCH:
                if self._next < 0:
                    self._find(key, at)
                self._after[key] = at + 1
        self._n_seen = max(start, end)

    def _follow(self, token: int) -> None:
        is_right = self._tokens[self._next] == token
        for shares in (self.shares, self._everyone):
            shares.saw(self._n_matched, is_right=is_right)
        self._next, self._n_matched = (self._next + 1, self._n_matched + 1) if is_right else (-1, 0)

    def _find(self, key: tuple[int, ...], at: int) -> None:
        """Follow the last place where the tokens up to `at` stood before, if there is one."""
        tokens, start = self._tokens, self._after.get(key)
        if start is None:
            return
        n, most = _MATCH, min(_LENGTHS[-1], start)
        while n < most and tokens[start - 1 - n] == tokens[at - n]:
            n += 1
        self._next, self._n_matched = start, n

    @property
    def _has_guess(self) -> bool:
        return self._next >= 0 and self._n_seen >= len(self._tokens)

    def draft(self, most: int) -> tuple[int, ...]:
        """Up to `most` tokens that may come next; () when the last ones never occurred before."""
        if not self._has_guess:
            return ()
        n_period = len(self._tokens) - self._next  # a text that goes round is followed around
        return tuple(self._tokens[self._next + i % n_period] for i in range(most))

    def n_worth(
        self, cost: StepCost, n_rows: int, n_expected: float, longest_s: float, most: int
    ) -> tuple[int, float]:
        """How many tokens to guess, at most `most`, for the most tokens a second; and how many
        the step brings then.

        n_rows: tokens the step computes without; n_expected: tokens it brings then. longest_s:
        seconds it may take.
        """
        if not self._has_guess:
            return 0, n_expected
        depth = len(self._tokens)
        shares = (self.shares.of(self._n_matched + k) for k in range(min(most, MOST_DRAFT)))
        return best_length(shares, lambda k: cost.step_s(n_rows + k, depth), n_expected, longest_s)


class Drafting:
    """Who guesses in a step, and how much, so that the others' streams hardly notice.

    n_ctx: tokens of a sequence at most. target_s: see StepBudget. model: guesses where the text
    does not repeat itself.
    """

    def __init__(self, n_ctx: int, target_s: float, model: ModelDrafting | None = None) -> None:
        self._n_ctx = n_ctx
        self._target_s = target_s
        self._model = model
        self._drafters: dict[int, NgramDrafter] = {}
        self._shares = Shares()
        self._n_steps = 0

    def extend(self, chunks: list[Chunk], cost: StepCost) -> list[Chunk]:
        """The same chunks, with guesses where they promise to save time. Only for steps that
        decode and nothing else.
        """
        self._n_steps += 1
        has_prefill = any(c.n_tokens > 1 for c in chunks)
        if self._n_steps % _PLAIN_EVERY == 0 or has_prefill or not cost.decode_s:
            return chunks
        longest_s = max(self._target_s / 2, cost.decode_s * _STRETCH)
        n_rows, n_expected = len(chunks), float(len(chunks))
        extended: list[Chunk] = []
        for chunk in chunks:
            drafter, most = self._drafter(chunk.sequence), self._n_most(chunk.sequence)
            n, n_expected = drafter.n_worth(cost, n_rows, n_expected, longest_s, most)
            n_rows += n
            extended.append(replace(chunk, draft=drafter.draft(n)) if n else chunk)
        if self._model is None:
            return extended
        return self._model.extend(extended, cost, n_expected, longest_s, self._n_most)

    def _drafter(self, sequence: Sequence) -> NgramDrafter:
        """Of that sequence, with all it has said."""
        drafter = self._drafters.get(sequence.uid)
        if drafter is None:
            drafter = NgramDrafter(sequence.tokens, self._shares)
            self._drafters[sequence.uid] = drafter
        drafter.catch_up()
        return drafter

    def _n_most(self, sequence: Sequence) -> int:
        """Tokens that may be guessed: the one behind the last guess must fit as well."""
        n_left = sequence.job.max_tokens - sequence.n_generated
        return min(n_left, self._n_ctx - len(sequence.tokens)) - 1

    def forget(self, uid: int) -> None:
        """Its tokens are no longer what they were."""
        self._drafters.pop(uid, None)

    def end(self, uid: int) -> None:
        """It is over."""
        self.forget(uid)
        if self._model:
            self._model.forget(uid)

    def close(self) -> None:
        if self._model:
            self._model.close()
