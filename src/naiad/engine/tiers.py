"""Saved states in two tiers: memory, bounded in bytes, over a store (the disk) that may hold more.

What `naiad.engine.host_cache` and `naiad.engine.checkpoints` have in common, whatever their states
are of and however they are looked up. Pure bookkeeping: the states are opaque here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

from naiad.engine.blocks import Counts, Store
from naiad.engine.fetching import Fetcher
from naiad.types import CacheCounts

S = TypeVar("S")


class Saved(Protocol[S]):
    """Something with a state.

    state: None while only the store holds it. n_bytes: of the state; n_held: of memory that it
    takes while it is there. key: its name in the store. is_fresh: the state was fetched from disk
    and is counted so; its first use is no use of memory.
    """

    state: S | None
    n_bytes: int
    n_held: int
    key: bytes
    is_fresh: bool


N = TypeVar("N", bound=Saved[Any])


class Tiers(ABC, Generic[N, S]):
    """capacity: bytes of memory that states may take at most; n_bytes: those that they take now.

    weigh: the bytes of memory that a state takes, where they are not those it is said to have.
    """

    def __init__(
        self, capacity: int, store: Store[S] | None, weigh: Callable[[S], int] | None
    ) -> None:
        self.capacity = capacity
        self.n_bytes = 0
        self.counts = Counts()
        self._store = store
        self._weigh = weigh
        self._fetcher = Fetcher[N, S](self._read)

    def told(self) -> CacheCounts:
        return self.counts.told(self.n_bytes, self._store.n_bytes if self._store else 0)

    # -- what differs ----------------------------------------------------------------------------

    @abstractmethod
    def _has(self, node: N) -> bool:
        """Whether the store is believed to hold it, and it was not given up."""

    @abstractmethod
    def _give_up(self, node: N) -> None:
        """Forget it, in memory and in the store."""

    @abstractmethod
    def _taken(self, node: N) -> None:
        """Its state came into memory: into its books, and its bound."""

    # -- states ----------------------------------------------------------------------------------

    def state_of(self, node: N) -> S | None:
        """Its state, from memory or else from the store; None when it is lost, and given up."""
        self.take_fetched()
        state: S | None = node.state
        if state is not None:
            self.counts.n_from_memory += not node.is_fresh
            node.is_fresh = False
            return state
        if self._store is None or not self._has(node):
            return None
        state = self._store.get(node.key)
        self._came(node, state)
        return state

    def fetch(self, nodes: Iterable[N], fetched: set[object]) -> bool:
        """Let those that only the store holds be read by another thread. True: some are coming.

        fetched: what this caller has asked for; what came and had to go again is not asked for
        twice, but read by `state_of`.
        """
        self.take_fetched()
        cold = [n for n in nodes if n.state is None and n not in fetched and self._is_stored(n)]
        fetched.update(cold)
        self._fetcher.ask(cold)
        return self._fetcher.is_coming(fetched)

    def forget_fetch(self, fetched: set[object]) -> None:
        """Nobody waits for these any more: what was not begun is not read."""
        self._fetcher.drop(fetched)

    def take_fetched(self) -> None:
        """Into memory, and its bound, with what was read since the last time."""
        for node, state in self._fetcher.take():
            if node.state is None and self._has(node):  # or it came another way, or was given up
                self._came(node, state)
                node.is_fresh = True

    def _came(self, node: N, state: S | None) -> None:
        """This was read from the store; None: it was not there."""
        if state is None:
            self.counts.n_lost += 1
            self._give_up(node)
            return
        self.counts.n_from_disk += 1
        self.counts.n_bytes_from_disk += node.n_bytes
        self._take(node, state)
        self._taken(node)

    def _take(self, node: N, state: S) -> None:
        node.state, node.is_fresh = state, False
        node.n_held = self._weigh(state) if self._weigh else node.n_bytes
        self.n_bytes += node.n_held

    def _let_out(self, node: N) -> None:
        """Out of memory, if it is there: who still holds the node must hold no bytes uncounted."""
        if node.state is not None:
            self.n_bytes -= node.n_held
            node.state = None

    def _read(self, node: N) -> S | None:
        """Any thread."""
        return self._store.get(node.key) if self._store else None

    # -- the store -------------------------------------------------------------------------------

    def _is_stored(self, node: N) -> bool:
        """Whether it can be read back."""
        return self._store is not None and self._has(node) and self._store.holds(node.key)

    def _is_lost(self, node: N) -> bool:
        """Memory let go of it, and then the store failed to write it."""
        return node.state is None and not self._is_stored(node)

    def _root_key(self, namespace: str) -> bytes:
        if self._store is None:
            return namespace.encode("utf-8", "surrogatepass")
        return self._store.root_key(namespace)
