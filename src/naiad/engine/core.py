"""The engine core: add, abort, step.

A step reads: admit what fits, plan, execute, commit. Everything a stream gets leaves through the
items that `step` returns; nothing else remembers an answer, so nobody can be handed another's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from naiad.engine.base import CoreJob
from naiad.engine.blocks import Store
from naiad.engine.choosing import CaughtUp, Chooser, Said, TokenTable
from naiad.engine.compaction import Compactor
from naiad.engine.cost import StepCost
from naiad.engine.draft_model import DraftModel, ModelDrafting
from naiad.engine.drafts import Drafting
from naiad.engine.executor import DecodeOutcome, Executor, Run, State
from naiad.engine.intake import Intake, IntakeRules
from naiad.engine.interrupts import Interrupts
from naiad.engine.journal import Journal
from naiad.engine.kinds import pool_and_cache
from naiad.engine.lane import Lane
from naiad.engine.overflow import Overflow
from naiad.engine.prefix import MIN_REUSE
from naiad.engine.scheduler import Chunk, StepBudget, plan
from naiad.engine.sequence import NO_SLOT, Sequence
from naiad.errors import EngineFailed
from naiad.ipc.messages import ProgressItem, StreamItem
from naiad.types import CacheCounts, FinishReason

#: The share of running streams' time that tidying the pool may take.
_TIDYING_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreLimits:
    """Sizes the core runs with.

    n_ctx: tokens one request may use. pool_cells: cells all share, at least n_ctx. parallel:
    sequences in one batch. n_parked: finished sequences that may wait in the pool until they are
    saved. host_cache_bytes: saved states.
    can_reuse: what was computed may be used again. can_cut: the end of a sequence can be dropped;
    False for recurrent and hybrid models. kv_unified: all share one pool of cells, else each
    sequence has a stream of its own. can_shift: pieces of earlier prompts may be used at other
    positions. drafts: see naiad.engine.drafts.
    window: positions that sliding layers look back over, 0 when the model has none.
    can_interrupt: a decode under way can be ended within milliseconds, which llama.cpp does on the
    processor only.
    """

    n_ctx: int
    pool_cells: int
    parallel: int
    n_parked: int = 0
    host_cache_bytes: int = 0
    can_reuse: bool = True
    can_cut: bool = True
    kv_unified: bool = True
    can_shift: bool = False
    drafts: bool = False
    window: int = 0
    can_interrupt: bool = True
    budget: StepBudget = field(default_factory=StepBudget)
    check_integrity: bool = False

    @property
    def is_in_blocks(self) -> bool:
        """Whether what is saved can be cut and put together again; see naiad.engine.kinds."""
        return self.can_cut and self.kv_unified


class EngineCore:
    """Implements `naiad.engine.base.Core` over an executor. One thread, but for `cancel_hint`."""

    def __init__(
        self,
        executor: Executor,
        vocab: TokenTable,
        limits: CoreLimits,
        journal: Journal | None = None,
        lane: Lane | None = None,
        store: Store[State] | None = None,
        draft_model: DraftModel | None = None,
    ) -> None:
        self._executor = executor
        self._limits = limits
        self._journal = journal
        n_slots = limits.parallel + limits.n_parked
        self._pool, self._prefix = pool_and_cache(
            executor.memory,
            n_slots,
            limits.host_cache_bytes,
            store,
            window=limits.window,
            can_cut=limits.can_cut,
            kv_unified=limits.kv_unified,
        )
        # Whole sequences give way when their slots are needed; blocks need slots of their own.
        self._n_parked = limits.n_parked if limits.is_in_blocks else n_slots
        self._compactor = Compactor(self._pool)
        can_shift = limits.can_reuse and limits.can_shift and limits.is_in_blocks
        self._chooser = Chooser(executor, vocab, limits.n_ctx, can_shift=can_shift)
        self._overflow = Overflow(self._pool, self._prefix, limits.n_ctx)
        self._cost = StepCost()
        self._running: list[Sequence] = []
        self._by_uid: dict[int, Sequence] = {}
        self._ended: list[StreamItem] = []
        self._interrupts = Interrupts(executor)
        self._step_s = 0.0  # how long the last decode took
        self._is_stalled = False  # nothing to do before the lane is done or a command comes
        rules = IntakeRules(
            parallel=limits.parallel,
            pool_cells=limits.pool_cells,
            can_reuse=limits.can_reuse,
            can_shift=can_shift,
            is_in_blocks=limits.is_in_blocks,
            budget=limits.budget,
        )
        self._intake = Intake(
            rules, self._pool, self._prefix, lane, self._cost, self._running, self._started
        )
        self._lane = lane
        self._drafting: Drafting | None = None
        if limits.drafts:
            target_s = limits.budget.target_s
            second = ModelDrafting(draft_model, target_s) if draft_model else None
            self._drafting = Drafting(limits.n_ctx, target_s, second)

    # -- the verbs ---------------------------------------------------------------------------

    def add(self, job: CoreJob) -> None:
        sequence = Sequence(job)
        self._by_uid[job.uid] = sequence
        self._intake.line.add(sequence)
        self._is_stalled = False
        if self._journal:
            self._journal.job_added(job)

    def abort(self, uid: int) -> None:
        sequence = self._by_uid.get(uid)
        self._interrupts.forget(uid)
        if self._lane:
            self._lane.forget(uid)
        if sequence is None:
            return
        if sequence.slot == NO_SLOT:
            self._intake.withdraw(sequence)
        self._is_stalled = False
        self._ended.append(self._end(sequence, Said([], finish=FinishReason.CANCELLED)))

    def cancel_hint(self, uid: int) -> None:
        self._interrupts.hint(uid)
        if self._lane:
            self._lane.hint(uid)

    def set_waker(self, wake: Callable[[], None]) -> None:
        if self._lane:
            self._lane.wake = wake

    def has_work(self) -> bool:
        if self._lane and self._lane.has_result:
            return True
        has_any = bool(self._intake.line or self._running or self._intake.in_lane or self._ended)
        return has_any and not self._is_stalled

    def progress(self) -> list[ProgressItem]:
        line = self._intake.line
        return [
            ProgressItem(
                uid=s.uid,
                position=line.position(s) if s in line and not s.n_held else None,
                n_done=min(s.computed, s.n_prompt),  # first tokens may be held back
                n_total=s.n_prompt,
                n_cached=max(s.n_cached, 0),
            )
            for s in self._by_uid.values()
            if s.job.wants_progress and s.n_sent == 0
        ]

    def cache_counts(self) -> CacheCounts:
        counts: CacheCounts = self._prefix.host.told()
        return counts

    def step(self) -> list[StreamItem]:
        items, self._ended = self._ended, []
        self._prefix.host.take_fetched()
        self._tidy()
        self._intake.collect()
        self._intake.admit()
        self._use_lane()
        self._clear()
        chunks = [] if self._waits_for_lane() else self._plan()
        if self._drafting and chunks and not (self._lane and self._lane.is_busy):
            chunks = self._drafting.extend(chunks, self._cost)
        self._is_stalled = not chunks and self._lane is not None and self._lane.is_busy
        outcome = self._execute(chunks) if chunks else DecodeOutcome.ABORTED
        if outcome is DecodeOutcome.NO_ROOM and any(chunk.draft for chunk in chunks):
            chunks = [replace(chunk, draft=()) for chunk in chunks]  # no guess is worth a place
            outcome = self._execute(chunks)
        if outcome is DecodeOutcome.DONE:
            self._pool.settle()
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

    def _use_lane(self) -> None:
        if self._lane is None:
            return
        self._lane.dispatch(self._cost, is_alone=not self._running)
        self._executor.set_threads(self._lane.threads_left())

    def _waits_for_lane(self) -> bool:
        """Whether a first token comes sooner when the lane has let go of the processors.

        A chunk that nobody wants ends within milliseconds; a prompt begun beside it would be
        computed with half the threads (measured: 80 ms instead of 50). A stream under way goes on.
        """
        if self._lane is None or not (self._lane.is_leaving and self._limits.can_interrupt):
            return False
        return not any(s.n_sent for s in self._running)

    def _plan(self) -> list[Chunk]:
        return plan(self._running, self._limits.budget, self._cost, time.monotonic())

    def idle_slice(self) -> bool:
        self._prefix.host.take_fetched()
        more = self._prefix.save_slice()
        if not more:
            self.check_integrity()
        return more

    def close(self) -> None:
        self._chooser.close()
        if self._lane:
            self._lane.close()
        if self._drafting:
            self._drafting.close()
        self._executor.close()
        if self._journal:
            self._journal.close()

    def _started(self, sequence: Sequence) -> None:
        self._chooser.begin(sequence)
        self._compactor.placed([sequence], self._n_used())

    def _n_used(self) -> int:
        """Cells in use, shared ones counted for each owner."""
        live = sum(s.computed for s in self._running)
        return live + sum(len(p.tokens) for p in self._prefix.parked)

    # -- one step ----------------------------------------------------------------------------

    def _execute(self, chunks: list[Chunk]) -> DecodeOutcome:
        runs = [_run(chunk) for chunk in chunks]
        with self._interrupts.step({chunk.sequence.uid for chunk in chunks}) as is_wanted:
            began = time.perf_counter()
            outcome = self._executor.decode(runs) if is_wanted else DecodeOutcome.ABORTED
            self._step_s = time.perf_counter() - began
        return outcome

    def _commit(self, chunks: list[Chunk]) -> list[StreamItem]:
        caught_up = [CaughtUp(i, c.sequence, c.draft) for i, c in enumerate(chunks) if c.is_last]
        self._learn_cost(chunks)
        for chunk in chunks:
            chunk.sequence.computed += chunk.n_tokens
            self._prefix.computed(chunk.sequence, chunk.n_tokens)
        self._compactor.placed((c.sequence for c in chunks), self._n_used())
        said = self._chooser.choose(caught_up) if caught_up else []
        items = [self._report(c, s) for c, s in zip(caught_up, said, strict=True)]
        return [item for item in items if item is not None]

    def _report(self, caught_up: CaughtUp, said: Said) -> StreamItem | None:
        """The item, if there is something to send: what may be taken back waits."""
        sequence = caught_up.sequence
        if caught_up.draft or said.is_rewound:
            self._keep_accepted(sequence, said.n_drafted)
        if said.is_rewound:
            self._forget_draft(sequence)
        if said.finish is not None:
            return self._end(sequence, said)
        if self._overflow.is_full(sequence):
            self._overflow.make_room(sequence)
            self._forget_draft(sequence)
        return self._item(sequence, said) if said.tokens else None

    def _keep_accepted(self, sequence: Sequence, n_accepted: int) -> None:
        """Keep the cells of tokens that were chosen, but for the last: its logits are to come."""
        n_kept = min(sequence.computed + n_accepted, len(sequence.tokens) - 1)
        sequence.computed = self._pool.cut(sequence.slot, n_kept)

    def _forget_draft(self, sequence: Sequence) -> None:
        if self._drafting:
            self._drafting.forget(sequence.uid)

    def _learn_cost(self, chunks: list[Chunk]) -> None:
        prefill = [c for c in chunks if c.n_tokens > 1]
        if not prefill:
            n_drafted = sum(len(c.draft) for c in chunks)
            self._cost.saw_decode(self._step_s, len(chunks) + n_drafted, n_drafted)
            return
        n_tokens = sum(c.n_tokens for c in prefill)
        depth = sum(c.n_tokens * (c.sequence.computed + c.n_tokens // 2) for c in prefill)
        beside = len(chunks) - len(prefill)
        self._cost.saw_prefill(n_tokens, depth // n_tokens, self._step_s, beside=beside)

    def _item(self, sequence: Sequence, said: Said) -> StreamItem:
        place = sequence.n_sent
        sequence.n_sent += 1
        why = (said.code, said.error) if said.error else None
        n_cached = max(sequence.n_cached, 0)
        return StreamItem(
            sequence.uid,
            place,
            said.tokens,
            said.data,
            said.finish,
            n_cached,
            why,
            logprobs=said.logprobs or None,
            n_dropped=sequence.n_dropped,
            sizes=said.sizes if len(said.tokens) > 1 else None,
        )

    def _end(self, sequence: Sequence, said: Said) -> StreamItem:
        """The last item of a stream, and the end of all that the engine holds for it."""
        item = self._item(sequence, said)
        del self._by_uid[sequence.uid]
        self._intake.left(sequence)
        if sequence.slot != NO_SLOT:
            self._running.remove(sequence)
            self._release(sequence, is_good=said.error is None)
        self._chooser.forget(sequence.uid)
        if self._drafting:
            self._drafting.end(sequence.uid)
        return item

    def _release(self, sequence: Sequence, *, is_good: bool) -> None:
        is_worth_it = self._limits.can_reuse and sequence.computed >= MIN_REUSE and is_good
        if is_worth_it and self._n_parked:
            if len(self._prefix.parked) >= self._n_parked:
                self._prefix.drop(self._prefix.parked[0])
            self._prefix.park(sequence)
        else:
            self._pool.free(sequence.slot)
        sequence.slot = NO_SLOT

    # -- when a step does not go through -------------------------------------------------------

    def _make_room(self) -> None:
        """After "no room": let go of what is idle, else put the least important one back."""
        if self._prefix.parked:
            self._prefix.drop(self._prefix.parked[0])
        elif len(self._running) > 1:
            self._put_back(max(self._running, key=lambda s: (s.job.priority, s.since)))
        else:
            message = "the pool of cells is too small for this request"
            failed = Said([], finish=FinishReason.ERROR, error=message)
            self._ended.append(self._end(self._running[0], failed))

    def _put_back(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._intake.put_back(sequence)

    def _reconcile(self, chunks: list[Chunk]) -> None:
        """After an interrupted decode: finished micro-batches stay, so read the positions back.

        The last token stays to be computed, since its logits were never read. What the decode was
        to turn to new positions is given up, whoever has it.
        """
        if not chunks:
            return
        for parked in [p for p in self._prefix.parked if not self._pool.is_settled(p.slot)]:
            self._prefix.drop(parked)
        slots = {chunk.sequence.slot for chunk in chunks}
        for sequence in self._running:
            if sequence.slot in slots or not self._pool.is_settled(sequence.slot):
                n_most = len(sequence.tokens) - 1
                sequence.computed = self._pool.interrupted(sequence.slot, n_most)

    def _tidy(self) -> None:
        """Keep the pool small beside running streams: save what is parked, move what is stranded.

        A block with each step, more with long ones, about a tenth of their time; after the last
        step's items are sent and not while someone could start, so that no first token waits.
        """
        intake = self._intake
        if not self._running or (intake.line and intake.has_slot and not intake.lacks_room):
            return
        deadline = time.perf_counter() + self._step_s * _TIDYING_SHARE
        while self._prefix.save_slice() or self._compactor.tidy(self._running, self._n_used()):
            if time.perf_counter() >= deadline:
                return

    def _clear(self) -> None:
        """Send away what is parked before a prompt is computed that nobody streams beside.

        A request right after another one finds its cells still there, and attention would run over
        them as well (measured: 88 tokens in 202 ms beside 130 parked ones, 192 without; saving
        those takes one). Where every sequence has cells of its own there is nothing to gain.
        """
        if self._limits.is_in_blocks and self._prefix.parked:
            self._intake.clear(sum(s.n_pending for s in self._running))

    def _journal_item(self, item: StreamItem) -> None:
        if self._journal:
            self._journal.item_made(item)

    def check_integrity(self) -> None:
        """Raises AssertionError when books and pool disagree."""
        lengths = {s.slot: s.computed for s in self._running}
        lengths |= {p.slot: len(p.tokens) for p in self._prefix.parked}
        self._pool.check_integrity(lengths)
        self._prefix.check_integrity()
        n_waiting = len(self._intake.line) + len(self._intake.in_lane)
        assert len(self._by_uid) == len(self._running) + n_waiting
        assert self._chooser.uids <= self._by_uid.keys()


def _run(chunk: Chunk) -> Run:
    sequence, start = chunk.sequence, chunk.sequence.computed
    tokens = [*sequence.tokens[start : start + chunk.n_tokens], *chunk.draft]
    return Run(sequence.slot, tokens, start, 1 + len(chunk.draft) if chunk.is_last else 0)
