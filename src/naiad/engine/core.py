"""The engine core: add, abort, step.

A step reads: admit what fits, plan, execute, commit. Everything a stream gets leaves through the
items that `step` returns; nothing else remembers an answer, so nobody can be handed another's.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from naiad.engine.base import CoreJob
from naiad.engine.compaction import Compactor
from naiad.engine.executor import DecodeOutcome, Executor, Run, State
from naiad.engine.host_cache import HostCache
from naiad.engine.journal import Journal
from naiad.engine.pool import Pool
from naiad.engine.prefix import MIN_REUSE, PrefixCache, Resident
from naiad.engine.sampling import Sampler
from naiad.engine.scheduler import Chunk, StepBudget, plan
from naiad.engine.sequence import NO_SLOT, Sequence
from naiad.errors import EngineFailed
from naiad.ipc.messages import StreamItem
from naiad.native.sampler import Candidates
from naiad.types import FinishReason

logger = logging.getLogger("naiad.engine")

#: Waiting for another request's prefill is worth it from this many shared tokens on.
_WORTH_WAITING = 16
#: The share of running streams' time that tidying the pool may take.
_TIDYING_SHARE = 0.1


class TokenTable(Protocol):
    """What the core needs of a vocabulary; see `naiad.native.vocab.Vocab`."""

    n_tokens: int
    eog: frozenset[int]

    def piece(self, token: int, *, special: bool = False) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreLimits:
    """Sizes the core runs with.

    n_ctx: tokens one request may use. pool_cells: cells all share, at least n_ctx. parallel:
    sequences in one batch. n_parked: finished sequences that may wait in the pool until they are
    saved. host_cache_bytes: saved states.
    can_reuse: False for models whose past cannot be cut (recurrent, hybrid). window: positions
    that sliding layers look back over, 0 when the model has none.
    """

    n_ctx: int
    pool_cells: int
    parallel: int
    n_parked: int = 0
    host_cache_bytes: int = 0
    can_reuse: bool = True
    window: int = 0
    budget: StepBudget = field(default_factory=StepBudget)
    check_integrity: bool = False


class EngineCore:
    """Implements `naiad.engine.base.Core` over an executor. One thread, but for `cancel_hint`."""

    def __init__(
        self,
        executor: Executor,
        vocab: TokenTable,
        limits: CoreLimits,
        journal: Journal | None = None,
    ) -> None:
        self._executor = executor
        self._vocab = vocab
        self._limits = limits
        self._journal = journal
        self._pool = Pool(executor.memory, limits.parallel + limits.n_parked, limits.window)
        self._compactor = Compactor(self._pool)
        self._prefix = PrefixCache(self._pool, HostCache[State](limits.host_cache_bytes))
        self._candidates = Candidates(vocab.n_tokens)
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._by_uid: dict[int, Sequence] = {}
        self._samplers: dict[int, Sampler] = {}
        self._ended: list[StreamItem] = []
        self._interrupts = _Interrupts(executor)
        self._step_s = 0.0  # how long the last decode took
        self._is_full = False  # a running one had to be put back, and nobody has left since
        self._lacks_room = False  # the next one waits for cells, not for a slot

    # -- the verbs ---------------------------------------------------------------------------

    def add(self, job: CoreJob) -> None:
        sequence = Sequence(job)
        self._by_uid[job.uid] = sequence
        self._waiting.append(sequence)
        if self._journal:
            self._journal.job_added(job)

    def abort(self, uid: int) -> None:
        sequence = self._by_uid.get(uid)
        self._interrupts.forget(uid)
        if sequence is None:
            return
        if sequence.slot == NO_SLOT:
            self._waiting.remove(sequence)
        self._ended.append(self._end(sequence, FinishReason.CANCELLED))

    def cancel_hint(self, uid: int) -> None:
        self._interrupts.hint(uid)

    def has_work(self) -> bool:
        return bool(self._waiting or self._running or self._ended)

    def step(self) -> list[StreamItem]:
        items, self._ended = self._ended, []
        self._tidy()
        self._admit()
        chunks = plan(self._running, self._limits.budget)
        outcome = self._execute(chunks) if chunks else DecodeOutcome.ABORTED
        if outcome is DecodeOutcome.DONE:
            items += self._commit(chunks)
        elif outcome is DecodeOutcome.NO_ROOM:
            self._make_room()
        elif outcome is DecodeOutcome.ABORTED:
            self._reconcile(chunks)
        else:
            raise EngineFailed("the engine reported a fatal error while decoding")
        if self._limits.check_integrity:
            self.check_integrity()
        for item in items if self._journal else ():
            self._journal_item(item)
        return items

    def idle_slice(self) -> bool:
        more = self._prefix.save_slice()
        if not more:
            self.check_integrity()
        return more

    def close(self) -> None:
        for sampler in self._samplers.values():
            sampler.close()
        self._samplers.clear()
        self._executor.close()
        if self._journal:
            self._journal.close()

    # -- admission ---------------------------------------------------------------------------

    def _admit(self) -> None:
        """Start waiting sequences in order of arrival, as slots and cells allow.

        Once one had to be put back for lack of cells, nobody starts before somebody leaves: those
        that run only grow, and trying again would fail the same step for ever.
        """
        held: list[Sequence] = []
        self._lacks_room = self._is_full and bool(self._running)
        while self._waiting and not self._lacks_room and len(self._running) < self._limits.parallel:
            sequence = self._waiting.popleft()
            resident = self._find_resident(sequence)
            if resident.n_coming - resident.n_ready >= _WORTH_WAITING:
                held.append(sequence)  # another request is computing this very prefix: share it
            elif self._has_room_for(sequence, resident):
                self._start(sequence, resident)
            else:
                held.append(sequence)
                self._lacks_room = True
        self._waiting.extendleft(reversed(held))

    def _find_resident(self, sequence: Sequence) -> Resident:
        if not self._limits.can_reuse:
            return Resident(NO_SLOT, 0, 0)
        return self._prefix.resident(sequence, self._running)

    def _has_room_for(self, sequence: Sequence, resident: Resident) -> bool:
        """Whether the prompt fits beside what runs; always true when nothing runs.

        Shared cells are counted for each owner, so this errs on the careful side.
        """
        if not self._running:
            return True
        used = sum(len(s.tokens) for s in self._running)
        n_shared = resident.n_ready if resident.n_ready >= MIN_REUSE else 0
        return used + len(sequence.tokens) - n_shared <= self._limits.pool_cells

    def _start(self, sequence: Sequence, resident: Resident) -> None:
        sequence.slot = self._pool.allocate()
        sequence.top = sequence.n_moved = 0
        if self._limits.can_reuse:
            self._prefix.attach(sequence, resident)
        if sequence.uid not in self._samplers:
            self._samplers[sequence.uid] = self._make_sampler(sequence)
        self._running.append(sequence)
        self._compactor.placed([sequence], self._n_used())

    def _n_used(self) -> int:
        """Cells in use, shared ones counted for each owner."""
        live = sum(s.computed for s in self._running)
        return live + sum(len(p.tokens) for p in self._prefix.parked)

    def _make_sampler(self, sequence: Sequence) -> Sampler:
        return Sampler(
            sequence.job.sampling,
            self._vocab.n_tokens,
            self._limits.n_ctx,
            self._vocab.eog,
            sequence.tokens,
        )

    # -- one step ----------------------------------------------------------------------------

    def _execute(self, chunks: list[Chunk]) -> DecodeOutcome:
        runs = [
            Run(
                chunk.sequence.slot,
                chunk.sequence.tokens[
                    chunk.sequence.computed : chunk.sequence.computed + chunk.n_tokens
                ],
                chunk.sequence.computed,
                chunk.is_last,
            )
            for chunk in chunks
        ]
        with self._interrupts.step({chunk.sequence.uid for chunk in chunks}) as is_wanted:
            began = time.perf_counter()
            outcome = self._executor.decode(runs) if is_wanted else DecodeOutcome.ABORTED
            self._step_s = time.perf_counter() - began
        return outcome

    def _commit(self, chunks: list[Chunk]) -> list[StreamItem]:
        caught_up = [(i, c.sequence) for i, c in enumerate(chunks) if c.is_last]
        for chunk in chunks:
            chunk.sequence.computed += chunk.n_tokens
        self._compactor.placed((c.sequence for c in chunks), self._n_used())
        return [self._sample(index, sequence) for index, sequence in caught_up]

    def _sample(self, run: int, sequence: Sequence) -> StreamItem:
        logits = self._executor.logits(run)
        if not math.isfinite(logits.max()):  # one NaN makes the maximum NaN
            message = "the model computed NaN or infinity"
            return self._end(sequence, FinishReason.ERROR, error=message)
        sampler = self._samplers[sequence.uid]
        token = sampler.sample(logits, len(sequence.tokens), self._candidates)
        sequence.tokens.append(token)
        if token in self._vocab.eog:
            return self._end(sequence, FinishReason.STOP, [token])
        is_full = len(sequence.tokens) >= self._limits.n_ctx
        if is_full or sequence.n_generated >= sequence.job.max_tokens:
            return self._end(sequence, FinishReason.LENGTH, [token], self._vocab.piece(token))
        return self._item(sequence, [token], self._vocab.piece(token))

    def _item(
        self,
        sequence: Sequence,
        tokens: list[int],
        data: bytes = b"",
        finish: FinishReason | None = None,
        error: str | None = None,
    ) -> StreamItem:
        place = sequence.n_sent
        sequence.n_sent += 1
        why = (EngineFailed.code, error) if error else None
        return StreamItem(sequence.uid, place, tokens, data, finish, sequence.n_cached, why)

    def _end(
        self,
        sequence: Sequence,
        finish: FinishReason,
        tokens: list[int] | None = None,
        data: bytes = b"",
        error: str | None = None,
    ) -> StreamItem:
        """The last item of a stream, and the end of all that the engine holds for it."""
        item = self._item(sequence, tokens or [], data, finish, error)
        del self._by_uid[sequence.uid]
        if sequence.slot != NO_SLOT:
            self._running.remove(sequence)
            self._release(sequence, is_good=error is None)
        if sampler := self._samplers.pop(sequence.uid, None):
            sampler.close()
        return item

    def _release(self, sequence: Sequence, *, is_good: bool) -> None:
        self._is_full = False
        is_worth_it = self._limits.can_reuse and sequence.computed >= MIN_REUSE and is_good
        if is_worth_it and self._limits.n_parked:
            if len(self._prefix.parked) >= self._limits.n_parked:
                self._prefix.drop(self._prefix.parked[0])
            self._prefix.park(sequence)
        else:
            self._pool.free(sequence.slot)
        sequence.slot = NO_SLOT

    # -- when a step does not go through -------------------------------------------------------

    def _make_room(self) -> None:
        """After "no room": let go of what is idle, else of the newest, which starts over later."""
        if self._prefix.parked:
            self._prefix.drop(self._prefix.parked[0])
        elif len(self._running) > 1:
            self._preempt(self._running[-1])
        else:
            message = "the pool of cells is too small for this request"
            self._ended.append(self._end(self._running[0], FinishReason.ERROR, error=message))

    def _preempt(self, sequence: Sequence) -> None:
        self._is_full = True
        self._running.remove(sequence)
        self._pool.free(sequence.slot)
        sequence.slot, sequence.computed = NO_SLOT, 0
        self._waiting.appendleft(sequence)

    def _reconcile(self, chunks: list[Chunk]) -> None:
        """After an interrupted decode: finished micro-batches stay, so read the positions back.

        The last token stays to be computed, since its logits were never read.
        """
        for chunk in chunks:
            sequence = chunk.sequence
            kept = min(self._pool.length(sequence.slot), len(sequence.tokens) - 1)
            sequence.computed = self._pool.cut(sequence.slot, kept)

    def _tidy(self) -> None:
        """Keep the pool small beside running streams: save what is parked, move what is stranded.

        A block with each step, more with long ones, about a tenth of their time; after the last
        step's items are sent and not while someone could start, so that no first token waits.
        """
        has_slot = len(self._running) < self._limits.parallel
        if not self._running or (self._waiting and has_slot and not self._lacks_room):
            return
        deadline = time.perf_counter() + self._step_s * _TIDYING_SHARE
        while self._prefix.save_slice() or self._compactor.tidy(self._running, self._n_used()):
            if time.perf_counter() >= deadline:
                return

    def _journal_item(self, item: StreamItem) -> None:
        if self._journal:
            self._journal.item_made(item)

    def check_integrity(self) -> None:
        """Raises AssertionError when books and pool disagree."""
        lengths = {s.slot: s.computed for s in self._running}
        lengths |= {p.slot: len(p.tokens) for p in self._prefix.parked}
        self._pool.check_integrity(lengths)
        self._prefix.host.check_integrity()
        assert len(self._by_uid) == len(self._running) + len(self._waiting)
        assert self._samplers.keys() <= self._by_uid.keys()


class _Interrupts:
    """Ends a running decode when all the work in it belongs to requests that were cancelled."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._lock = threading.Lock()
        self._hinted: set[int] = set()
        self._in_step: set[int] = set()

    def hint(self, uid: int) -> None:
        with self._lock:
            self._hinted.add(uid)
            if self._in_step and self._in_step <= self._hinted:
                self._executor.interrupt()

    def forget(self, uid: int) -> None:
        with self._lock:
            self._hinted.discard(uid)

    def step(self, uids: set[int]) -> _InterruptibleStep:
        return _InterruptibleStep(self, uids)

    def enter(self, uids: set[int]) -> bool:
        with self._lock:
            self._executor.clear_interrupt()
            self._in_step = uids
            return not uids <= self._hinted

    def leave(self) -> None:
        with self._lock:
            self._in_step = set()


class _InterruptibleStep:
    """Context of one decode; entering tells whether anyone still wants its result."""

    def __init__(self, interrupts: _Interrupts, uids: set[int]) -> None:
        self._interrupts = interrupts
        self._uids = uids

    def __enter__(self) -> bool:
        return self._interrupts.enter(self._uids)

    def __exit__(self, *_: object) -> None:
        self._interrupts.leave()
