"""Reuse of whole sequences: where blocks of cells cannot be had, their states as they were.

For two kinds of pool. A `WholePool` cannot cut: a checkpoint serves a prompt that begins with all
of its tokens, so checkpoints are taken where prompts are likely to go on from: before a prompt's
last token (the same prompt again), at the end of an answer (the next turn), and on the way through
a long prompt (another with the same beginning). A `StreamPool` can cut: the end of an answer is
enough, and what is finished stays in its stream for nothing until the stream is needed.
"""

from __future__ import annotations

from collections.abc import Iterable

from naiad.engine.cache import Slots
from naiad.engine.checkpoints import Checkpoint, Checkpoints
from naiad.engine.executor import State
from naiad.engine.prefix import MIN_REUSE, NOTHING, Parked, Resident
from naiad.engine.sequence import NO_SLOT, Move, Sequence, Span, common_prefix

#: On the way through a prompt, a checkpoint after so many tokens, twice as many, and so on: the sum
#: of their sizes is at most twice the last one's.
_FIRST_STOP = 512
#: A saved state is preferred to what is in the pool when it has so many tokens more.
_WORTH_LOADING = 16


class WholeCache:
    """Implements `naiad.engine.cache.Cache`.

    can_cut: the pool can keep the beginning of a sequence. keeps_parked: what is finished stays in
    the pool after it was saved, because it costs nothing there.
    """

    def __init__(
        self, pool: Slots, host: Checkpoints[State], *, can_cut: bool, keeps_parked: bool
    ) -> None:
        self._pool = pool
        self.host = host
        self._can_cut = can_cut
        self._keeps_parked = keeps_parked
        self._n_slots = pool.available
        self.parked: list[Parked] = []

    # -- finding ---------------------------------------------------------------------------------

    def resident(self, sequence: Sequence, others: Iterable[Sequence]) -> Resident:
        """The best match in the pool, unless a saved state is as good.

        n_coming counts what running prompts will leave behind, when that is worth waiting for.
        """
        others = [o for o in others if o.job.namespace == sequence.job.namespace]
        ready = max(self._ready(sequence, others), key=lambda r: r.n_ready, default=NOTHING)
        n_saved = self._saved(sequence)[1]
        if n_saved >= ready.n_ready + _WORTH_LOADING:
            ready = NOTHING
        n_coming = max((self._coming(other, sequence) for other in others), default=0)
        if n_coming < max(ready.n_ready, n_saved) + _WORTH_LOADING:
            n_coming = ready.n_ready
        return Resident(ready.slot, ready.n_ready, n_coming)

    def _ready(self, sequence: Sequence, others: list[Sequence]) -> list[Resident]:
        """What the pool holds for it now: parked ones first, which may be gone on with in place."""
        found = [(p.slot, p.tokens) for p in self.parked if p.namespace == sequence.job.namespace]
        if self._can_cut:
            found += [(o.slot, o.tokens[: o.computed]) for o in others if o.slot != NO_SLOT]
        usable = [(slot, self._usable(tokens, sequence)) for slot, tokens in found]
        return [Resident(slot, n, n) for slot, n in usable if n >= MIN_REUSE]

    def _usable(self, known: list[int], sequence: Sequence) -> int:
        """Tokens of `known` that serve its prompt; the last one is always computed."""
        n = min(common_prefix(known, sequence.tokens), len(sequence.tokens) - 1)
        return n if self._can_cut or n == len(known) else 0

    def _coming(self, other: Sequence, sequence: Sequence) -> int:
        """Tokens that can be had of another's prompt once it is through with it, 0 if it is."""
        n = other.n_prompt - 1
        is_kept = self._can_cut or self.host.capacity > 0
        return self._usable(other.tokens[:n], sequence) if other.computed < n and is_kept else 0

    def n_known(self, sequence: Sequence, resident: Resident) -> int:
        """Tokens of its prompt that need not be computed, wherever they are."""
        return max(resident.n_ready, self._saved(sequence)[1], sequence.n_held)

    def is_coming(self, sequence: Sequence, resident: Resident) -> bool:
        """Whether what it needs of the disk is being read; asked again, it will be there."""
        self.host.take_fetched()  # what came to nothing is counted before a look-up drops it
        checkpoint, n = self._saved(sequence)
        if checkpoint is None or n <= max(resident.n_ready, sequence.n_held):
            return False
        return self.host.fetch([checkpoint], sequence.fetched)

    def _saved(self, sequence: Sequence) -> tuple[Checkpoint[State] | None, int]:
        """The best saved state and how many of its tokens are of use."""
        known = sequence.tokens[:-1]
        if self._can_cut:
            return self.host.closest(sequence.job.namespace, known)
        found = self.host.longest(sequence.job.namespace, known)
        return found, found.n_tokens if found else 0

    def is_seeking(self, sequence: Sequence, start: int) -> bool:  # noqa: ARG002
        return False

    def find_moves(self, sequence: Sequence, start: int) -> list[Move]:  # noqa: ARG002
        """None: a whole state cannot be moved in pieces."""
        return []

    # -- into the pool ---------------------------------------------------------------------------

    def slot_for(self, resident: Resident) -> int:
        """The slot to begin in: a parked sequence's own when nothing is lost by it, else an empty
        one, for which the parked one that waits longest may have to go.
        """
        parked = next((p for p in self.parked if p.slot == resident.slot), None)
        if parked is not None:
            self._save_before_use(parked, resident.n_ready)
            if self._is_saved(parked) or resident.n_ready == len(parked.tokens):
                self.parked.remove(parked)
                return parked.slot
        self._make_way([p for p in self.parked if p is not parked] or self.parked)
        return self._pool.allocate()

    def _make_way(self, parked: list[Parked]) -> None:
        """Free a slot if there is none, or one below those that are free beside running ones:
        streams in use belong side by side, and what was saved can be loaded elsewhere.
        """
        if not self._pool.available:
            self._save(parked[0])
            self.drop(parked[0])
        elif self._n_slots - self._pool.available > len(self.parked):
            lowest = min(filter(self._is_saved, parked), key=lambda p: p.slot, default=None)
            if lowest is not None and lowest.slot < self._pool.lowest_free:
                self.drop(lowest)

    def _save_before_use(self, parked: Parked, n_kept: int) -> None:
        """What would be cut off is saved first, when no other slot could be had."""
        is_only_one = not self._pool.available and self.parked == [parked]
        if is_only_one and n_kept < len(parked.tokens):
            self._save(parked)

    def attach(self, sequence: Sequence, resident: Resident) -> None:
        """Give a slot the longest prefix there is; sets `computed`."""
        slot = sequence.slot
        sequence.stop = 0 if self._can_cut else sequence.n_prompt - 1
        if self._pool.length(slot):  # it was a parked one's
            sequence.computed = self._pool.cut(slot, resident.n_ready)
            return
        sequence.computed = self._load_spans(sequence)
        if not sequence.computed and resident.n_ready and resident.slot != slot:
            sequence.computed = self._pool.share(resident.slot, slot, resident.n_ready)
        if not sequence.computed:
            sequence.computed = self._load_saved(sequence)

    def _load_spans(self, sequence: Sequence) -> int:
        """What it had when it was put back."""
        for span in sequence.spans:
            self._pool.load(sequence.slot, span.start, span.end - span.start, span.state)
        return self._pool.length(sequence.slot)

    def _load_saved(self, sequence: Sequence) -> int:
        checkpoint, n = self._saved(sequence)
        if checkpoint is None or n < MIN_REUSE:
            return 0
        state = self.host.state_of(checkpoint)
        return 0 if state is None else self._pool.load(sequence.slot, 0, n, state)

    # -- out of the pool -------------------------------------------------------------------------

    def hold(self, sequence: Sequence, resident: Resident) -> None:  # noqa: ARG002
        """Bring the best saved state into `spans`."""
        checkpoint = None if self._can_cut else self._saved(sequence)[0]
        state = self.host.state_of(checkpoint) if checkpoint else None
        if checkpoint is not None and state is not None and not sequence.n_held:
            sequence.spans = [Span(0, checkpoint.n_tokens, state)]
        sequence.computed = sequence.n_held

    def save(self, slot: int, start: int, end: int) -> list[Span]:
        """The state of a whole slot; nothing for any other range."""
        state = self._pool.save(slot, start, end)
        return [] if state is None else [Span(start, end, state)]

    def keep(self, sequence: Sequence) -> None:
        """Let the cache have what a sequence holds outside the pool."""
        for span in sequence.spans:
            self._add(sequence.job.namespace, sequence.tokens[: span.end], span.state, lasts=False)

    def computed(self, sequence: Sequence, n_tokens: int) -> None:
        """The last n_tokens of what it has were computed just now: take a checkpoint if one is due.

        Not beyond its prompt, nor where one is known.
        """
        end, stop = sequence.computed, sequence.stop
        if not MIN_REUSE <= end <= stop or (end < stop and not _has_doubled(end - n_tokens, end)):
            return
        tokens, namespace = sequence.tokens[:end], sequence.job.namespace
        state = None
        if not self.host.holds(namespace, tokens):
            state = self._pool.save(sequence.slot, 0, end)
        if state is not None:
            self._add(namespace, tokens, state, lasts=False)

    def park(self, sequence: Sequence) -> None:
        """Take over the slot of a sequence that has ended."""
        tokens = sequence.tokens[: sequence.computed]
        self.parked.append(Parked(sequence.slot, tokens, sequence.job.namespace))

    def drop(self, parked: Parked) -> None:
        """Give up a parked sequence's slot, saved or not."""
        self.parked.remove(parked)
        self._pool.free(parked.slot)

    def save_slice(self) -> bool:
        """Save the state of the oldest parked sequence that is not saved. True: there is more."""
        unsaved = [p for p in self.parked if not self._is_saved(p)]
        if unsaved:
            self._save(unsaved[0])
            if not self._keeps_parked:
                self.drop(unsaved[0])
        return len(unsaved) > 1

    def _is_saved(self, parked: Parked) -> bool:
        return parked.unsaved is not None

    def _save(self, parked: Parked) -> None:
        if self._is_saved(parked):
            return
        parked.unsaved = []
        if not self.host.holds(parked.namespace, parked.tokens):
            state = self._pool.save(parked.slot, 0, len(parked.tokens))
            if state is not None:
                self._add(parked.namespace, parked.tokens, state, lasts=True)

    def _add(self, namespace: str, tokens: list[int], state: State, *, lasts: bool) -> None:
        self.host.add(namespace, tokens, state, state.nbytes, lasts=lasts)

    def check_integrity(self) -> None:
        """Raises AssertionError when the books do not agree."""
        self.host.check_integrity()
        assert len({p.slot for p in self.parked}) == len(self.parked)


def _has_doubled(before: int, after: int) -> bool:
    """Whether _FIRST_STOP, or it times a power of two, lies in (before, after]."""
    return (after // _FIRST_STOP).bit_length() > (before // _FIRST_STOP).bit_length()
