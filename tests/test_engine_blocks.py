"""Blocks that continue one block: found by their tokens however many there are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.engine import blocks
from naiad.engine.blocks import Block, best_child, child_with, shorter_beside
from naiad.engine.sequence import common_prefix

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=6)


def family(*tokens: list[int]) -> Block[str]:
    root = Block[str]([], 0, None, 0, None)
    for each in tokens:
        root.adopt(Block(each, 0, "", 0, root))
    return root


@given(st.lists(TOKENS, unique_by=tuple), TOKENS)
def test_the_best_child_shares_most(children: list[list[int]], wanted: list[int]) -> None:
    best, n = best_child(family(*children), wanted)
    assert n == max((common_prefix(child, wanted) for child in children), default=0)
    assert (best is None) == (n == 0)
    assert best is None or best.tokens[:n] == wanted[:n]


@given(st.lists(TOKENS, unique_by=tuple, min_size=1), st.data())
def test_those_that_a_block_makes_needless(children: list[list[int]], data: st.DataObject) -> None:
    root = family(*children)
    block = data.draw(st.sampled_from(root.children))
    shorter = [c for c in children if c != block.tokens and block.tokens[: len(c)] == c]
    shorter.sort(key=len, reverse=True)
    assert [other.tokens for other in shorter_beside(block)] == shorter


@given(st.lists(TOKENS, unique_by=tuple), TOKENS)
def test_a_child_is_known_by_its_tokens(children: list[list[int]], wanted: list[int]) -> None:
    root = family(*children)
    found = child_with(root, wanted)
    assert (found is not None) == (wanted in children)
    assert found is None or found.tokens == wanted
    for child in list(root.children):
        root.disown(child)
        assert child_with(root, child.tokens) is None
    assert root.children == []


def test_a_stranger_is_not_disowned() -> None:
    root = family([1], [2])
    with pytest.raises(ValueError, match="not in"):
        root.disown(Block([1], 0, "", 0, root))
    assert len(root.children) == 2


def test_looking_up_compares_few_of_many_siblings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of conversations begin with one system prompt, within their first block."""
    system = list(range(24))
    root = family(*([*system, i, 7] for i in range(3000)))
    n_compared = 0

    def counted(a: list[int], b: list[int]) -> int:
        nonlocal n_compared
        n_compared += 1
        return common_prefix(a, b)

    monkeypatch.setattr(blocks, "common_prefix", counted)
    best, n = best_child(root, [*system, 1234, 8])
    assert best is not None
    assert (best.tokens[24], n, n_compared) == (1234, 25, 2)
