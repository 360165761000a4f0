"""States of whole sequences in host memory and on disk, for what cannot be kept in blocks.

A checkpoint is the state of a sequence after exactly its tokens. Lookups are by namespace and exact
tokens: nothing else says what a state stands for. Two tiers, as in `naiad.engine.host_cache`:
memory is bounded in bytes and lets go of what was not used for longest; a `Store` (the disk) may
hold it still. Pure bookkeeping: the states are opaque here.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from naiad.engine.blocks import Entry, Store
from naiad.engine.sequence import common_prefix
from naiad.engine.tiers import Tiers

S = TypeVar("S")


@dataclass(slots=True, eq=False)
class Checkpoint(Generic[S]):
    """state, n_bytes, n_held, key, is_fresh: see `naiad.engine.tiers.Saved`."""

    tokens: list[int]
    ids: bytes  # the tokens again, to be compared at once
    state: S | None
    n_bytes: int
    root: bytes
    key: bytes
    n_held: int = 0
    is_fresh: bool = False

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)


class Checkpoints(Tiers[Checkpoint[S], S]):
    """The checkpoints of all namespaces."""

    def __init__(
        self,
        capacity: int,
        store: Store[S] | None = None,
        weigh: Callable[[S], int] | None = None,
    ) -> None:
        super().__init__(capacity, store, weigh)
        self._known: dict[bytes, dict[bytes, Checkpoint[S]]] = {}  # root -> ids -> checkpoint
        self._used: OrderedDict[Checkpoint[S], None] = OrderedDict()  # least recently used first
        if store is not None:
            self._restore(store)

    def __len__(self) -> int:
        return len(self._used)

    # -- lookup ----------------------------------------------------------------------------------

    def longest(self, namespace: str, tokens: list[int]) -> Checkpoint[S] | None:
        """The longest one whose tokens `tokens` begins with; all of `tokens` counts too."""
        ids = _ids(tokens)
        held = self._held(namespace)
        fitting = [c for c in held if ids.startswith(c.ids)]
        return max(fitting, key=lambda c: c.n_tokens, default=None)

    def closest(self, namespace: str, tokens: list[int]) -> tuple[Checkpoint[S] | None, int]:
        """The one with the longest beginning in common with `tokens`, and how many tokens it is.

        For states that can be cut after they are loaded. Of equals, the shortest to load.
        """
        best: tuple[Checkpoint[S] | None, int] = (None, 0)
        for each in self._held(namespace):
            n = common_prefix(each.tokens, tokens)
            is_shorter = best[0] is not None and each.n_tokens < best[0].n_tokens
            if n > best[1] or (n and n == best[1] and is_shorter):
                best = (each, n)
        return best

    def holds(self, namespace: str, tokens: list[int]) -> bool:
        """Whether there is one of exactly these tokens."""
        known = self._known.get(self._root_key(namespace), {}).get(_ids(tokens))
        return known is not None and not self._is_lost(known)

    def state_of(self, checkpoint: Checkpoint[S]) -> S | None:
        """See `Tiers.state_of`; it was of use just now."""
        state = super().state_of(checkpoint)
        if checkpoint in self._used:
            self._touch(checkpoint)
        return state

    def _held(self, namespace: str) -> list[Checkpoint[S]]:
        held = list(self._known.get(self._root_key(namespace), {}).values())
        lost = [c for c in held if self._is_lost(c)]
        for each in lost:
            self._forget(each)
        return [c for c in held if c not in lost] if lost else held

    def _has(self, checkpoint: Checkpoint[S]) -> bool:
        return checkpoint in self._used

    # -- saving ----------------------------------------------------------------------------------

    def add(
        self, namespace: str, tokens: list[int], state: S, n_bytes: int, *, lasts: bool
    ) -> bool:
        """Keep the state after these tokens; with `lasts`, on disk too. False: it cannot be."""
        root, ids = self._root_key(namespace), _ids(tokens)
        if not tokens or (n_bytes > self.capacity and not (lasts and self._store)):
            return False
        checkpoint = self._known.get(root, {}).get(ids)
        if checkpoint is None:
            key = self._store.block_key(root, tokens) if self._store else b""
            checkpoint = Checkpoint[S](list(tokens), ids, None, n_bytes, root, key)
            self._known.setdefault(root, {})[ids] = checkpoint
            self._used[checkpoint] = None
        if checkpoint.state is None:
            self._take(checkpoint, state)
        if lasts:
            self._offer(checkpoint, state)
        self.counts.n_saved += 1
        self._touch(checkpoint)
        self._evict(checkpoint)
        return checkpoint in self._used

    def clear(self) -> None:
        """Forget all of it, here and in the store."""
        for checkpoint in list(self._used):
            self._forget(checkpoint)

    def _taken(self, checkpoint: Checkpoint[S]) -> None:
        self._touch(checkpoint)
        self._evict(checkpoint)

    def _touch(self, checkpoint: Checkpoint[S]) -> None:
        self._used.move_to_end(checkpoint)
        if self._store is not None and self._is_stored(checkpoint):
            self._store.touch(checkpoint.key, 0)

    def _evict(self, newest: Checkpoint[S]) -> None:
        """Memory lets go of the least recently used until the bound is kept."""
        if newest.state is not None and newest.n_held > self.capacity:
            self._let_go(newest)  # or all the others would have to go in vain
        if self.n_bytes <= self.capacity:
            return
        for checkpoint in list(self._used):
            if self.n_bytes <= self.capacity:
                return
            if checkpoint.state is not None:
                self._let_go(checkpoint)

    def _let_go(self, checkpoint: Checkpoint[S]) -> None:
        store = self._store
        if store is None or not self._is_stored(checkpoint) or not store.detach(checkpoint.key):
            self._forget(checkpoint)
        else:
            self._let_out(checkpoint)

    def _give_up(self, checkpoint: Checkpoint[S]) -> None:
        self._forget(checkpoint)

    def _forget(self, checkpoint: Checkpoint[S]) -> None:
        """Out of memory and store."""
        is_stored = self._is_stored(checkpoint)
        del self._used[checkpoint]
        siblings = self._known[checkpoint.root]
        del siblings[checkpoint.ids]
        if not siblings:
            del self._known[checkpoint.root]
        self._let_out(checkpoint)
        if self._store is not None and is_stored:
            self._store.remove(checkpoint.key)

    # -- the store -------------------------------------------------------------------------------

    def _offer(self, checkpoint: Checkpoint[S], state: S) -> None:
        store = self._store
        n_bytes = checkpoint.n_bytes + len(checkpoint.ids)
        if store is None or self._is_stored(checkpoint) or not store.fits(n_bytes):
            return
        self._make_room_in(store, n_bytes)
        key, root, tokens = checkpoint.key, checkpoint.root, checkpoint.tokens
        store.put(Entry(key, root, 0, tokens, checkpoint.n_bytes), state)

    def _make_room_in(self, store: Store[S], n_bytes: int) -> None:
        for oldest in list(self._used):
            if store.has_room(n_bytes):
                return
            if not self._is_stored(oldest):
                continue
            if oldest.state is None:
                self._forget(oldest)
            else:
                store.remove(oldest.key)

    def _restore(self, store: Store[S]) -> None:
        for entry in sorted(store.entries(), key=lambda entry: entry.used_ns):
            if entry.start:
                store.remove(entry.key)  # a block of something, and no whole sequence
                continue
            ids = _ids(entry.tokens)
            checkpoint = Checkpoint[S](
                entry.tokens, ids, None, entry.n_bytes, entry.parent, entry.key
            )
            self._known.setdefault(entry.parent, {})[ids] = checkpoint
            self._used[checkpoint] = None
        self._make_room_in(store, 0)  # the bound may be a smaller one now

    def check_integrity(self) -> None:
        """Raises AssertionError when the books do not agree."""
        known = {c for siblings in self._known.values() for c in siblings.values()}
        assert known == self._used.keys()
        assert self.n_bytes == sum(c.n_held for c in known if c.state is not None)
        assert self.n_bytes <= self.capacity
        assert all(c.ids == _ids(c.tokens) for c in known)


def _ids(tokens: list[int]) -> bytes:
    return array("i", tokens).tobytes()
