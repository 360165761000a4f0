"""Who starts, when and where: the way of a request from the waiting line into the pool.

A prompt takes one of three ways. It waits, when another request is computing the same beginning. It
goes through the lane, when computing it in the pool would hold running streams up for longer than
the step's target, or is more than one step's work. Otherwise it goes straight into the pool.
Short prompts that come together go there together, up to a few steps' work: a step carries as much
of them as the target lets it, with all threads, which is sooner than one by one in the lane.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from naiad.engine.cache import Cache, Slots
from naiad.engine.cost import StepCost
from naiad.engine.lane import Lane
from naiad.engine.prefix import MIN_REUSE, NOTHING, Resident
from naiad.engine.queueing import WaitingLine
from naiad.engine.scheduler import StepBudget
from naiad.engine.sequence import NO_SLOT, Sequence

#: Waiting for another request's prefill is worth it from this many shared tokens on.
_WORTH_WAITING = 16
#: Moving a prompt of so few tokens between contexts costs more than computing it.
_ALWAYS_SHORT = 16
#: Pieces of earlier prompts are looked for when at least so many tokens would be computed.
_WORTH_SHIFTING = 192
#: Prompts come together with one whose answer has so many tokens at most, and so many
#: micro-batches of them.
_TOGETHER = 4
#: The share of a prompt's own time that clearing the pool before it may take.
_CLEARING_SHARE = 0.03


@dataclass(frozen=True, slots=True)
class IntakeRules:
    """parallel: sequences that may be at work at once. pool_cells: cells they share. can_reuse and
    is_in_blocks: see CoreLimits. can_shift: moved pieces of earlier prompts may be used."""

    parallel: int
    pool_cells: int
    can_reuse: bool
    can_shift: bool
    budget: StepBudget
    is_in_blocks: bool = False


class Intake:
    """Owns the waiting line and the lane's members; `running` is the core's own list.

    started: called with each sequence that has got its slot and cells.
    """

    def __init__(
        self,
        rules: IntakeRules,
        pool: Slots,
        prefix: Cache,
        lane: Lane | None,
        cost: StepCost,
        running: list[Sequence],
        started: Callable[[Sequence], None],
    ) -> None:
        self._rules = rules
        self._pool = pool
        self._prefix = prefix
        self._cost = cost
        self._running = running
        self._started = started
        self._is_full = False  # a running one had to be put back, and nobody has left since
        self.lane = lane
        self.line = WaitingLine()
        self.lacks_room = False  # the next one waits for cells, not for a slot

    @property
    def in_lane(self) -> list[Sequence]:
        return self.lane.members if self.lane else []

    @property
    def has_slot(self) -> bool:
        return len(self._running) < self._rules.parallel

    # -- the ways in and out ---------------------------------------------------------------------

    def put_back(self, sequence: Sequence) -> None:
        """A running one has to go, for lack of cells: what it has is kept outside the pool."""
        self._is_full = True
        if self._rules.can_reuse:
            sequence.spans = self._prefix.save(sequence.slot, 0, sequence.computed)
        self._pool.free(sequence.slot)
        sequence.slot, sequence.computed = NO_SLOT, sequence.n_held
        self.line.put_back(sequence)

    def withdraw(self, sequence: Sequence) -> None:
        """It is not wanted any more, and has no slot."""
        if self.lane and sequence in self.lane.members:
            self.lane.remove(sequence)
        else:
            self.line.remove(sequence)
        self._stop_reading(sequence)

    def _stop_reading(self, sequence: Sequence) -> None:
        """What was asked of the disk for this one only is of no use any more."""
        if sequence.fetched:
            others = [other.fetched for other in self.line if other is not sequence]
            self._prefix.host.forget_fetch(sequence.fetched.difference(*others))
            sequence.fetched.clear()

    def left(self, sequence: Sequence) -> None:
        """It is over."""
        self._is_full = False
        self.line.ended(sequence, sequence.computed - max(sequence.n_cached, 0))

    def collect(self) -> None:
        """Take in what the lane has computed; a prompt that is done waits for its slot."""
        if self.lane is None:
            return
        sequence = self.lane.collect(self._cost)
        if sequence is None:
            return
        if self._rules.can_reuse:
            self._prefix.keep(sequence)
        if sequence not in self.lane.members:
            sequence.moves = []
            if sequence.is_lane_shut:
                sequence.n_cached = -1  # what it took over may not have come through
            self.line.put_back(sequence)

    # -- admission -------------------------------------------------------------------------------

    def admit(self) -> None:
        """Start waiting sequences in the line's order, as slots and cells allow.

        Once one had to be put back for lack of cells, nobody starts before somebody leaves: those
        that run only grow, and trying again would fail the same step for ever.
        """
        self.lacks_room = self._is_full and bool(self._running)
        if not self.line:
            return
        for sequence in self.line.ordered():
            if self.lacks_room or not self.has_slot:
                return
            self._try(sequence)

    def _try(self, sequence: Sequence) -> None:
        resident = self._find(sequence)
        if resident.n_coming - max(resident.n_ready, sequence.n_held) >= _WORTH_WAITING:
            return  # another request is computing this very prefix: share it
        if self._running and self._rules.can_reuse and self._prefix.is_coming(sequence, resident):
            return  # nobody who streams waits for the disk
        if self._send_to_lane(sequence, resident):
            return
        if self.has_room_for(sequence, resident):
            self._start(sequence, resident)
        else:
            self.lacks_room = True

    def _find(self, sequence: Sequence) -> Resident:
        if not self._rules.can_reuse:
            return NOTHING
        # Nobody waits for the work of somebody less important.
        coming = [s for s in self.in_lane if s.job.priority <= sequence.job.priority]
        return self._prefix.resident(sequence, [*self._running, *coming])

    def _send_to_lane(self, sequence: Sequence, resident: Resident) -> bool:
        lane = self.lane
        if lane is None or not lane.takes(sequence):
            return False
        n_known = self._prefix.n_known(sequence, resident)
        n_new = len(sequence.tokens) - 1 - n_known
        is_long = self._is_long(n_new, n_known)
        if len(lane.members) >= self._rules.parallel:
            return is_long  # it waits in the line, where callers take turns
        if self._rules.can_shift and n_new >= _WORTH_SHIFTING and not sequence.spans:
            if self._running and self._prefix.is_seeking(sequence, n_known):
                return True  # it waits in the line, for the disk
            sequence.moves = self._prefix.find_moves(sequence, n_known)
            resident = self._find(sequence)  # searching may have sent parked ones away
        if not is_long and not sequence.moves:
            return False
        self._prefix.hold(sequence, resident)
        self._count_cached(sequence, sequence.computed + sum(m.segment.n for m in sequence.moves))
        self.line.started(sequence)
        self._stop_reading(sequence)
        lane.add(sequence)
        return True

    def _is_long(self, n_new: int, n_known: int) -> bool:
        """Whether computing n_new tokens in the pool takes more than the next steps may."""
        if n_new <= _ALWAYS_SHORT:
            return False
        budget = self._rules.budget
        n_ahead = sum(s.n_pending for s in self._running if s.n_pending > 1)
        decoding = [s for s in self._running if s.n_pending == 1]
        if all(s.n_generated <= _TOGETHER for s in decoding):
            return n_new > budget.alone or n_ahead + n_new > budget.alone * _TOGETHER
        chunk = self._cost.chunk(budget.target_s, n_known, len(decoding))
        return n_ahead + n_new > min(chunk, budget.beside)

    def has_room_for(self, sequence: Sequence, resident: Resident) -> bool:
        """Whether the prompt fits beside what runs; always true when nothing runs.

        Shared cells are counted for each owner, so this errs on the careful side.
        """
        if not self._running:
            return True
        used = sum(len(s.tokens) for s in self._running)
        n_shared = resident.n_ready if resident.n_ready >= MIN_REUSE else 0
        return used + len(sequence.tokens) - n_shared <= self._rules.pool_cells

    def clear(self, n_new: int) -> None:
        """Save what is parked and let go of it before n_new tokens are computed, as far as a small
        share of their time is enough for. Not while somebody streams."""
        if any(s.n_sent for s in self._running):
            return
        deadline = time.perf_counter() + self._cost.prefill_s(n_new, 0) * _CLEARING_SHARE
        while time.perf_counter() < deadline and self._prefix.save_slice():
            pass

    def _make_way(self, sequence: Sequence, resident: Resident) -> Resident:
        """The best match once what is parked has left the first places, if cells will be loaded.

        They would come to lie behind it, and attention runs over all places up to the last
        (measured: 80 tokens behind 500 in 216 ms beside 600 parked ones, in 192 without).
        """
        n_known = self._prefix.n_known(sequence, resident)
        is_loaded = n_known >= resident.n_ready + MIN_REUSE
        if not (is_loaded and self._prefix.parked and self._rules.is_in_blocks):
            return resident
        self.clear(len(sequence.tokens) - n_known)
        return self._find(sequence)

    def _start(self, sequence: Sequence, resident: Resident) -> None:
        resident = self._make_way(sequence, resident)
        sequence.slot = self._prefix.slot_for(resident)
        sequence.top = sequence.n_moved = 0
        if self._rules.can_reuse or sequence.spans:  # its own, from the lane
            self._prefix.attach(sequence, resident)
        sequence.spans, sequence.moves = [], []
        self._stop_reading(sequence)
        self._count_cached(sequence, sequence.computed)
        self.line.started(sequence)
        self._running.append(sequence)
        self._started(sequence)

    def _count_cached(self, sequence: Sequence, n_tokens: int) -> None:
        if sequence.n_cached < 0:  # only what was there when it first started counts
            sequence.n_cached = n_tokens
