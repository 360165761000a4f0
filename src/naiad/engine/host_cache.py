"""Finished sequences in host memory and on disk: a radix tree of saved blocks, bounded in bytes.

A block is the saved state of up to BLOCK consecutive cells, keyed by the tokens on the path from
the root, under its namespace. Conversations that share a beginning share its blocks. A block may
be used in part: the state is loaded into a scratch sequence and only the wanted cells are taken.

The tree is one, its states are in two tiers. A block's state is in memory, or a `Store` (the disk)
holds it, or both. Memory lets go of what was not used for longest; such a block stays in the tree
when the store has it, and leaves the tree when not. Both tiers keep their blocks in order of use, a
block always before the blocks that it continues: what is oldest can go without stranding another.
Pure bookkeeping: the states are opaque here.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TypeVar

from naiad.engine.blocks import (
    BLOCK,
    Block,
    Entry,
    Match,
    Store,
    below,
    best_child,
    child_with,
    grow,
    path_of,
    shorter_beside,
)
from naiad.engine.tiers import Tiers

__all__ = ["BLOCK", "Block", "HostCache", "Match"]

S = TypeVar("S")


class HostCache(Tiers[Block[S], S]):
    """The tree. capacity: bytes of saved state it may hold in memory; 0 keeps nothing there."""

    def __init__(
        self,
        capacity: int,
        store: Store[S] | None = None,
        weigh: Callable[[S], int] | None = None,
    ) -> None:
        super().__init__(capacity, store, weigh)
        self._roots: dict[bytes, Block[S]] = {}
        self._in_memory: OrderedDict[Block[S], None] = OrderedDict()  # least recently used first
        self._in_store: OrderedDict[Block[S], None] = OrderedDict()
        self._clock = itertools.count(1)
        if store is not None:
            self._restore(store)

    @property
    def n_blocks_in_store(self) -> int:
        return len(self._in_store)

    # -- lookup ----------------------------------------------------------------------------------

    def match(self, namespace: str, tokens: list[int]) -> list[Match[S]]:
        """The blocks that cover the longest known prefix of `tokens`, in order."""
        found: list[Match[S]] = []
        block = self._roots.get(self._root_key(namespace))
        at = 0
        while block is not None:
            best, n = best_child(block, tokens[at : at + BLOCK])
            if best is None or n == 0:
                break
            if self._is_lost(best):
                self._remove(best)
                continue
            found.append(Match(best, n))
            at += n
            block = best if n == len(best.tokens) else None
        if found:
            self._touch(found[-1].block)
        return found

    def recent_paths(self, namespace: str, most: int) -> list[list[Block[S]]]:
        """The blocks from the root to each leaf, the leaves used last first, at most `most`."""
        root = self._roots.get(self._root_key(namespace))
        leaves = (b for b in below(root) if not b.children) if root else ()
        newest = heapq.nlargest(most, leaves, key=lambda b: b.last_used)
        return [path_of(leaf)[::-1] for leaf in newest]

    def missing(self, namespace: str, tokens: list[int], start: int = 0) -> Iterator[int]:
        """Starts of the blocks that would have to be saved to hold `tokens` whole."""
        held = sum(m.n_tokens for m in self.match(namespace, tokens))
        if held < len(tokens):
            yield from range(max(start, held - held % BLOCK), len(tokens), BLOCK)

    # -- saving ----------------------------------------------------------------------------------

    def add(self, namespace: str, tokens: list[int], start: int, state: S, n_bytes: int) -> bool:
        """Keep the state of cells [start, start + BLOCK) of a sequence with these tokens.

        False when the blocks before it are not (or no longer) there, or it can never fit.
        """
        parent = self._walk(namespace, tokens[:start])
        if parent is None:
            return False
        block = self._child(parent, tokens[start : start + BLOCK], n_bytes)
        if block.state is None:
            self._take(block, state)
        self._touch(block)
        self._offer(block)
        self._drop_prefixes_of(block)
        self.counts.n_saved += 1
        self._evict(block)
        return block in self._in_memory or self._is_stored(block)

    def clear(self) -> None:
        """Forget all of it, here and in the store."""
        for root in self._roots.values():
            for child in list(root.children):
                self._remove(child)
        self._roots.clear()

    def _walk(self, namespace: str, path: list[int]) -> Block[S] | None:
        block = self._root(self._root_key(namespace))
        for at in range(0, len(path), BLOCK):
            want = path[at : at + BLOCK]
            child = child_with(block, want)
            if child is None:
                return None
            block = child
        return block

    def _root(self, key: bytes) -> Block[S]:
        if key not in self._roots:
            self._roots[key] = Block([], 0, None, 0, None, key=key)
        return self._roots[key]

    def _child(self, parent: Block[S], tokens: list[int], n_bytes: int) -> Block[S]:
        """The block with these tokens below `parent`, made without a state when it is new."""
        if (child := child_with(parent, tokens)) is not None:
            return child
        key = self._store.block_key(parent.key, tokens) if self._store else b""
        block = Block[S](tokens, parent.end, None, n_bytes, parent, key=key)
        parent.adopt(block)
        return block

    def _drop_prefixes_of(self, block: Block[S]) -> None:
        """The block holds all that a shorter one beside it does, on disk too if that one does."""
        for other in shorter_beside(block):
            if self._store is not None and self._is_stored(other):
                if not self._is_stored(block):
                    continue
                del self._in_store[other]
                self._store.replace(other.key, block.key)
            self._remove(other)

    # -- use and eviction ------------------------------------------------------------------------

    def _touch(self, block: Block[S]) -> None:
        """The path down to the block was used: it becomes the newest, its end the oldest of it."""
        now = next(self._clock)
        for node in path_of(block):
            node.last_used = now
            if node.state is not None:
                self._in_memory.move_to_end(node)
            if self._store is not None and node in self._in_store:
                self._in_store.move_to_end(node)
                self._store.touch(node.key, node.start)

    def _take(self, block: Block[S], state: S) -> None:
        """Into memory. The caller evicts."""
        super()._take(block, state)
        self._in_memory[block] = None

    def _let_out(self, block: Block[S]) -> None:
        super()._let_out(block)
        self._in_memory.pop(block, None)

    def _taken(self, block: Block[S]) -> None:
        self._evict(block)

    def _evict(self, newest: Block[S]) -> None:
        if newest.n_held > self.capacity and newest in self._in_memory:
            self._let_go(newest)  # or all the others would have to go in vain
        while self.n_bytes > self.capacity:
            self._let_go(next(iter(self._in_memory)))

    def _let_go(self, block: Block[S]) -> None:
        """Out of memory; out of the tree too, unless the store has it."""
        if self._store is None or block not in self._in_store or not self._store.detach(block.key):
            self._remove(block)
        else:
            self._let_out(block)

    def _remove(self, block: Block[S]) -> None:
        """Out of the tree, memory and store, with all that follows it."""
        if block.parent is not None:
            block.parent.disown(block)
        for node in (block, *below(block)):
            self._let_out(node)
            if self._store is not None and node in self._in_store:
                del self._in_store[node]
                self._store.remove(node.key)
            node.children.clear()

    def _give_up(self, block: Block[S]) -> None:
        self._remove(block)

    # -- the store -------------------------------------------------------------------------------

    def _has(self, block: Block[S]) -> bool:
        """One that cannot be read back is here until it is found lost."""
        return block in self._in_store

    def _offer(self, block: Block[S]) -> None:
        """Let the store have a block, and before it those of its path that it does not have."""
        if self._store is None:
            return
        unstored = list(itertools.takewhile(lambda node: not self._is_stored(node), path_of(block)))
        lost = next((node for node in reversed(unstored) if node.state is None), None)
        if lost is not None:
            self._remove(lost)  # and the block with it, whether or not anything can be put now
            return
        for node in reversed(unstored):
            assert node.state is not None
            if not self._make_room_in_store(node):
                return
            assert node.parent is not None
            entry = Entry(node.key, node.parent.key, node.start, node.tokens, node.n_bytes)
            if not self._store.put(entry, node.state):
                return
            self._in_store[node] = None
            self._touch(node)

    def _make_room_in_store(self, block: Block[S]) -> bool:
        """Drop what was not used for longest, but nothing that the block continues."""
        if self._store is None or not self._store.fits(block.n_bytes):
            return False
        while not self._store.has_room(block.n_bytes):
            oldest = next(iter(self._in_store), None)
            if oldest is None or oldest is block.parent:
                return False
            self._drop_from_store(oldest)
        return True

    def _drop_from_store(self, block: Block[S]) -> None:
        if self._store is None or block.state is None:
            self._remove(block)
            return
        del self._in_store[block]
        self._store.remove(block.key)

    def _restore(self, store: Store[S]) -> None:
        """Build the tree of what the store holds; what lacks its beginning is dropped there."""
        for block in grow(store, self._root):
            block.last_used = next(self._clock)
            self._in_store[block] = None
        while self._in_store and not store.has_room(0):  # the bound may be a smaller one now
            self._drop_from_store(next(iter(self._in_store)))

    def _blocks(self) -> Iterator[Block[S]]:
        for root in self._roots.values():
            yield from below(root)

    def check_integrity(self) -> None:
        """Raises AssertionError when the books do not agree with the tree."""
        blocks = list(self._blocks())
        in_memory = {block for block in blocks if block.state is not None}
        assert self._in_memory.keys() == in_memory
        assert self._in_store.keys() <= set(blocks)
        assert self.n_bytes == sum(b.n_held for b in in_memory)
        assert self.n_bytes <= self.capacity
        for block in blocks:
            assert block.parent is not None
            assert child_with(block.parent, block.tokens) is block
            assert block.state is not None or block in self._in_store
            assert block.start == block.parent.end
            assert 0 < len(block.tokens) <= BLOCK
            assert not block.children or len(block.tokens) == BLOCK
