"""Where a new request's beginning can come from: live sequences, parked ones, host memory, disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from naiad.engine.executor import State
from naiad.engine.host_cache import BLOCK, Block, HostCache
from naiad.engine.pool import Pool
from naiad.engine.segments import MIN_SEGMENT, Segment, SegmentFinder
from naiad.engine.sequence import NO_SLOT, Move, Pieces, Sequence, Sought, Span, common_prefix

#: Fewer tokens than this are cheaper to compute than to look after.
MIN_REUSE = 8
#: Earlier prompts that are searched for pieces of a new one.
_PATHS_SEARCHED = 16


@dataclass(slots=True, eq=False)
class Parked:
    """A finished sequence still in the pool, on its way to host memory.

    unsaved: starts of the blocks that host memory still lacks; None until they were looked up.
    """

    slot: int
    tokens: list[int]
    namespace: str
    unsaved: list[int] | None = field(default=None)


@dataclass(frozen=True, slots=True)
class Resident:
    """The longest match among the sequences in the engine.

    n_ready: tokens that can be shared now; n_coming: tokens the owner will have computed when it
    has caught up with what it already knows (equal to n_ready for a parked one).
    """

    slot: int
    n_ready: int
    n_coming: int


NOTHING = Resident(slot=NO_SLOT, n_ready=0, n_coming=0)


class PrefixCache:
    """Finds and moves prefixes. Namespaces never see each other."""

    def __init__(self, pool: Pool, host: HostCache[State]) -> None:
        self._pool = pool
        self.host = host
        self.parked: list[Parked] = []

    # -- finding -------------------------------------------------------------------------------

    def resident(self, sequence: Sequence, others: Iterable[Sequence]) -> Resident:
        """The best match in the engine for a sequence that holds no cells yet.

        others: those that run, and those whose prompt is being computed outside the pool.
        """
        best = NOTHING
        namespace, tokens = sequence.job.namespace, sequence.tokens
        limit = len(tokens) - 1  # the last token is always computed: its logits are needed
        for other in others:
            if other.job.namespace == namespace:
                n = min(common_prefix(other.tokens, tokens), limit)
                n_ready = min(n, other.computed) if other.slot != NO_SLOT else 0
                best = _better(best, Resident(other.slot, n_ready, n))
        for parked in self.parked:
            if parked.namespace == namespace:
                n = min(common_prefix(parked.tokens, tokens), limit)
                best = _better(best, Resident(parked.slot, n, n))
        return best

    def n_known(self, sequence: Sequence, resident: Resident) -> int:
        """Tokens of its prompt that need not be computed, wherever they are."""
        n_host = sum(n for _, n in self._matches(sequence))
        n_resident = resident.n_ready if resident.n_ready >= MIN_REUSE else 0
        return max(n_resident, n_host, sequence.n_held)

    def is_coming(self, sequence: Sequence, resident: Resident) -> bool:
        """Whether what it needs of the disk is being read; asked again, it will be there."""
        self.host.take_fetched()  # what came to nothing is counted before a look-up drops it
        n_here = max(resident.n_ready, sequence.n_held)
        needed = [block for block, _ in self._matches(sequence) if block.end > n_here]
        return self.host.fetch(needed, sequence.fetched)

    def _matches(self, sequence: Sequence) -> list[tuple[Block[State], int]]:
        known = sequence.tokens[: len(sequence.tokens) - 1]
        matches = self.host.match(sequence.job.namespace, known)
        if sum(match.n_tokens for match in matches) < MIN_REUSE:
            return []  # every prompt begins with the same token
        return [(match.block, match.n_tokens) for match in matches]

    def is_seeking(self, sequence: Sequence, start: int) -> bool:
        """Look for pieces of one earlier prompt in the new one beyond `start`, and have those read
        that only the disk holds. True: some are coming; asked again, they will be there.
        """
        blocks = [block for _, covering in self._sought(sequence, start) for block in covering]
        return self.host.fetch(blocks, sequence.fetched)

    def find_moves(self, sequence: Sequence, start: int) -> list[Move]:
        """Pieces of one earlier prompt in the new one beyond `start`, when they are most of it."""
        pieces = self._sought(sequence, start)
        sequence.sought = None
        moves = [self._move(segment, covering) for segment, covering in pieces]
        return [move for move in moves if move is not None]

    def _sought(self, sequence: Sequence, start: int) -> Pieces:
        if sequence.sought is None or sequence.sought.start != start:
            sequence.sought = Sought(start, self._seek(sequence, start))
        return sequence.sought.pieces

    def _seek(self, sequence: Sequence, start: int) -> Pieces:
        """The last two tokens stay to be computed, one of them right after the last shift."""
        tokens, namespace = sequence.tokens, sequence.job.namespace
        n_wanted = len(tokens) - start
        if n_wanted < 2 * MIN_SEGMENT:
            return []
        for parked in [p for p in self.parked if p.namespace == namespace]:
            self._save_all(parked)
        finder = SegmentFinder(tokens, start, len(tokens) - 2)
        best: tuple[int, list[Segment], list[Block[State]]] = (n_wanted // 2, [], [])
        for path in self.host.recent_paths(namespace, _PATHS_SEARCHED):
            old = [token for block in path for token in block.tokens]
            found = finder.segments(old, min(common_prefix(old, tokens), start))
            n_found = sum(segment.n for segment in found)
            if n_found > best[0]:
                best = (n_found, found, path)
        return [(segment, _covering(segment, best[2])) for segment in best[1]]

    def _move(self, segment: Segment, covering: list[Block[State]]) -> Move | None:
        spans = [self._span(block, len(block.tokens)) for block in covering]
        whole = tuple(span for span in spans if span is not None)
        return Move(segment, whole) if len(whole) == len(covering) else None

    # -- into the pool ---------------------------------------------------------------------------

    def slot_for(self, resident: Resident) -> int:  # noqa: ARG002 - whole sequences need to know
        """An empty slot to begin in."""
        return self._pool.allocate()

    def attach(self, sequence: Sequence, resident: Resident) -> None:
        """Give an empty slot the longest prefix there is; sets `computed`."""
        if resident.n_ready >= (BLOCK if sequence.spans else MIN_REUSE):
            sequence.computed = self._pool.share(resident.slot, sequence.slot, resident.n_ready)
        else:
            sequence.computed = 0
        if not self._load(sequence, sequence.spans):
            return
        matches = self._matches(sequence)
        if sum(n for _, n in matches) >= sequence.computed + MIN_REUSE:
            self._load(sequence, self._spans(matches, sequence.computed))

    def _load(self, sequence: Sequence, spans: Iterable[Span]) -> bool:
        """Append what the spans hold beyond `computed`. False when there was no room."""
        for span in spans:
            if span.end <= sequence.computed:
                continue
            if span.start < sequence.computed:
                sequence.computed = self._pool.cut(sequence.slot, span.start)
            n = span.end - span.start
            sequence.computed = self._pool.load(sequence.slot, span.start, n, span.state)
            if sequence.computed < span.end:
                return False
        return True

    def _spans(self, matches: list[tuple[Block[State], int]], start: int = 0) -> Iterable[Span]:
        """Those that end beyond `start`: reading the others from disk would be in vain."""
        for block, n in matches:
            if block.start + n <= start:
                continue
            span = self._span(block, n)
            if span is None:
                return
            yield span

    def _span(self, block: Block[State], n_tokens: int) -> Span | None:
        state = self.host.state_of(block)
        return None if state is None else Span(block.start, block.start + n_tokens, state)

    # -- out of the pool -------------------------------------------------------------------------

    def hold(self, sequence: Sequence, resident: Resident) -> None:
        """Bring what is known of its prompt into `spans`, to be computed further in the lane."""
        if sequence.n_held:
            return
        matches = self._matches(sequence)
        sequence.spans = list(self._spans(matches))
        if resident.n_ready >= sequence.n_held + BLOCK:
            whole = sequence.n_held // BLOCK * BLOCK
            sequence.spans = [s for s in sequence.spans if s.end <= whole]
            sequence.spans += self.save(resident.slot, whole, resident.n_ready)
            self.keep(sequence)
        sequence.computed = sequence.n_held

    def save(self, slot: int, start: int, end: int) -> list[Span]:
        """The cells [start, end) of a slot, block by block; fewer when some are gone."""
        spans: list[Span] = []
        for at in range(start, end, BLOCK):
            stop = min(at + BLOCK, end)
            state = self._pool.save(slot, at, stop)
            if state is None:
                break
            spans.append(Span(at, stop, state))
        return spans

    def keep(self, sequence: Sequence) -> None:
        """Let the cache have what a sequence holds outside the pool."""
        tokens = sequence.tokens[: sequence.n_held]
        starts = set(self.host.missing(sequence.job.namespace, tokens))
        for span in sequence.spans:
            if span.start in starts:
                own = tokens[: span.end]
                self.host.add(
                    sequence.job.namespace, own, span.start, span.state, span.state.nbytes
                )

    def computed(self, sequence: Sequence, n_tokens: int) -> None:
        """The last n_tokens of what it has were computed just now: nothing to do before its end."""

    def park(self, sequence: Sequence) -> None:
        """Take over the cells of a sequence that has ended."""
        tokens = sequence.tokens[: sequence.computed]
        self.parked.append(Parked(sequence.slot, tokens, sequence.job.namespace))

    def drop(self, parked: Parked) -> None:
        """Give up a parked sequence's cells, saved or not."""
        self.parked.remove(parked)
        self._pool.free(parked.slot)

    def save_slice(self) -> bool:
        """Bring one block of the oldest parked sequence to host memory. True: there is more."""
        if self.parked:
            self._save_next_block(self.parked[0])
        return bool(self.parked)

    def _save_all(self, parked: Parked) -> None:
        while parked in self.parked:
            self._save_next_block(parked)

    def _save_next_block(self, parked: Parked) -> None:
        if parked.unsaved is None:
            parked.unsaved = list(self.host.missing(parked.namespace, parked.tokens))
        if parked.unsaved and not self._save_block(parked, parked.unsaved.pop(0)):
            parked.unsaved.clear()
        if not parked.unsaved:
            self.drop(parked)

    def _save_block(self, parked: Parked, start: int) -> bool:
        end = min(start + BLOCK, len(parked.tokens))
        state = self._pool.save(parked.slot, start, end)
        if state is None:
            return False
        return self.host.add(parked.namespace, parked.tokens, start, state, state.nbytes)

    def check_integrity(self) -> None:
        """Raises AssertionError when the books do not agree."""
        self.host.check_integrity()


def _covering(segment: Segment, path: list[Block[State]]) -> list[Block[State]]:
    """The blocks of an earlier prompt that hold the segment."""
    end = segment.old + segment.n
    return [block for block in path if block.start < end and block.end > segment.old]


def _better(a: Resident, b: Resident) -> Resident:
    """The one that will have more; of equals the one that has more now."""
    return b if (b.n_coming, b.n_ready) > (a.n_coming, a.n_ready) else a
