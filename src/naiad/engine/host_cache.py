"""Finished sequences in host memory: a radix tree of saved blocks, bounded in bytes.

A block is the saved state of up to BLOCK consecutive cells, keyed by the tokens on the path from
the root, under its namespace. Conversations that share a beginning share its blocks. A block may
be used in part: the state is loaded into a scratch sequence and only the wanted cells are taken.
Pure bookkeeping: the states are opaque here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from naiad.engine.sequence import common_prefix

#: Cells in one block. Saving one takes about a millisecond of a small model, the longest that a
#: request which arrives in that moment has to wait.
BLOCK = 128

S = TypeVar("S")


@dataclass(slots=True, eq=False)
class Block(Generic[S]):
    """Saved cells [start, start + len(tokens)) of some sequence."""

    tokens: list[int]
    start: int
    state: S | None
    n_bytes: int
    parent: Block[S] | None
    children: list[Block[S]] = field(default_factory=list)
    last_used: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True)
class Match(Generic[S]):
    """Use the first n_tokens of a block."""

    block: Block[S]
    n_tokens: int


class HostCache(Generic[S]):
    """The tree. capacity: bytes of saved state it may hold; 0 keeps nothing."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.n_bytes = 0
        self._roots: dict[str, Block[S]] = {}
        self._clock = itertools.count(1)

    def match(self, namespace: str, tokens: list[int]) -> list[Match[S]]:
        """The blocks that cover the longest known prefix of `tokens`, in order."""
        found: list[Match[S]] = []
        block = self._roots.get(namespace)
        now = next(self._clock)
        at = 0
        while block is not None:
            best, n = _best_child(block, tokens[at : at + BLOCK])
            if best is None or n == 0:
                break
            best.last_used = now
            found.append(Match(best, n))
            at += n
            block = best if n == len(best.tokens) else None
        return found

    def missing(self, namespace: str, tokens: list[int], start: int = 0) -> Iterator[int]:
        """Starts of the blocks that would have to be saved to hold `tokens` whole."""
        held = sum(m.n_tokens for m in self.match(namespace, tokens))
        if held < len(tokens):
            yield from range(max(start, held - held % BLOCK), len(tokens), BLOCK)

    def add(self, namespace: str, tokens: list[int], start: int, state: S, n_bytes: int) -> bool:
        """Keep the state of cells [start, start + BLOCK) of a sequence with these tokens.

        False when the blocks before it are not (or no longer) there, or it can never fit.
        """
        parent = self._walk(namespace, tokens[:start])
        if parent is None or n_bytes > self.capacity:
            return False
        own = tokens[start : start + BLOCK]
        self._drop_prefixes_of(parent, own)
        block = Block(own, start, state, n_bytes, parent, last_used=next(self._clock))
        parent.children.append(block)
        self.n_bytes += n_bytes
        return self._evict_down_to_capacity(keep=block)

    def clear(self) -> None:
        self._roots.clear()
        self.n_bytes = 0

    def _walk(self, namespace: str, path: list[int]) -> Block[S] | None:
        block = self._roots.get(namespace)
        if block is None:
            block = self._roots[namespace] = Block([], 0, None, 0, None)
        for at in range(0, len(path), BLOCK):
            want = path[at : at + BLOCK]
            block = next((c for c in block.children if c.tokens == want), None)
            if block is None:
                return None
        return block

    def _drop_prefixes_of(self, parent: Block[S], tokens: list[int]) -> None:
        for child in [c for c in parent.children if tokens[: len(c.tokens)] == c.tokens]:
            if not child.children:
                self._remove(child)

    def _evict_down_to_capacity(self, keep: Block[S]) -> bool:
        """Drop leaves, longest unused first. False: even `keep` had to go, its path is too long."""
        while self.n_bytes > self.capacity:
            leaves = [b for b in self._blocks() if not b.children and b is not keep]
            victim = min(leaves, key=lambda b: b.last_used, default=keep)
            self._remove(victim)
            if victim is keep:
                return False
        return True

    def _remove(self, block: Block[S]) -> None:
        if block.parent is not None:
            block.parent.children.remove(block)
        self.n_bytes -= block.n_bytes

    def _blocks(self) -> Iterator[Block[S]]:
        stack = [child for root in self._roots.values() for child in root.children]
        while stack:
            block = stack.pop()
            yield block
            stack += block.children

    def check_integrity(self) -> None:
        """Raises AssertionError when the books do not agree with the tree."""
        blocks = list(self._blocks())
        assert self.n_bytes == sum(b.n_bytes for b in blocks)
        assert self.n_bytes <= self.capacity
        for block in blocks:
            assert block.parent is not None
            assert block.start == block.parent.end
            assert 0 < len(block.tokens) <= BLOCK
            assert not block.children or len(block.tokens) == BLOCK


def _best_child(block: Block[S], tokens: list[int]) -> tuple[Block[S] | None, int]:
    best: Block[S] | None = None
    n_best = 0
    for child in block.children:
        n = common_prefix(child.tokens, tokens)
        if n > n_best:
            best, n_best = child, n
    return best, n_best
