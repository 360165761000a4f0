"""The pool over memories that show every trap of the native one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_executor import FakeMemory, SlidingMemory
from naiad.engine.pool import Pool

WINDOW = 8


def fill(memory: FakeMemory, slot: int, tokens: range | list[int]) -> None:
    start = memory.pos_max(slot) + 1
    for offset, token in enumerate(tokens):
        memory.append(slot, start + offset, token)


def held(memory: FakeMemory, slot: int) -> list[int]:
    """The tokens of a slot in order; positions must have no gap."""
    cells = memory.sequences.get(slot, {})
    assert sorted(cells) == list(range(len(cells)))
    return [cells[p][0] for p in sorted(cells)]


def filled_pool(n_tokens: int, n_cells: int = 1000) -> tuple[FakeMemory, Pool, int]:
    memory = FakeMemory(n_cells)
    pool = Pool(memory, 3)
    slot = pool.allocate()
    fill(memory, slot, range(n_tokens))
    return memory, pool, slot


# -- slots ------------------------------------------------------------------------------------


def test_slots_are_handed_out_once_and_come_back_empty() -> None:
    memory = FakeMemory(100)
    pool = Pool(memory, 3)
    slots = [pool.allocate() for _ in range(3)]
    assert sorted(slots) == [0, 1, 2]
    with pytest.raises(IndexError):
        pool.allocate()
    fill(memory, slots[1], range(5))
    pool.free(slots[1])
    assert pool.available == 1
    assert pool.length(slots[1]) == 0
    assert pool.allocate() == slots[1]


def test_a_slot_that_someone_dirtied_is_emptied_when_it_is_handed_out() -> None:
    memory = FakeMemory(100)
    pool = Pool(memory, 1)
    fill(memory, 0, range(9))
    assert memory.pos_max(pool.allocate()) == -1


def test_integrity_names_what_is_wrong() -> None:
    memory, pool, slot = filled_pool(5)
    pool.check_integrity({slot: 5})
    for wrong in ({slot: 4}, {slot: 6}, {}, {slot: 5, slot + 1: 0}):
        with pytest.raises(AssertionError):
            pool.check_integrity(wrong)
    fill(memory, 3, [1])  # the scratch sequence
    with pytest.raises(AssertionError, match="slot 3 should be empty"):
        pool.check_integrity({slot: 5})
    memory.remove(3)
    memory.remove(slot, 0, 2)
    with pytest.raises(AssertionError, match=f"slot {slot}"):
        pool.check_integrity({slot: 5})


def test_a_slot_freed_twice_is_seen() -> None:
    _, pool, slot = filled_pool(5)
    pool.free(slot)
    pool.free(slot)
    with pytest.raises(AssertionError):
        pool.check_integrity({})


# -- sharing and cutting ----------------------------------------------------------------------


def test_shared_cells_are_the_same_cells_and_survive_their_first_owner() -> None:
    memory, pool, slot = filled_pool(50)
    other = pool.allocate()
    assert pool.share(slot, other, 30) == 30
    assert memory.n_used == 50
    pool.free(slot)
    assert held(memory, other) == list(range(30))
    assert memory.n_used == 30


def test_a_share_of_more_than_there_is_gives_what_there_is() -> None:
    memory, pool, slot = filled_pool(20)
    other = pool.allocate()
    assert pool.share(slot, other, 99) == 20
    assert held(memory, other) == list(range(20))


def test_nothing_is_shared_from_an_empty_slot() -> None:
    pool = Pool(FakeMemory(100), 2)
    a, b = pool.allocate(), pool.allocate()
    assert pool.share(a, b, 10) == 0
    assert not pool.is_sharing(a)
    assert not pool.is_sharing(b)


def test_a_cut_leaves_the_other_owner_alone() -> None:
    memory, pool, slot = filled_pool(50)
    other = pool.allocate()
    pool.share(slot, other, 40)
    assert pool.cut(other, 10) == 10
    assert held(memory, slot) == list(range(50))
    assert pool.cut(other, 25) == 10  # nothing grows by cutting
    assert pool.cut(other, 0) == 0


def test_a_slot_whose_beginning_is_gone_counts_as_empty_and_is_emptied() -> None:
    memory, pool, slot = filled_pool(20)
    memory.remove(slot, 0, 3)
    assert pool.length(slot) == 0
    assert pool.cut(slot, 15) == 0
    assert memory.n_used == 0


def test_owners_are_known_until_the_others_leave() -> None:
    memory, pool, a = filled_pool(50)
    b, c = pool.allocate(), pool.allocate()
    pool.share(a, b, 40)
    fill(memory, b, range(10))
    pool.share(b, c, 45)  # cells of a and of b
    assert [pool.is_sharing(s) for s in (a, b, c)] == [True] * 3
    pool.free(b)
    assert pool.is_sharing(a)  # with c
    pool.free(c)
    assert not pool.is_sharing(a)
    assert not pool.is_sharing(pool.allocate())  # a slot that comes back shares nothing


operations = st.lists(
    st.tuples(st.sampled_from("afsc"), st.integers(0, 5), st.integers(0, 5), st.integers(1, 30)),
    max_size=40,
)


@given(operations)
def test_two_owners_of_a_cell_always_know_of_each_other(
    todo: list[tuple[str, int, int, int]],
) -> None:
    """Whatever is done: a cell that two slots own makes both of them sharers."""
    memory = FakeMemory(10_000)
    pool = Pool(memory, 6)
    live: list[int] = []
    for what, i, j, n in todo:
        if what == "a" and pool.available:
            live.append(pool.allocate())
            fill(memory, live[-1], range(n))
        elif live and what == "f":
            pool.free(live.pop(i % len(live)))
        elif live and what == "s" and pool.available:
            source, target = live[j % len(live)], pool.allocate()
            assert pool.share(source, target, n) == min(n, pool.length(source))
            live.append(target)
        elif live and what == "c":
            pool.cut(live[i % len(live)], n)
    lengths = {slot: len(held(memory, slot)) for slot in live}
    pool.check_integrity(lengths)
    for slot in live:
        mine = {id(cell) for cell in memory.sequences[slot].values()}
        others = {
            id(cell) for o in live if o != slot for cell in memory.sequences.get(o, {}).values()
        }
        assert pool.is_sharing(slot) >= bool(mine & others)


# -- states -----------------------------------------------------------------------------------


def test_blocks_come_back_in_order() -> None:
    memory, pool, slot = filled_pool(100)
    states = [pool.save(slot, start, start + 25) for start in range(0, 100, 25)]
    pool.free(slot)
    slot = pool.allocate()
    for i, state in enumerate(states):
        assert state is not None
        assert pool.load(slot, 25 * i, 25, state) == 25 * (i + 1)
    assert held(memory, slot) == list(range(100))
    pool.check_integrity({slot: 100})


def test_part_of_a_block_is_enough() -> None:
    memory, pool, slot = filled_pool(40)
    state = pool.save(slot, 0, 40)
    assert state is not None
    other = pool.allocate()
    assert pool.load(other, 0, 13, state) == 13
    assert held(memory, other) == list(range(13))
    assert memory.n_used == 53


def test_no_room_for_a_block_changes_nothing() -> None:
    memory, pool, slot = filled_pool(40, n_cells=70)
    state = pool.save(slot, 10, 40)
    assert state is not None
    other = pool.allocate()
    pool.share(slot, other, 10)
    fill(memory, slot, range(15))
    assert pool.load(other, 10, 30, state) == 10
    assert held(memory, other) == list(range(10))
    pool.check_integrity({slot: 55, other: 10})


def test_what_is_not_whole_is_not_saved() -> None:
    memory, pool, slot = filled_pool(40)
    assert pool.save(slot, 30, 50) is None
    memory.remove(slot, 0, 5)
    assert pool.save(slot, 0, 20) is None
    assert pool.save(slot, 5, 20) is not None
    assert memory.pos_max(3) == -1


def test_moving_keeps_tokens_and_places() -> None:
    memory, pool, slot = filled_pool(60)
    before = dict(memory.sequences[slot])
    assert pool.move(slot, 20, 45)
    assert held(memory, slot) == list(range(60))
    moved = {p for p, c in memory.sequences[slot].items() if c is not before[p]}
    assert moved == set(range(20, 45))


def test_a_move_that_cannot_be_put_back_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, pool, slot = filled_pool(60)
    monkeypatch.setattr(memory, "load", lambda seq, state: False)
    assert not pool.move(slot, 20, 45)
    assert pool.cut(slot, 20) == 20
    assert held(memory, slot) == list(range(20))
    pool.check_integrity({slot: 20})


def test_a_move_of_what_cannot_be_saved_leaves_it_where_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory, pool, slot = filled_pool(60)
    monkeypatch.setattr(memory, "save", lambda seq: None)
    assert not pool.move(slot, 20, 45)
    assert held(memory, slot) == list(range(60))


# -- sliding windows --------------------------------------------------------------------------


def sliding_pool(n_tokens: int) -> tuple[SlidingMemory, Pool, int]:
    memory = SlidingMemory(1000, WINDOW)
    pool = Pool(memory, 3, WINDOW)
    slot = pool.allocate()
    fill(memory, slot, range(n_tokens))
    return memory, pool, slot


def test_a_sequence_that_lost_what_it_cannot_see_is_whole() -> None:
    memory, pool, slot = sliding_pool(30)
    memory.forget(slot)
    assert memory.pos_min(slot) == 30 - WINDOW + 1
    assert pool.length(slot) == 30
    pool.check_integrity({slot: 30})


def test_one_cell_less_than_the_window_is_too_few() -> None:
    memory, pool, slot = sliding_pool(30)
    memory.sliding.remove(slot, 0, 30 - WINDOW + 2)
    assert pool.length(slot) == 0


@pytest.mark.parametrize("n", [5, 22, 23, 29])
def test_a_prefix_whose_window_is_gone_is_not_shared_and_leaves_nothing(n: int) -> None:
    """The full layers would still hand over their cells, and computing would double them."""
    memory, pool, slot = sliding_pool(30)
    memory.forget(slot)
    other = pool.allocate()
    assert pool.share(slot, other, n) == 0
    assert memory.sequences[other] == {}
    assert not pool.is_sharing(slot)
    pool.check_integrity({slot: 30, other: 0})


def test_the_whole_of_a_slid_sequence_can_be_shared() -> None:
    memory, pool, slot = sliding_pool(30)
    memory.forget(slot)
    other = pool.allocate()
    assert pool.share(slot, other, 30) == 30
    assert held(memory, other) == list(range(30))


def test_a_cut_below_the_window_empties_all_layers() -> None:
    memory, pool, slot = sliding_pool(30)
    memory.forget(slot)
    assert pool.cut(slot, 12) == 0
    assert memory.sequences[slot] == {}


def test_a_block_that_slid_away_is_not_saved() -> None:
    memory, pool, slot = sliding_pool(30)
    assert pool.save(slot, 0, WINDOW) is not None
    memory.forget(slot)
    assert pool.save(slot, 0, WINDOW) is None
    assert pool.save(slot, 20, 28) is None  # in part
    assert pool.save(slot, 23, 30) is not None


def test_a_slid_sequence_can_still_be_moved() -> None:
    memory, pool, slot = sliding_pool(30)
    memory.forget(slot)
    for start in range(0, 30, WINDOW):
        assert pool.move(slot, start, min(start + WINDOW, 30))
    assert held(memory, slot) == list(range(30))
    assert pool.length(slot) == 30


# -- moved to other positions -----------------------------------------------------------------


def moved_pool() -> tuple[FakeMemory, Pool, int]:
    """A slot with tokens 0 to 9, and 20 to 29 behind them that had been ten positions further."""
    memory, pool, source = filled_pool(30)
    head, tail = pool.save(source, 0, 10), pool.save(source, 20, 30)
    assert head is not None
    assert tail is not None
    pool.free(source)
    slot = pool.allocate()
    assert pool.load(slot, 0, 10, head) == 10
    assert pool.load_shifted(slot, 20, 30, -10, tail) == 20
    return memory, pool, slot


def test_what_waits_to_be_turned_is_not_saved_and_the_rest_is() -> None:
    memory, pool, slot = moved_pool()
    assert not pool.is_settled(slot)
    assert pool.save(slot, 0, 20) is None
    assert pool.save(slot, 0, 10) is not None
    memory.unapplied.clear()  # by a decode
    pool.settle()
    assert pool.is_settled(slot)
    assert pool.save(slot, 0, 20) is not None


def test_an_interrupted_decode_spoils_what_waited_to_be_turned() -> None:
    memory, pool, slot = moved_pool()
    assert pool.interrupted(slot, 19) == 10
    assert held(memory, slot) == list(range(10))
    assert pool.is_settled(slot)


def test_who_shares_what_waits_to_be_turned_waits_too() -> None:
    _, pool, slot = moved_pool()
    short, long = pool.allocate(), pool.allocate()
    assert (pool.share(slot, short, 10), pool.share(slot, long, 15)) == (10, 15)
    assert (pool.is_settled(short), pool.is_settled(long)) == (True, False)
    assert pool.interrupted(long, 14) == 10


@pytest.mark.parametrize("n_kept", [10, 12])
def test_cutting_what_waits_ends_the_wait_when_nothing_of_it_is_left(n_kept: int) -> None:
    _, pool, slot = moved_pool()
    assert pool.cut(slot, n_kept) == n_kept
    assert pool.is_settled(slot) == (n_kept == 10)
    pool.free(slot)
    assert pool.is_settled(slot)
