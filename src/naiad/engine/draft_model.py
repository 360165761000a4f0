"""Drafts by a second, smaller model of the same vocabulary (speculative decoding).

It says a few tokens in advance what it would say, and the model itself checks them in one step.
They are kept only where they are the very tokens that it chooses, by the same draws (see
`naiad.engine.choosing`), so a draft model that is wrong costs time and nothing else. Whether it
pays is learned for each stream: by the share of its tokens that were right, and by what they took.
Where it does not pay it is not asked, but for a token now and then, in case the text has changed.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import repeat

from naiad.engine.cost import MIN_CHUNK, StepCost
from naiad.engine.executor import DecodeOutcome, Executor, Run
from naiad.engine.scheduler import Chunk
from naiad.engine.sequence import Sequence, common_prefix
from naiad.engine.worth import MOST_DRAFT, best_length

logger = logging.getLogger(__name__)

#: Tokens that it takes in with one step, of all streams, where time sets no bound.
MOST_BEHIND = 512
#: Tokens of a stream to compute before it guesses where all that it guessed last was right.
_USUAL = 2
#: Tokens that a stream may be behind and is not made to wait for: a draft and the one after it.
_NEAR = MOST_DRAFT + 1
#: Tokens of an answer that must be to come, or taking in the prompt is not worth it.
_LEAST_LEFT = 16
#: What taking in prompts may add to a step, however long that is: slow models gain most by drafts.
_INTAKE_SHARE = 0.5
#: The share of right guesses that is expected before any was seen, and how much of it is kept with
#: each new guess: of a stream, and of all of them.
_FIRST_SHARE, _OWN_MEMORY, _MEMORY = 0.6, 0.9, 0.98
#: Where it does not pay, it is tried again after so many tokens, then after twice as many.
_TRY_AGAIN = 64


class _Allowance:
    """Tokens of prompts that one step may take in, by what they take in time. Some always, or a
    long prompt would never be through.
    """

    def __init__(self, cost: StepCost, seconds: float) -> None:
        self._cost = cost
        self._seconds = seconds
        self._n_most, self._n_least = MOST_BEHIND, MIN_CHUNK

    def take(self, n: int, depth: int) -> int:
        """So many of n tokens after `depth` others; 0 for all that come after one got less."""
        n_within = max(self._cost.n_within(self._seconds, depth), self._n_least)
        granted = min(n, n_within, self._n_most)
        self._seconds -= self._cost.prefill_s(granted, depth)
        self._n_least = max(0, self._n_least - granted)
        self._n_most = self._n_most - granted if granted == n else 0
        return granted


@dataclass(slots=True)
class _Held:
    """What the model's context holds of a stream."""

    slot: int
    tokens: list[int] = field(default_factory=list)


