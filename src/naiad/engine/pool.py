"""The pool of cells: slots (sequence ids) handed out and taken back, prefixes shared and moved.

The pool holds what is live and little else: attention runs up to the highest used cell and nothing
defragments, so idle cells make every step of everybody slower (measured: up to nine times).

Traps of the native memory that this file is the one place to know:
* sharing onto positions that are not empty corrupts silently: targets are emptied first;
* a removal reports success even where the cells it should keep are gone: lengths are read back;
* loading a state replaces the whole sequence, so blocks pass through a scratch sequence.
"""

from __future__ import annotations

from naiad.engine.executor import MemoryLike, State


class Pool:
    """Slots 0 .. n_slots - 1 plus one scratch sequence, over one native memory.

    allocate, free, available are the whole life of a slot.
    """

    def __init__(self, memory: MemoryLike, n_slots: int) -> None:
        self._memory = memory
        self._n_slots = n_slots
        self._scratch = n_slots
        self._free = list(range(n_slots - 1, -1, -1))

    @property
    def available(self) -> int:
        return len(self._free)

    def allocate(self) -> int:
        """An empty slot. Raises IndexError when none is available."""
        slot = self._free.pop()
        self._memory.remove(slot)
        return slot

    def free(self, slot: int) -> None:
        self._memory.remove(slot)
        self._free.append(slot)

    def length(self, slot: int) -> int:
        """How many positions the slot holds, counted from 0; 0 when its beginning is gone."""
        if self._memory.pos_min(slot) > 0:
            return 0
        return self._memory.pos_max(slot) + 1

    def share(self, source: int, target: int, n_tokens: int) -> int:
        """Let an empty target own the first n_tokens cells of source too. Returns its length."""
        self._memory.share(source, target, 0, n_tokens)
        return self._verified(target, n_tokens)

    def cut(self, slot: int, n_tokens: int) -> int:
        """Keep at most the first n_tokens. Returns the length that is left."""
        self._memory.remove(slot, n_tokens, -1)
        return self._verified(slot, n_tokens)

    def save(self, slot: int, start: int, end: int) -> State | None:
        """The state of the cells [start, end) of a slot."""
        self._memory.remove(self._scratch)
        self._memory.share(slot, self._scratch, start, end)
        state = self._memory.save(self._scratch)
        self._memory.remove(self._scratch)
        return state

    def load(self, slot: int, start: int, n_tokens: int, state: State) -> int:
        """Append the first n_tokens cells of a saved state that began at `start`.

        Returns the slot's length after it; unchanged when there was no room.
        """
        if self._memory.load(self._scratch, state):
            self._memory.share(self._scratch, slot, start, start + n_tokens)
        self._memory.remove(self._scratch)
        return self._verified(slot, start + n_tokens)

    def move(self, slot: int, start: int, end: int) -> bool:
        """Put the cells [start, end) into the lowest free ones; nobody else may own them.

        False when they could not be put back: the slot then has a gap and must be cut at start.
        """
        state = self.save(slot, start, end)
        if state is None:
            return False
        length = self.length(slot)
        self._memory.remove(slot, start, end)
        is_loaded = self._memory.load(self._scratch, state)
        if is_loaded:
            self._memory.share(self._scratch, slot, start, end)
        self._memory.remove(self._scratch)
        return is_loaded and self.length(slot) == length

    def _verified(self, slot: int, expected: int) -> int:
        length = self.length(slot)
        if length > expected or (length < expected and self._memory.pos_min(slot) > 0):
            self._memory.remove(slot)
            return 0
        return length

    def check_integrity(self, lengths: dict[int, int]) -> None:
        """Raises AssertionError unless slots and lengths are as the engine believes."""
        assert len(set(self._free)) == len(self._free)
        assert not set(self._free) & lengths.keys()
        assert len(self._free) + len(lengths) == self._n_slots
        for slot in (*self._free, self._scratch):
            assert self._memory.pos_max(slot) == -1, f"slot {slot} should be empty"
        for slot, length in lengths.items():
            assert self._memory.pos_max(slot) == length - 1, f"slot {slot}"
            assert length == 0 or self._memory.pos_min(slot) == 0, f"slot {slot}"
