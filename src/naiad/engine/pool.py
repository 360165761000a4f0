"""The pool of cells: slots (sequence ids) handed out and taken back, prefixes shared and moved.

The pool holds what is live and little else: attention runs up to the highest used cell and nothing
defragments, so idle cells make every step of everybody slower (measured: up to nine times).

Traps of the native memory that this file is the one place to know:
* sharing onto positions that are not empty corrupts silently: targets are emptied first;
* a removal reports success even where the cells it should keep are gone: lengths are read back;
* sliding layers have cells of their own, and those that their sequence can no longer look at are
  given to others: a prefix may be gone there while the full layers still hold it, and lengths
  speak of the sliding layers only. So what falls short is emptied to the length it has, and a
  state is saved only when it is whole;
* loading a state replaces the whole sequence, so blocks pass through a scratch sequence;
* the next decode turns the keys of cells that were moved to other positions. Before it they are
  not what their positions say, and an interrupted one leaves them turned in some layers only.
"""

from __future__ import annotations

from naiad.engine.executor import MemoryLike, State


class Pool:
    """Slots 0 .. n_slots - 1 plus one scratch sequence, over one native memory.

    allocate, free, available are the whole life of a slot. window: positions that the model's
    sliding layers look back over, 0 when it has none.
    """

    def __init__(self, memory: MemoryLike, n_slots: int, window: int = 0) -> None:
        self._memory = memory
        self._n_slots = n_slots
        self._scratch = n_slots
        self._window = window
        self._free = list(range(n_slots - 1, -1, -1))
        self._owners: dict[int, set[int]] = {}  # slot -> all slots that may own cells with it
        self._unturned: dict[int, int] = {}  # slot -> where its cells begin that wait to be turned

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
        self._unturned.pop(slot, None)
        self._free.append(slot)
        self._owners.pop(slot, set()).discard(slot)

    def is_sharing(self, slot: int) -> bool:
        """True while another slot owns, or may own, some of its cells."""
        return len(self._owners.get(slot, ())) > 1

    def length(self, slot: int) -> int:
        """How many positions the slot holds, counted from 0.

        0 when something is gone that the next position would look at.
        """
        length = self._memory.pos_max(slot) + 1
        oldest_seen = max(0, length - self._window + 1) if self._window else 0
        return length if self._memory.pos_min(slot) <= oldest_seen else 0

    def share(self, source: int, target: int, n_tokens: int) -> int:
        """Let an empty target own the first n_tokens cells of source too. Returns its length."""
        self._memory.share(source, target, 0, n_tokens)
        length = self._verified(target, n_tokens)
        if length:
            owners = self._owners.get(source, {source}) | self._owners.get(target, {target})
            self._owners |= dict.fromkeys(owners, owners)
        if self._unturned.get(source, n_tokens) < n_tokens:
            self._unturned[target] = self._unturned[source]
        return length

    def settle(self) -> None:
        """A decode was done: what had been moved to other positions is turned now."""
        self._unturned.clear()

    def is_settled(self, slot: int) -> bool:
        """Whether its cells are what their positions say, and no decode can spoil them."""
        return slot not in self._unturned

    def cut(self, slot: int, n_tokens: int) -> int:
        """Keep at most the first n_tokens. Returns the length that is left."""
        self._memory.remove(slot, n_tokens, -1)
        if self._unturned.get(slot, n_tokens - 1) >= n_tokens:
            del self._unturned[slot]
        return self._verified(slot, n_tokens)

    def interrupted(self, slot: int, most: int) -> int:
        """Keep at most `most` of what an interrupted decode has left. Returns the length left."""
        return self.cut(slot, min(self.length(slot), most, self._unturned.get(slot, most)))

    def save(self, slot: int, start: int, end: int) -> State | None:
        """The state of the cells [start, end) of a slot; None when some of them are gone, or wait
        to be turned.
        """
        return self._copy(slot, start, end, is_partial_good=False)

    def _copy(self, slot: int, start: int, end: int, *, is_partial_good: bool) -> State | None:
        if self._unturned.get(slot, end) < end:
            return None
        memory, scratch = self._memory, self._scratch
        memory.remove(scratch)
        memory.share(slot, scratch, start, end)
        is_whole = (memory.pos_min(scratch), memory.pos_max(scratch)) == (start, end - 1)
        state = memory.save(scratch) if is_whole or is_partial_good else None
        memory.remove(scratch)
        return state

    def load_shifted(self, slot: int, start: int, end: int, shift: int, state: State) -> int:
        """Append the cells [start, end) of a saved state, moved by `shift` positions.

        The next decode turns them: call `settle` after it. Nobody else owns these cells yet, so
        nobody else's move. Returns the slot's length; unchanged without room.
        """
        memory, scratch = self._memory, self._scratch
        if memory.load(scratch, state):
            memory.remove(scratch, 0, start)
            memory.remove(scratch, end, -1)
            memory.shift(scratch, start, end, shift)
            memory.share(scratch, slot, start + shift, end + shift)
            self._unturned.setdefault(slot, start + shift)
        memory.remove(scratch)
        return self._verified(slot, end + shift)

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
        state = self._copy(slot, start, end, is_partial_good=True)  # what is gone, nobody looks at
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
        if length > expected:
            length = 0
        if length < expected:
            self._memory.remove(slot, length, -1)
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
            assert self.length(slot) == length, f"slot {slot}"
        for slot, owners in self._owners.items():
            assert slot in owners and owners <= lengths.keys(), f"slot {slot}"
