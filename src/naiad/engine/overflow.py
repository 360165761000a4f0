"""Going on where the context ends: the oldest half is given up and the rest moves down.

For callers that ask for it, as KoboldAI clients expect; others end with `length`. The beginning,
where front ends keep the character and the rules, stays, up to a quarter of the context. Moving is
not exact: what is kept was computed with what is given up in sight.
"""

from __future__ import annotations

from naiad.engine.cache import Cache, Slots
from naiad.engine.host_cache import BLOCK
from naiad.engine.sequence import Sequence, Span

#: Of the context: what is kept of the beginning, and what is given up of the rest.
_KEPT, _GIVEN_UP = 1 / 4, 1 / 2


class Overflow:
    """Makes room in sequences that have reached the end of their context."""

    def __init__(self, pool: Slots, prefix: Cache, n_ctx: int) -> None:
        self._pool = pool
        self._prefix = prefix
        self._n_ctx = n_ctx

    def is_full(self, sequence: Sequence) -> bool:
        """Whether nothing more fits, and the caller would rather lose the oldest."""
        return sequence.job.shift_at_limit and len(sequence.tokens) >= self._n_ctx

    def make_room(self, sequence: Sequence) -> None:
        """Give up the oldest tokens after the beginning. The next decode turns what has moved.

        All cells are taken out and put back: others may own them too, and a shift would move
        theirs. What could not be put back is computed again.
        """
        keep, end = self._bounds(sequence)
        spans = self._prefix.save(sequence.slot, 0, sequence.computed)
        self._pool.free(sequence.slot)
        sequence.slot = self._pool.allocate()
        sequence.tokens[keep:end] = []
        sequence.n_dropped += end - keep
        sequence.computed = sequence.top = sequence.n_moved = 0
        for span in spans:
            self._put_back(sequence, span, span.start, min(span.end, keep), 0)
            self._put_back(sequence, span, max(span.start, end), span.end, keep - end)

    def _put_back(self, sequence: Sequence, span: Span, start: int, end: int, shift: int) -> None:
        if start >= end or sequence.computed != start + shift:
            return
        if shift:
            length = self._pool.load_shifted(sequence.slot, start, end, shift, span.state)
        else:
            length = self._pool.load(sequence.slot, start, end - start, span.state)
        sequence.computed = length

    def _bounds(self, sequence: Sequence) -> tuple[int, int]:
        """The tokens [start, end) to give up; start is a block's."""
        keep = min(sequence.n_prompt, int(self._n_ctx * _KEPT)) // BLOCK * BLOCK
        n = max(1, int((len(sequence.tokens) - keep) * _GIVEN_UP))
        return keep, keep + n
