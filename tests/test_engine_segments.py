"""Pieces of an earlier prompt in a new one, against the plainest account of what a piece is."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from naiad.engine import segments as module
from naiad.engine.segments import MIN_SEGMENT, WINDOW, Segment, SegmentFinder


def tokens(seed: int, n: int, n_kinds: int = 10_000) -> list[int]:
    rng = random.Random(seed)
    return rng.choices(range(n_kinds), k=n)


def find(
    old: list[int], new: list[int], start: int = 0, old_start: int | None = None
) -> list[Segment]:
    found = SegmentFinder(new, start, len(new)).segments(
        old, start if old_start is None else old_start
    )
    check(old, new, start, found)
    return found


def check(old: list[int], new: list[int], start: int, found: list[Segment]) -> None:
    """Equal tokens, long enough, in order in both, none overlapping, none before the start."""
    at_old, at_new = 0, start
    for piece in found:
        assert piece.n >= MIN_SEGMENT
        assert piece.old >= at_old
        assert piece.new >= at_new
        assert piece.end <= len(new)
        assert piece.old + piece.n <= len(old)
        for i in range(piece.n):
            assert old[piece.old + i] == new[piece.new + i]
        at_old, at_new = piece.old + piece.n, piece.end


def longest_common(old: list[int], new: list[int]) -> int:
    """Tokens in the longest chain of matching runs, by dynamic programming: slow and obvious."""
    row = [0] * (len(new) + 1)
    best = 0
    for token in old:
        row = [0, *(row[j] + 1 if token == new[j] else 0 for j in range(len(new)))]
        best = max(best, *row)
    return best


def total(found: list[Segment]) -> int:
    return sum(piece.n for piece in found)


# -- what front ends do -------------------------------------------------------------------------


def test_the_oldest_turns_dropped() -> None:
    system, turns, tail = tokens(1, 150), tokens(2, 1500), tokens(3, 80)
    [piece] = find([*system, *turns], [*system, *turns[400:], *tail], 150)
    assert piece == Segment(old=550, new=150, n=1100)
    assert (piece.shift, piece.end) == (-400, 1250)


def test_lore_inserted_in_the_middle() -> None:
    system, turns, lore = tokens(1, 150), tokens(2, 1500), tokens(4, 100)
    new = [*system, *turns[:600], *lore, *turns[600:]]
    [piece] = find([*system, *turns], new, 750)
    assert piece == Segment(old=750, new=850, n=900)
    assert piece.shift == 100


def test_several_of_both_are_all_found() -> None:
    old = tokens(5, 3000)
    new = [*old[:100], *old[300:900], *tokens(6, 70), *old[900:1400], *old[1700:2500]]
    new += [*tokens(7, 30), *old[2500:]]
    found = find(old, new, 100)
    assert [(p.old, p.n) for p in found] == [(300, 600), (900, 500), (1700, 800), (2500, 500)]
    assert total(found) == 2400


def test_a_turn_replaced_by_a_longer_one() -> None:
    old = tokens(8, 1000)
    found = find(old, [*old[:200], *tokens(9, 300), *old[260:]], 200)
    assert found == [Segment(260, 500, 740)]


def test_turns_that_changed_places_are_found_in_one_order_only() -> None:
    old = tokens(10, 800)
    found = find(old, [*old[400:], *old[:400]])
    assert found == [Segment(0, 400, 400)]


def test_no_piece_reaches_past_the_wanted_end() -> None:
    old = tokens(11, 500)
    new = [*tokens(12, 50), *old]
    finder = SegmentFinder(new, 0, len(new) - 2)
    [piece] = finder.segments(old, 0)
    assert piece.end == len(new) - 2


def test_one_table_serves_many_texts() -> None:
    new = tokens(13, 900)
    finder = SegmentFinder(new, 0, len(new))
    assert finder.segments(new[100:400], 0) == [Segment(0, 100, 300)]
    assert finder.segments(tokens(14, 900), 0) == []
    assert finder.segments(new[500:], 0) == [Segment(0, 500, 400)]


@pytest.mark.parametrize("n", [0, 1, WINDOW - 1, WINDOW, MIN_SEGMENT - 1])
def test_what_is_too_short_is_no_piece(n: int) -> None:
    shared = tokens(15, n)
    assert find([*tokens(16, 100), *shared, *tokens(17, 100)], [*tokens(18, 40), *shared]) == []
    assert find(shared, shared) == []
    assert find([], shared) == []


def test_the_shortest_piece_that_can_be_missed() -> None:
    """Any piece of MIN_SEGMENT tokens holds one of the windows that are looked up."""
    shared = tokens(19, MIN_SEGMENT)
    for n_before in range(2 * WINDOW):
        [piece] = find([*tokens(20, n_before), *shared], [*tokens(21, 50), *shared])
        assert piece.n == MIN_SEGMENT


# -- against the plain account --------------------------------------------------------------------


@settings(max_examples=40, derandomize=True)
@given(
    st.lists(
        st.tuples(st.sampled_from(["keep", "drop", "insert"]), st.integers(1, 160)), max_size=9
    ),
    st.integers(2, 400),
    st.integers(0, 5),
    st.integers(0, 100),
)
def test_pieces_are_pieces_whatever_was_done(
    edits: list[tuple[str, int]], n_kinds: int, seed: int, start: int
) -> None:
    old, new, at = tokens(seed, 700, n_kinds), [], 0
    for i, (edit, n) in enumerate(edits):
        if edit == "insert":
            new += tokens(100 + i, n, n_kinds)
        else:
            new += old[at : at + n] if edit == "keep" else []
            at += n
    new += old[at:]
    find(old, new, min(start, len(new)))


@settings(max_examples=15, derandomize=True)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(MIN_SEGMENT, 150)), min_size=1, max_size=6),
    st.integers(0, 9),
)
def test_of_different_tokens_everything_long_enough_is_found(
    edits: list[tuple[bool, int]], seed: int
) -> None:
    """No token comes twice, so what is kept can be found in one way only."""
    old = random.Random(seed).sample(range(5000), 900)
    new: list[int] = []
    at = n_kept = 0
    for is_kept, n in edits:
        piece = old[at : at + n] if is_kept else []
        new += [*piece, 9000 + at]  # what is inserted parts the pieces
        n_kept += len(piece) if len(piece) >= MIN_SEGMENT else 0
        at += n
    assert total(find(old, new)) == n_kept


@pytest.mark.parametrize("seed", range(6))
def test_the_longest_run_is_not_overlooked(seed: int) -> None:
    """Among noise of few kinds, where windows of noise come twice here and there."""
    shared = tokens(seed, 200, 50)
    old = [*tokens(seed + 10, 90, 50), *shared, *tokens(seed + 20, 40, 50)]
    new = [*tokens(seed + 30, 130, 50), *shared]
    assert max(p.n for p in find(old, new)) == longest_common(old, new) >= 200


# -- cost, counted ---------------------------------------------------------------------------------


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of all comparisons of tokens."""
    lengths: list[int] = []
    compare = module._common_prefix

    def counted(a: module.Ids, b: module.Ids) -> int:
        lengths.append(min(len(a), len(b)))
        return compare(a, b)

    monkeypatch.setattr(module, "_common_prefix", counted)
    return lengths


def test_texts_with_nothing_in_common_are_not_compared(compared: list[int]) -> None:
    assert find(tokens(1, 20_000), tokens(2, 20_000)) == []
    assert compared == []


def test_each_piece_is_compared_twice(compared: list[int]) -> None:
    """Once in each direction, however long it is."""
    old = tokens(3, 20_000)
    found = SegmentFinder([*old[:50], *old[3000:]], 50, 17_050).segments(old, 50)
    assert total(found) == 17_000
    assert len(compared) == 2


@pytest.mark.parametrize("period", [1, 2, 31, 32])
def test_a_text_of_one_thing_over_and_over_costs_little(compared: list[int], period: int) -> None:
    """Every window occurs everywhere; each probe tries a few of them."""
    old, new = (tokens(4, period) * (9000 // period) for _ in range(2))
    find(old, [*tokens(5, 40), *new])
    n_probes = len(old) / WINDOW
    assert len(compared) <= 2 * module._MOST_PLACES * n_probes
