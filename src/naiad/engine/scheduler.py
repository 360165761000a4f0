"""What the next step computes: a pure decision over the running sequences.

Sequences that need one token (decoding) always ride; the others share what is left of the step's
budget in order of arrival, so a long prompt is cut into chunks and nobody waits for it to end.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from naiad.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class StepBudget:
    """Tokens of one step. alone: when nothing decodes; beside: prefill beside decoding streams.

    A chunk beside running streams is small, because every one of them waits for it; with nobody
    waiting, a whole micro-batch is the most efficient (and still lets the next request in soon).
    """

    alone: int = 512
    beside: int = 256


@dataclass(frozen=True, slots=True)
class Chunk:
    """Compute `n_tokens` of a sequence, from its `computed` on."""

    sequence: Sequence
    n_tokens: int

    @property
    def is_last(self) -> bool:
        """True when the sequence is caught up after it, so that a token can be sampled."""
        return self.n_tokens == self.sequence.n_pending


def plan(running: Iterable[Sequence], budget: StepBudget) -> list[Chunk]:
    """The chunks of the next step, decoding first, then prefill in order of arrival."""
    decoding: list[Sequence] = []
    prefilling: list[Sequence] = []
    for sequence in running:
        (decoding if sequence.n_pending == 1 else prefilling).append(sequence)
    chunks = [Chunk(sequence, 1) for sequence in decoding]
    left = budget.beside if decoding else budget.alone
    for sequence in prefilling:
        if left <= 0:
            break
        n = min(left, sequence.n_pending)
        chunks.append(Chunk(sequence, n))
        left -= n
    return chunks
