"""One request inside the engine."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from naiad.engine.base import CoreJob
from naiad.engine.executor import State
from naiad.engine.segments import Segment

NO_SLOT = -1


@dataclass(frozen=True, slots=True)
class Span:
    """Saved cells [start, end) of a sequence, held outside the pool."""

    start: int
    end: int
    state: State


@dataclass(frozen=True, slots=True)
class Move:
    """A segment of an earlier sequence to be shifted into a new one, with the states to load.

    spans: saved cells of the earlier sequence, at its positions, that cover the segment.
    """

    segment: Segment
    spans: tuple[Span, ...]


#: Segments, each with the saved blocks that cover it.
Pieces: TypeAlias = list[tuple[Segment, list[Any]]]


@dataclass(frozen=True, slots=True)
class Sought:
    """What was found of one earlier prompt in a new one beyond `start`; not read from disk yet."""

    start: int
    pieces: Pieces


def _now() -> float:
    return time.monotonic()


@dataclass(slots=True, eq=False)
class Sequence:
    """A job, its tokens, and one number: how many of them the pool holds.

    The invariant that drives the scheduler: `computed` catches up with `len(tokens)`; when it has,
    the next token is sampled and appended. Prefill, decode, prefix reuse and preemption are all
    that one rule, so no phase flag exists that could disagree with the counts.

    tokens: prompt, then what was sampled. slot: the sequence id in the pool, or NO_SLOT.
    n_cached: prompt tokens that were not computed for it, -1 before it started.
    n_dropped: tokens that were given up to stay within the context.
    n_sent: stream items reported so far, which is the next item's place in the stream.
    spans: cells computed so far that are held outside the pool, without gaps from 0 on: of a
    sequence in the lane or put back; empty while it has a slot. moves: pieces of an earlier
    sequence that the lane will shift in. is_lane_shut: only the pool may compute it.
    fetched: states that were asked of the disk for it, each once. sought: what they are for, where
    it is moves.
    stop: a step ends after so many tokens, where a state of the prompt is to be kept; 0: nowhere.
    since: time.monotonic() of its arrival. top, n_moved: see compaction.
    """

    job: CoreJob
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    slot: int = NO_SLOT
    n_cached: int = -1
    n_sent: int = 0
    n_dropped: int = 0
    spans: list[Span] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    is_lane_shut: bool = False
    fetched: set[object] = field(default_factory=set)
    sought: Sought | None = None
    stop: int = 0
    since: float = field(default_factory=_now)
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
        return len(self.tokens) + self.n_dropped - self.n_prompt

    @property
    def position(self) -> int:
        """The place of the next token in the stream, which keys its draw."""
        return len(self.tokens) + self.n_dropped

    @property
    def n_pending(self) -> int:
        """Tokens that are not computed yet; 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def n_next(self) -> int:
        """Tokens that one step may compute at most: those to its stop, else all."""
        return (self.stop if self.computed < self.stop else len(self.tokens)) - self.computed

    @property
    def n_held(self) -> int:
        """Tokens whose cells are held outside the pool."""
        return self.spans[-1].end if self.spans else 0


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
