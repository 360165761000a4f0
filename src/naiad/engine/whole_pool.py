"""Slots of models whose past cannot be cut: recurrent ones, and hybrids of those and attention.

A sequence is all or nothing: its state stands for all its tokens and for no fewer. The same words
as `naiad.engine.pool.Pool`. Traps of the native memory that this file knows:

* a removal of some positions is refused, but not always reported, and a hybrid may half obey: a
  slot is kept as it is or emptied;
* after an interrupted decode the state may be that of no position at all (measured: in a third of
  the cases), whatever length is reported: such a slot is emptied;
* the first position a slot reports is its last, since there is only one state.
"""

from __future__ import annotations

from naiad.engine.executor import MemoryLike, State


class WholePool:
    """Slots 0 .. n_slots - 1 over one native memory; see Pool for the meaning of the words."""

    def __init__(self, memory: MemoryLike, n_slots: int) -> None:
        self._memory = memory
        self._n_slots = n_slots
        self._free = list(range(n_slots - 1, -1, -1))

    @property
    def available(self) -> int:
        return len(self._free)

    @property
    def lowest_free(self) -> int:
        """The lowest slot that `allocate` could give; ValueError when there is none."""
        return min(self._free)

    def allocate(self) -> int:
        """An empty slot. Raises IndexError when none is available."""
        slot = self._free.pop()
        self._memory.remove(slot)
        return slot

    def free(self, slot: int) -> None:
        self._memory.remove(slot)
        self._free.append(slot)

    def is_sharing(self, slot: int) -> bool:  # noqa: ARG002 - the same words as Pool
        """Never: what is reused is copied."""
        return False

    def length(self, slot: int) -> int:
        """How many positions the slot's state stands for."""
        return self._memory.pos_max(slot) + 1

    def share(self, source: int, target: int, n_tokens: int) -> int:
        """Copy a source of exactly n_tokens into an empty target. Returns the target's length."""
        state = self.save(source, 0, n_tokens)
        return self.load(target, 0, n_tokens, state) if state is not None else 0

    def cut(self, slot: int, n_tokens: int) -> int:
        """Keep the slot if it has at most n_tokens, else nothing. Returns the length left."""
        length = self.length(slot)
        if length <= n_tokens:
            return length
        self._memory.remove(slot)
        return 0

    def interrupted(self, slot: int, most: int) -> int:  # noqa: ARG002 - the same words as Pool
        """Empty a slot whose decode did not go through. Returns the length left, 0."""
        self._memory.remove(slot)
        return 0

    def settle(self) -> None:
        """A decode was done; nothing waits for one here."""

    def is_settled(self, slot: int) -> bool:  # noqa: ARG002 - the same words as Pool
        """Always: nothing is moved to other positions."""
        return True

    def load_shifted(self, slot: int, start: int, end: int, shift: int, state: State) -> int:  # noqa: ARG002
        """Nothing is moved here. Returns the slot's length, which is unchanged."""
        return self.length(slot)

    def save(self, slot: int, start: int, end: int) -> State | None:
        """The state of a whole slot; None for any other range."""
        is_whole = start == 0 and end == self.length(slot) and end > 0
        return self._memory.save(slot) if is_whole else None

    def load(self, slot: int, start: int, n_tokens: int, state: State) -> int:
        """Fill an empty slot with a state of exactly n_tokens. Returns the slot's length after it;
        0 when there was no room or it is not what it was said to be.
        """
        if start != 0 or self.length(slot):
            return self.length(slot)
        is_loaded = self._memory.load(slot, state)
        if is_loaded and self.length(slot) == n_tokens:
            return n_tokens
        self._memory.remove(slot)
        return 0

    def move(self, slot: int, start: int, end: int) -> bool:  # noqa: ARG002 - see Pool
        """Not a block at a time: it stays where it is."""
        return True

    def check_integrity(self, lengths: dict[int, int]) -> None:
        """Raises AssertionError unless slots and lengths are as the engine believes."""
        assert not set(self._free) & lengths.keys()
        assert len(self._free) + len(lengths) == self._n_slots
        for slot in self._free:
            assert self._memory.pos_max(slot) == -1, f"slot {slot} should be empty"
        for slot, length in lengths.items():
            assert self.length(slot) == length, f"slot {slot}"
