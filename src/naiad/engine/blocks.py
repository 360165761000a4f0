"""Blocks of saved cells, the tree they make, and what a store of blocks has to offer."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from naiad.engine.sequence import common_prefix
from naiad.types import CacheCounts

#: Cells in one block. Saving one takes about a millisecond of a small model, the longest that a
#: request which arrives in that moment has to wait.
BLOCK = 128

S = TypeVar("S")


@dataclass(slots=True, eq=False)
class Block(Generic[S]):
    """Saved cells [start, start + len(tokens)) of some sequence.

    state, n_bytes, n_held, key, is_fresh: see `naiad.engine.tiers.Saved`.
    """

    tokens: list[int]
    start: int
    state: S | None
    n_bytes: int
    parent: Block[S] | None
    children: list[Block[S]] = field(default_factory=list)  # in order of their tokens
    last_used: int = 0
    key: bytes = b""
    n_held: int = 0
    is_fresh: bool = False

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    def adopt(self, child: Block[S]) -> None:
        """Take a child in at its place; its tokens must be no other child's."""
        insort(self.children, child, key=_tokens)

    def disown(self, child: Block[S]) -> None:
        """Let go of a child. Raises ValueError when it is none."""
        at = bisect_left(self.children, child.tokens, key=_tokens)
        del self.children[self.children.index(child, at, at + 1)]


@dataclass(slots=True)
class Counts:
    """What became of lookups since the start, in states; bytes where it says so."""

    n_from_memory: int = 0
    n_from_disk: int = 0
    n_bytes_from_disk: int = 0
    n_lost: int = 0  # the store was believed to have it, and had not
    n_saved: int = 0

    def told(self, n_bytes_in_memory: int, n_bytes_on_disk: int) -> CacheCounts:
        return CacheCounts(
            n_from_memory=self.n_from_memory,
            n_from_disk=self.n_from_disk,
            n_bytes_from_disk=self.n_bytes_from_disk,
            n_lost=self.n_lost,
            n_saved=self.n_saved,
            n_bytes_in_memory=n_bytes_in_memory,
            n_bytes_on_disk=n_bytes_on_disk,
        )


@dataclass(frozen=True, slots=True)
class Match(Generic[S]):
    """Use the first n_tokens of a block."""

    block: Block[S]
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A block as a store knows it: the cells [start, start + len(tokens)) after the block `parent`.

    n_bytes: of the state. used_ns: when it was last of use, nanoseconds since 1970.
    """

    key: bytes
    parent: bytes
    start: int
    tokens: list[int]
    n_bytes: int
    used_ns: int = 0


class Store(Protocol[S]):
    """Where states outlive memory. Nothing here raises, and only `get` waits for anything."""

    n_bytes: int  # that it holds now

    def root_key(self, namespace: str) -> bytes:
        """The `parent` of a namespace's first blocks."""
        ...

    def block_key(self, parent: bytes, tokens: list[int]) -> bytes: ...

    def entries(self) -> list[Entry]:
        """What it holds at the start."""
        ...

    def has_room(self, n_bytes: int) -> bool:
        """Whether a state of so many bytes can be put without going over the bound."""
        ...

    def fits(self, n_bytes: int) -> bool:
        """Whether it could be put if nothing else were there."""
        ...

    def put(self, entry: Entry, state: S) -> bool:
        """Begin to keep a state. False: not now."""
        ...

    def holds(self, key: bytes) -> bool:
        """Whether it is kept or about to be. What failed to be kept is not held any more."""
        ...

    def detach(self, key: bytes) -> bool:
        """Memory lets go of the state. False: it is not held, and never will be."""
        ...

    def get(self, key: bytes) -> S | None:
        """The state, or None when it is gone or damaged; then it is not held any more."""
        ...

    def remove(self, key: bytes) -> None: ...

    def replace(self, old: bytes, new: bytes) -> None:
        """`old` is not wanted beside `new`, but must not be gone before `new` is kept for good."""
        ...

    def touch(self, key: bytes, start: int) -> None:
        """It was of use just now."""
        ...


def path_of(leaf: Block[S]) -> list[Block[S]]:
    """The block and those before it, the last first, without the root."""
    path: list[Block[S]] = []
    block = leaf
    while block.parent is not None:
        path.append(block)
        block = block.parent
    return path


def below(root: Block[S]) -> Iterator[Block[S]]:
    stack = list(root.children)
    while stack:
        block = stack.pop()
        yield block
        stack += block.children


def best_child(block: Block[S], tokens: list[int]) -> tuple[Block[S] | None, int]:
    """The child that shares most leading tokens with these, and how many; None: none does.

    In order, what is most alike stands side by side: a server's conversations may all begin with
    one system prompt, and their blocks are then siblings by the thousand.
    """
    best: Block[S] | None = None
    n_best = 0
    at = bisect_left(block.children, tokens, key=_tokens)
    for child in block.children[max(at - 1, 0) : at + 1]:
        n = common_prefix(child.tokens, tokens)
        if n > n_best:
            best, n_best = child, n
    return best, n_best


def child_with(block: Block[S], tokens: list[int]) -> Block[S] | None:
    """The child with just these tokens."""
    at = bisect_left(block.children, tokens, key=_tokens)
    same = block.children[at : at + 1]
    return same[0] if same and same[0].tokens == tokens else None


def shorter_beside(block: Block[S]) -> list[Block[S]]:
    """Siblings that hold only a beginning of what the block holds, the longest first."""
    assert block.parent is not None
    siblings, tokens = block.parent.children, block.tokens
    found: list[Block[S]] = []
    at = bisect_left(siblings, tokens, key=_tokens)
    while at > 0:
        sibling = siblings[at - 1]
        n = common_prefix(sibling.tokens, tokens)
        if n == len(sibling.tokens):
            found.append(sibling)
            at -= 1
        elif n:  # a beginning of the block can only be a beginning of what they share
            at = bisect_right(siblings, tokens[:n], key=_tokens)
        else:
            break
    return found


def _tokens(block: Block[S]) -> list[int]:
    return block.tokens


def grow(store: Store[S], root: Callable[[bytes], Block[S]]) -> list[Block[S]]:
    """The blocks that a store holds, put below the roots of their keys.

    Least recently used first, and a block before those it continues. What lacks its beginning is
    dropped from the store.
    """
    used: dict[Block[S], int] = {}
    found: dict[bytes, Block[S]] = {}
    for entry in sorted(store.entries(), key=lambda entry: entry.start):
        parent = found.get(entry.parent) if entry.start else root(entry.parent)
        if parent is None or parent.end != entry.start or len(parent.tokens) % BLOCK:
            store.remove(entry.key)
            continue
        block = Block[S](entry.tokens, entry.start, None, entry.n_bytes, parent, key=entry.key)
        parent.adopt(block)
        found[entry.key] = block
        used[block] = entry.used_ns
    for block in reversed(list(used)):
        if block.parent in used:
            used[block.parent] = max(used[block.parent], used[block])
    return sorted(used, key=lambda block: (used[block], -block.start))
