"""One request inside the engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from naiad.engine.base import CoreJob

NO_SLOT = -1


@dataclass(slots=True, eq=False)
class Sequence:
    """A job, its tokens, and one number: how many of them the pool holds.

    The invariant that drives the scheduler: `computed` catches up with `len(tokens)`; when it has,
    the next token is sampled and appended. Prefill, decode, prefix reuse and preemption are all
    that one rule, so no phase flag exists that could disagree with the counts.

    tokens: prompt, then what was sampled. slot: the sequence id in the pool, or NO_SLOT.
    n_sent: stream items reported so far, which is the next item's place in the stream.
    top, n_moved: see compaction.
    """

    job: CoreJob
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    slot: int = NO_SLOT
    n_cached: int = 0
    n_sent: int = 0
    top: int = 0
    n_moved: int = 0

    def __post_init__(self) -> None:
        self.tokens = list(self.job.prompt)

    @property
    def uid(self) -> int:
        return self.job.uid

    @property
    def n_prompt(self) -> int:
        return len(self.job.prompt)

    @property
    def n_generated(self) -> int:
        return len(self.tokens) - self.n_prompt

    @property
    def n_pending(self) -> int:
        """Tokens the pool does not hold yet; 1 while decoding."""
        return len(self.tokens) - self.computed


def common_prefix(a: list[int], b: list[int]) -> int:
    """How many leading tokens two lists share. Compares slices, so that C does the loop."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    width = 32
    while low < high:
        end = min(low + width, high)
        if a[low:end] == b[low:end]:
            low, width = end, width * 2
        elif end - low == 1:
            return low
        else:
            high, width = end, max((end - low) // 2, 1)
    return low
