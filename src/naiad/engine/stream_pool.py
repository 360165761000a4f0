"""The pool when every sequence has a stream of cells of its own: many unrelated requests.

The same words as `naiad.engine.pool.Pool`, with other costs. Attention of a sequence sees only its
own stream, so idle sequences cost nothing and nobody is ever stranded; but nothing is shared, only
copied. Traps of the native memory that this file knows:

* a copy between streams must be whole (a partial one ends the process), and is carried out at the
  next decode with whatever the source has become by then: copies go by saved states instead;
* loading a state replaces the whole sequence: only states that begin at 0 can be loaded;
* one step computes together only sequences of consecutive ids, given in rising order, and takes
  the others one after another: slots are handed out next to those in use, lowest first, and runs
  of a step belong sorted by slot;
* the scratch sequence of `Pool` would be a stream, with as many cells as any: there is none.
"""

from __future__ import annotations

from naiad.engine.executor import MemoryLike, State


class StreamPool:
    """Slots 0 .. n_slots - 1 over one native memory; see Pool for the meaning of the words."""

    def __init__(self, memory: MemoryLike, n_slots: int, window: int = 0) -> None:
        self._memory = memory
        self._n_slots = n_slots
        self._window = window
        self._free = set(range(n_slots))

    @property
    def available(self) -> int:
        return len(self._free)

    @property
    def lowest_free(self) -> int:
        """The lowest slot that `allocate` could give; ValueError when there is none."""
        return min(self._free)

    def allocate(self) -> int:
        """The lowest empty slot, so that those in use stay together. Raises IndexError for none."""
        if not self._free:
            raise IndexError("no slot is free")
        slot = min(self._free)
        self._free.discard(slot)
        self._memory.remove(slot)
        return slot

    def free(self, slot: int) -> None:
        self._memory.remove(slot)
        self._free.add(slot)

    def is_sharing(self, slot: int) -> bool:  # noqa: ARG002 - the same words as Pool
        """Never: cells belong to one stream."""
        return False

    def length(self, slot: int) -> int:
        """How many positions the slot holds, counted from 0; 0 when something needed is gone."""
        length = self._memory.pos_max(slot) + 1
        oldest_seen = max(0, length - self._window + 1) if self._window else 0
        return length if self._memory.pos_min(slot) <= oldest_seen else 0

    def share(self, source: int, target: int, n_tokens: int) -> int:
        """Copy the first n_tokens of source into an empty target. Returns the target's length.

        The whole source is copied, and then cut: its length is what this costs.
        """
        state = self._memory.save(source) if self.length(source) >= n_tokens else None
        if state is not None:
            self._memory.load(target, state)
        return self.cut(target, n_tokens)

    def cut(self, slot: int, n_tokens: int) -> int:
        """Keep at most the first n_tokens. Returns the length that is left."""
        self._memory.remove(slot, n_tokens, -1)
        length = self.length(slot)
        if length == 0:
            self._memory.remove(slot)  # what may be left is of no use
        return length

    def interrupted(self, slot: int, most: int) -> int:
        """Keep at most `most` of what an interrupted decode has left. Returns the length left."""
        return self.cut(slot, min(self.length(slot), most))

    def settle(self) -> None:
        """A decode was done; nothing waits for one here."""

    def is_settled(self, slot: int) -> bool:  # noqa: ARG002 - the same words as Pool
        """Always: nothing is moved to other positions."""
        return True

    def load_shifted(self, slot: int, start: int, end: int, shift: int, state: State) -> int:  # noqa: ARG002
        """Nothing is moved here. Returns the slot's length, which is unchanged."""
        return self.length(slot)

    def save(self, slot: int, start: int, end: int) -> State | None:
        """The state of a whole slot; None for any other range: there is no scratch to cut it in."""
        is_whole = start == 0 and end == self.length(slot) and end > 0
        return self._memory.save(slot) if is_whole else None

    def load(self, slot: int, start: int, n_tokens: int, state: State) -> int:
        """Fill an empty slot with the first n_tokens of a saved state that began at 0.

        Returns the slot's length after it; unchanged for a state that began elsewhere.
        """
        if start != 0 or self.length(slot):
            return self.length(slot)
        self._memory.load(slot, state)
        return self.cut(slot, n_tokens)

    def move(self, slot: int, start: int, end: int) -> bool:  # noqa: ARG002
        """Nothing to do: no stream's cells are in the way of another's."""
        return True

    def check_integrity(self, lengths: dict[int, int]) -> None:
        """Raises AssertionError unless slots and lengths are as the engine believes."""
        assert not self._free & lengths.keys()
        assert len(self._free) + len(lengths) == self._n_slots
        for slot in self._free:
            assert self._memory.pos_max(slot) == -1, f"slot {slot} should be empty"
        for slot, length in lengths.items():
            assert self.length(slot) == length, f"slot {slot}"
