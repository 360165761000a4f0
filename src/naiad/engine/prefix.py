"""Where a new request's beginning can come from: live sequences, parked ones, host memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from naiad.engine.executor import State
from naiad.engine.host_cache import BLOCK, HostCache
from naiad.engine.pool import Pool
from naiad.engine.sequence import Sequence, common_prefix

#: Fewer tokens than this are cheaper to compute than to look after.
MIN_REUSE = 8


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
    """The longest match among the sequences in the pool.

    n_ready: tokens that can be shared now; n_coming: tokens the owner will have computed when it
    has caught up with what it already knows (equal to n_ready for a parked one).
    """

    slot: int
    n_ready: int
    n_coming: int


_NOTHING = Resident(slot=-1, n_ready=0, n_coming=0)


class PrefixCache:
    """Finds and moves prefixes. Namespaces never see each other."""

    def __init__(self, pool: Pool, host: HostCache[State]) -> None:
        self._pool = pool
        self.host = host
        self.parked: list[Parked] = []

    def resident(self, sequence: Sequence, running: Iterable[Sequence]) -> Resident:
        """The best match in the pool for a sequence that holds no cells yet."""
        best = _NOTHING
        namespace, tokens = sequence.job.namespace, sequence.tokens
        limit = len(tokens) - 1  # the last token is always computed: its logits are needed
        for other in running:
            if other.job.namespace == namespace:
                n = min(common_prefix(other.tokens, tokens), limit)
                best = _better(best, Resident(other.slot, min(n, other.computed), n))
        for parked in self.parked:
            if parked.namespace == namespace:
                n = min(common_prefix(parked.tokens, tokens), limit)
                best = _better(best, Resident(parked.slot, n, n))
        return best

    def attach(self, sequence: Sequence, resident: Resident) -> None:
        """Give an empty slot the longest prefix there is; sets `computed` and `n_cached`."""
        if resident.n_ready >= MIN_REUSE:
            sequence.computed = self._pool.share(resident.slot, sequence.slot, resident.n_ready)
        self._load_from_host(sequence)
        if sequence.n_sent == 0:
            sequence.n_cached = sequence.computed

    def _load_from_host(self, sequence: Sequence) -> None:
        known = sequence.tokens[: len(sequence.tokens) - 1]
        matches = self.host.match(sequence.job.namespace, known)
        if sum(m.n_tokens for m in matches) < sequence.computed + MIN_REUSE:
            return
        for match in matches:
            end = match.block.start + match.n_tokens
            if end <= sequence.computed or match.block.state is None:
                continue
            if match.block.start != sequence.computed:
                sequence.computed = self._pool.cut(sequence.slot, match.block.start)
            length = self._pool.load(
                sequence.slot, match.block.start, match.n_tokens, match.block.state
            )
            sequence.computed = length
            if length < end:
                return

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
        if not self.parked:
            return False
        parked = self.parked[0]
        if parked.unsaved is None:
            parked.unsaved = list(self.host.missing(parked.namespace, parked.tokens))
        if parked.unsaved and not self._save_block(parked, parked.unsaved.pop(0)):
            parked.unsaved.clear()
        if not parked.unsaved:
            self.drop(parked)
        return bool(self.parked)

    def _save_block(self, parked: Parked, start: int) -> bool:
        end = min(start + BLOCK, len(parked.tokens))
        state = self._pool.save(parked.slot, start, end)
        if state is None:
            return False
        return self.host.add(parked.namespace, parked.tokens, start, state, state.nbytes)


def _better(a: Resident, b: Resident) -> Resident:
    """The one that will have more; of equals the one that has more now."""
    return b if (b.n_coming, b.n_ready) > (a.n_coming, a.n_ready) else a
