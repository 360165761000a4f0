"""What the next step computes: a pure decision over the running sequences.

Sequences that need one token (decoding) always ride; the others share what is left of the step's
budget, the most urgent first, so a long prompt is cut into chunks and nobody waits for it to end.

Beside streams the budget is time, because each of them waits for the step. Small chunks cost more
than large ones, since every step decodes for all that have begun: where many prompts come together,
those who are through first wait a little longer, or all of them would wait much longer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from naiad.engine.cost import StepCost
from naiad.engine.sequence import Sequence

#: Tokens of an answer up to which it has just begun.
JUST_BEGUN = 16
#: Targets that a step may take then, by default.
MOST_TARGETS = 3


@dataclass(frozen=True, slots=True)
class StepBudget:
    """How much prefill a step carries.

    alone: tokens when nothing decodes: a whole micro-batch is the most efficient, and still lets
    the next request in soon. beside: tokens beside decoding streams at most. target_s: seconds
    that such a step may take, because every stream waits for it. most_targets: as many of these
    where all streams have only just begun and many prompts came with them; share: of the time that
    those prompts need, what one step takes then.
    """

    alone: int = 512
    beside: int = 512
    target_s: float = 0.08
    most_targets: int = MOST_TARGETS
    share: float = 0.25


@dataclass(frozen=True, slots=True)
class Chunk:
    """Compute `n_tokens` of a sequence, from its `computed` on, and then a draft's."""

    sequence: Sequence
    n_tokens: int
    draft: tuple[int, ...] = ()

    @property
    def is_last(self) -> bool:
        """True when the sequence is caught up after it, so that a token can be sampled."""
        return self.n_tokens == self.sequence.n_pending


def plan(
    running: Iterable[Sequence], budget: StepBudget, cost: StepCost, now: float
) -> list[Chunk]:
    """The chunks of the next step, decoding first, then prefill by urgency."""
    decoding: list[Sequence] = []
    prefilling: list[Sequence] = []
    for sequence in running:
        (decoding if sequence.n_pending == 1 else prefilling).append(sequence)
    chunks = [Chunk(sequence, 1) for sequence in decoding]
    if not prefilling:
        return chunks
    prefilling.sort(key=lambda s: urgency(s, cost, now))
    left = budget.alone
    if any(sequence.n_generated for sequence in decoding):  # somebody would notice a pause
        depth, seconds = prefilling[0].computed, pause_s(decoding, prefilling, budget, cost)
        left = min(cost.chunk(seconds, depth, len(decoding)), budget.beside)
    for sequence in prefilling:
        if left <= 0:
            break
        n = min(left, sequence.n_next)
        chunks.append(Chunk(sequence, n))
        left -= n
    return chunks


def pause_s(
    decoding: Iterable[Sequence], prefilling: Iterable[Sequence], budget: StepBudget, cost: StepCost
) -> float:
    """Seconds that a step beside streams may take: the target; but while all of them have only just
    begun, a share of what the prompts that came with them need, at most a few targets.
    """
    if any(sequence.n_generated > JUST_BEGUN for sequence in decoding):
        return budget.target_s
    needed_s = sum(cost.prefill_s(s.n_pending, s.computed) for s in prefilling)
    return min(max(needed_s * budget.share, budget.target_s), budget.target_s * budget.most_targets)


def urgency(sequence: Sequence, cost: StepCost, now: float) -> tuple[int, float]:
    """Sort key of prompts that wait to be computed, the smallest first.

    By priority; then a short one before a long one, by the seconds each needs, less the seconds it
    has waited: whoever waits as long as the difference goes first, so long ones do not starve.
    """
    needs = cost.prefill_s(sequence.n_pending, sequence.computed)
    return sequence.job.priority, needs - (now - sequence.since)