class DraftModel:
    """A context of the model's own, with a sequence for each stream that it guesses for.

    n_slots: streams at most; n_cells: tokens of all of them. close: frees the model.
    round_s: seconds that one more token for each stream takes; 0 before any was made. cost: what
    taking in prompts takes here.
    """

    def __init__(
        self, executor: Executor, n_slots: int, n_cells: int, close: Callable[[], None]
    ) -> None:
        self.round_s = 0.0
        self.cost = StepCost()
        self._executor = executor
        self._free = list(range(n_slots))
        self._n_cells = n_cells
        self._close = close
        self._held: dict[int, _Held] = {}

    def guess(
        self, wanted: list[tuple[Sequence, int]], longest_s: float = math.inf
    ) -> list[tuple[int, ...]]:
        """For each stream up to so many tokens that may come next; () while it is far behind.

        longest_s: seconds that taking in what it is behind may take, since every stream waits for
        that. Whoever is less behind comes first: a long prompt must not keep others from guessing.
        """
        guesses: list[list[int]] = [[] for _ in wanted]
        runs: dict[int, Run] = {}
        n_promised, left = 0, _Allowance(self.cost, longest_s)
        for i in sorted(range(len(wanted)), key=lambda i: self.n_behind(wanted[i][0])):
            sequence, n = wanted[i]
            run = self._behind(sequence, n + n_promised, left)
            if run is not None:
                runs[i] = run
                n_promised += n
        self._take_in(list(runs.values()))
        asking = [i for i, run in runs.items() if run.n_logits and self.holds(wanted[i][0].uid)]
        rows = {i: row for row, i in enumerate(runs)}
        while asking:
            for i in asking:
                guesses[i].append(int(self._executor.logits(rows[i]).argmax()))
            asking = [i for i in asking if len(guesses[i]) < wanted[i][1]]
            if not self._next_round([(wanted[i][0], guesses[i][-1]) for i in asking]):
                break
            rows = {i: row for row, i in enumerate(asking)}
        return [tuple(guess) for guess in guesses]

    def holds(self, uid: int) -> bool:
        """Whether it has taken in anything of a stream."""
        return uid in self._held

    def n_behind(self, sequence: Sequence) -> int:
        """About how many tokens of a stream are yet to be taken in."""
        held = self._held.get(sequence.uid)
        return abs(len(sequence.tokens) - len(held.tokens)) if held else len(sequence.tokens)

    def n_steps(self, sequence: Sequence, longest_s: float) -> int:
        """About how many steps taking in a stream needs, with so many seconds of each; 0: none."""
        n = self.n_behind(sequence)
        at_once = max(self.cost.n_within(longest_s, len(sequence.tokens)), MIN_CHUNK)
        return -(-n // min(at_once, MOST_BEHIND)) if n > _NEAR else 0

    def _behind(self, sequence: Sequence, n_guesses: int, left: _Allowance) -> Run | None:
        """What is to be computed of a stream, within what is left; None where nothing can be.

        There must be room for the whole of it and n_guesses more, or its beginning would only take
        the room of others. What there is no room for is let go of.
        """
        tokens = sequence.tokens
        held = self._held.get(sequence.uid)
        n_others = sum(len(each.tokens) for each in self._held.values() if each is not held)
        if n_others + len(tokens) + n_guesses > self._n_cells:
            self.forget(sequence.uid)
            return None
        if not (held or self._free):
            return None
        if held and (n_same := common_prefix(held.tokens, tokens[:-1])) < len(held.tokens):
            self._cut(held, n_same)
        n_held = len(held.tokens) if held else 0
        n_new = len(tokens) - n_held
        if n_new > _NEAR:
            n_new = left.take(n_new, n_held)
        if not n_new:
            return None
        if held is None:
            held = self._held[sequence.uid] = _Held(self._free.pop())
        end = n_held + n_new
        held.tokens += tokens[n_held:end]
        return Run(held.slot, tokens[n_held:end], n_held, int(end == len(tokens)))

    def _cut(self, held: _Held, n_tokens: int) -> None:
        """Keep the first tokens, or none where the memory does not hold just these afterwards."""
        memory = self._executor.memory
        memory.remove(held.slot, n_tokens, -1)
        if memory.pos_max(held.slot) != n_tokens - 1:
            memory.remove(held.slot)
            n_tokens = 0
        del held.tokens[n_tokens:]

    def _next_round(self, last: list[tuple[Sequence, int]]) -> bool:
        """Compute what was guessed last; False when there is nothing, or it could not be done."""
        runs = []
        for sequence, token in last:
            held = self._held[sequence.uid]
            runs.append(Run(held.slot, [token], len(held.tokens), 1))
            held.tokens.append(token)
        seconds = self._decode(runs) if runs else None
        if seconds is not None:
            self._saw_round(seconds)
        return seconds is not None

    def _take_in(self, runs: list[Run]) -> None:
        """Compute what is behind, and learn what that takes.

        Where nobody is further behind than usual this is the first round of the guesses, and as
        long as the others; else it says what prompts take.
        """
        seconds = self._decode(runs) if runs else None
        if seconds is None:
            return
        long = [run for run in runs if len(run.tokens) > _USUAL]
        if not long:
            self._saw_round(seconds)
            return
        n_tokens = sum(len(run.tokens) for run in long)
        depth = sum(len(run.tokens) * (run.start + len(run.tokens) // 2) for run in long)
        own_s = seconds - (self.round_s if len(long) < len(runs) else 0.0)
        self.cost.saw_prefill(n_tokens, depth // n_tokens, max(own_s, seconds * 0.1), beside=0)

    def _saw_round(self, seconds: float) -> None:
        self.round_s += (seconds - self.round_s) * (0.1 if self.round_s else 1.0)

    def _decode(self, runs: list[Run]) -> float | None:
        """The seconds it took; None when it was not done: then nothing is held any more."""
        begun = time.perf_counter()
        outcome = self._executor.decode(runs)
        if outcome is DecodeOutcome.DONE:
            return time.perf_counter() - begun
        logger.warning("the draft model could not compute (%s), and begins again", outcome.name)
        for uid in list(self._held):
            self.forget(uid)
        return None

    def limit_threads(self, n_most: int) -> None:
        """Compute with at most so many threads from now on."""
        self._executor.set_threads(n_most)

    def forget(self, uid: int) -> None:
        """The stream is over."""
        if held := self._held.pop(uid, None):
            self._executor.memory.remove(held.slot)
            self._free.append(held.slot)

    def close(self) -> None:
        """Free context and model. Safe to call twice."""
        self._executor.close()
        self._close()


@dataclass(slots=True)
class _Stream:
    """What is known of the guesses for a stream. at, asked: its tokens when it last guessed, and
    the guess. try_at: tokens from which on it is tried again; pause: tokens to the time after that;
    is_probed: it is asked for the sake of learning.
    """

    share: float
    at: int = 0
    asked: tuple[int, ...] = ()
    try_at: int = 0
    pause: int = _TRY_AGAIN
    is_probed: bool = False

    def put_off(self, n_tokens: int) -> None:
        """Not before so many tokens more."""
        self.try_at = n_tokens + self.pause
        self.pause *= 2


@dataclass(frozen=True, slots=True)
class _Step:
    """The next step so far: tokens it computes, tokens it brings, rounds of the draft model."""

    n_rows: int
    n_expected: float
    n_rounds: int = 0


class ModelDrafting:
    """Decides for whom the draft model guesses, and how much. target_s: see StepBudget."""

    def __init__(self, model: DraftModel, target_s: float = math.inf) -> None:
        self._model = model
        self._target_s = target_s
        self._streams: dict[int, _Stream] = {}
        self._share = _FIRST_SHARE  # of all streams

    def extend(
        self,
        chunks: list[Chunk],
        cost: StepCost,
        n_expected: float,
        longest_s: float,
        n_most: Callable[[Sequence], int],
    ) -> list[Chunk]:
        """The same chunks, with guesses for those that have none, where they promise to save time.

        n_expected: tokens that the step brings as it is. n_most: those that a stream may guess.
        """
        step = _Step(sum(1 + len(chunk.draft) for chunk in chunks), n_expected)
        wanted: dict[int, int] = {}
        for i, chunk in enumerate(chunks):
            sequence = chunk.sequence
            stream, n_left = self._learn(sequence), n_most(sequence)
            if chunk.draft or n_left < (1 if self._model.holds(sequence.uid) else _LEAST_LEFT):
                continue
            n, n_expected = self._n_worth(stream, sequence, n_left, step, cost, longest_s)
            stream.is_probed = False
            if n := n or self._probe(stream, sequence):
                wanted[i] = n
                step = _Step(step.n_rows + n, n_expected, max(step.n_rounds, n))
        if not wanted:
            return chunks
        depth = max(len(chunks[i].sequence.tokens) for i in wanted)
        step_s = cost.step_s(step.n_rows, depth) + step.n_rounds * self._model.round_s
        left_s = max(self._target_s - step_s, step_s * _INTAKE_SHARE)
        wanted = {
            i: n for i, n in wanted.items() if self._can_pay(chunks[i].sequence, n_most, left_s)
        }
        return self._ask(chunks, wanted, left_s)

    def _can_pay(
        self, sequence: Sequence, n_most: Callable[[Sequence], int], left_s: float
    ) -> bool:
        """Whether enough of the answer is to come once the model has taken in what it is behind;
        each step of that brings a token.
        """
        n_steps = self._model.n_steps(sequence, left_s)
        return not n_steps or n_most(sequence) - n_steps >= _LEAST_LEFT

    def _n_worth(
        self,
        stream: _Stream,
        sequence: Sequence,
        most: int,
        step: _Step,
        cost: StepCost,
        longest_s: float,
    ) -> tuple[int, float]:
        depth, round_s = len(sequence.tokens), self._model.round_s

        def seconds(n: int) -> float:
            return cost.step_s(step.n_rows + n, depth) + max(step.n_rounds, n) * round_s

        shares = repeat(stream.share, min(most, MOST_DRAFT))
        return best_length(shares, seconds, step.n_expected, longest_s)

    def _probe(self, stream: _Stream, sequence: Sequence) -> int:
        """A token now and then, where none is worth it."""
        n_tokens = len(sequence.tokens)
        if not stream.try_at:
            stream.put_off(n_tokens)
        stream.is_probed = n_tokens >= stream.try_at
        return int(stream.is_probed)

    def _ask(self, chunks: list[Chunk], wanted: dict[int, int], left_s: float) -> list[Chunk]:
        """left_s: seconds that taking in prompts may add to guessing and checking."""
        asked = [(chunks[i].sequence, n) for i, n in wanted.items()]
        guesses = self._model.guess(asked, left_s)
        extended = list(chunks)
        for i, guess in zip(wanted, guesses, strict=True):
            stream = self._streams[chunks[i].sequence.uid]
            stream.at, stream.asked = len(chunks[i].sequence.tokens), guess
            # Taking in what came since the last time may need several steps: a guess ends a trial.
            if stream.is_probed and (guess or not self._model.holds(chunks[i].sequence.uid)):
                stream.put_off(stream.at)
            extended[i] = replace(chunks[i], draft=guess)
        return extended

    def _learn(self, sequence: Sequence) -> _Stream:
        """Compare the last guess with what was said."""
        stream = self._streams.setdefault(sequence.uid, _Stream(self._share))
        for guess, token in zip(stream.asked, sequence.tokens[stream.at :], strict=False):
            is_right = guess == token
            stream.share += (1 - _OWN_MEMORY) * (is_right - stream.share)
            self._share += (1 - _MEMORY) * (is_right - self._share)
            if not is_right:
                break
        stream.asked = ()
        return stream

    def forget(self, uid: int) -> None:
        """The stream is over."""
        self._streams.pop(uid, None)
        self._model.forget(uid)

    def close(self) -> None:
        self._model.close()
