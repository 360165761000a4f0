"""Where a new request's beginning comes from, and what becomes of finished ones."""

from __future__ import annotations

import pytest

from fake_executor import FakeMemory, SlidingMemory
from naiad.engine.base import CoreJob
from naiad.engine.executor import State
from naiad.engine.host_cache import BLOCK, Block, HostCache
from naiad.engine.pool import Pool
from naiad.engine.prefix import MIN_REUSE, PrefixCache, Resident
from naiad.engine.sequence import Sequence
from naiad.types import SamplingParams

pytestmark = pytest.mark.usefixtures("steady_clock")

NOTHING = Resident(-1, 0, 0)


class Bench:
    """A prefix cache with its pool, and sequences put there by hand."""

    def __init__(self, n_cells: int = 4096, capacity: int = 1 << 20, window: int = 0) -> None:
        self.memory = SlidingMemory(n_cells, window) if window else FakeMemory(n_cells)
        self.pool = Pool(self.memory, 8, window)
        self.cache = PrefixCache(self.pool, HostCache[State](capacity))

    def running(self, tokens: list[int], computed: int | None = None, space: str = "") -> Sequence:
        sequence = waiting(tokens, space)
        sequence.slot = self.pool.allocate()
        sequence.computed = len(tokens) if computed is None else computed
        for pos in range(sequence.computed):
            self.memory.append(sequence.slot, pos, tokens[pos])
        return sequence

    def finished(self, tokens: list[int], space: str = "") -> None:
        self.cache.park(self.running(tokens, space=space))

    def save_everything(self) -> None:
        while self.cache.save_slice():
            pass

    def attach(self, sequence: Sequence, resident: Resident = NOTHING) -> list[int]:
        """Attach, and read back what the slot holds."""
        sequence.slot = self.pool.allocate()
        self.cache.attach(sequence, resident)
        cells = self.memory.sequences.get(sequence.slot, {})
        assert sorted(cells) == list(range(sequence.computed))
        return [cells[p][0] for p in sorted(cells)]


def waiting(tokens: list[int], space: str = "") -> Sequence:
    return Sequence(CoreJob(1, tuple(tokens), 8, SamplingParams(), space))


def numbers(n: int, *tail: int) -> list[int]:
    return [*range(1000, 1000 + n), *tail]


# -- the best match in the pool ---------------------------------------------------------------


def test_the_longest_match_wins_wherever_it_is() -> None:
    bench = Bench()
    short = bench.running(numbers(20, 1, 1))
    bench.finished(numbers(40, 2))
    best = bench.cache.resident(waiting(numbers(60)), [short])
    assert best == Resident(bench.cache.parked[0].slot, 40, 40)
    long = bench.running(numbers(50, 3))
    assert bench.cache.resident(waiting(numbers(60)), [short, long]).slot == long.slot


def test_what_is_coming_counts_more_than_what_is_there() -> None:
    bench = Bench()
    behind = bench.running(numbers(200), computed=30)
    bench.finished(numbers(60, 7))
    best = bench.cache.resident(waiting(numbers(150, 9)), [behind])
    assert best == Resident(behind.slot, 30, 150)


def test_of_two_equal_ones_the_one_that_is_further_serves() -> None:
    bench = Bench()
    behind, ahead = (bench.running(numbers(100), computed=c) for c in (10, 80))
    assert bench.cache.resident(waiting(numbers(100, 1)), [behind, ahead]).slot == ahead.slot


def test_the_last_token_is_always_left_to_compute() -> None:
    bench = Bench()
    same = bench.running(numbers(50))
    assert bench.cache.resident(waiting(numbers(50)), [same]).n_ready == 49
    assert bench.cache.resident(waiting(numbers(30)), [same]).n_ready == 29
    assert bench.cache.resident(waiting([1000]), [same]) == NOTHING


def test_namespaces_do_not_see_each_other() -> None:
    bench = Bench()
    mine = bench.running(numbers(50), space="a")
    bench.finished(numbers(50), space="a")
    assert bench.cache.resident(waiting(numbers(60), "b"), [mine]) == NOTHING
    bench.save_everything()
    assert bench.attach(waiting(numbers(60), "b")) == []
    assert bench.attach(waiting(numbers(60), "a")) == numbers(50)


# -- attaching --------------------------------------------------------------------------------


def test_a_match_too_short_to_matter_is_not_used_and_nobody_shares() -> None:
    """Every prompt begins with the same token or two: that alone must not tie streams together."""
    bench = Bench()
    first = bench.running(numbers(MIN_REUSE - 1, 1, 2, 3))
    second = waiting(numbers(MIN_REUSE - 1, 7, 8, 9))
    resident = bench.cache.resident(second, [first])
    assert resident.n_ready == MIN_REUSE - 1
    assert bench.attach(second, resident) == []
    assert not bench.pool.is_sharing(first.slot)


def test_two_that_took_from_the_same_finished_one_know_of_each_other() -> None:
    bench = Bench()
    bench.finished(numbers(100))
    a, b = waiting(numbers(80, 1)), waiting(numbers(90, 2))
    for sequence in (a, b):
        bench.attach(sequence, bench.cache.resident(sequence, []))
    bench.save_everything()
    assert bench.cache.parked == []
    assert bench.pool.is_sharing(a.slot)
    bench.pool.free(a.slot)
    assert not bench.pool.is_sharing(b.slot)  # the last one may be moved


def test_host_memory_goes_on_where_the_pool_ends() -> None:
    bench = Bench()
    long = numbers(BLOCK * 2 + 50)
    bench.finished(long)
    bench.save_everything()
    live = bench.running([*long[:150], 5, 5, 5])
    sequence = waiting([*long, 1])
    assert bench.attach(sequence, bench.cache.resident(sequence, [live])) == long
    own = bench.memory.sequences[sequence.slot]
    shared = bench.memory.sequences[live.slot]
    assert all(own[p] is shared[p] for p in range(BLOCK))  # whole blocks stay shared


def test_host_memory_that_adds_little_is_left_alone() -> None:
    bench = Bench()
    bench.finished(numbers(100 + MIN_REUSE - 1))
    bench.save_everything()
    live = bench.running(numbers(100))
    sequence = waiting(numbers(300))
    assert len(bench.attach(sequence, bench.cache.resident(sequence, [live]))) == 100


def test_a_branch_takes_part_of_a_block() -> None:
    bench = Bench()
    bench.finished(numbers(300))
    bench.save_everything()
    branch = [*numbers(201), 5, 6, 7]
    assert bench.attach(waiting(branch)) == branch[:201]


def test_a_full_pool_gives_the_blocks_that_fit() -> None:
    bench = Bench(n_cells=2 * BLOCK + 40)
    bench.finished(numbers(2 * BLOCK + 40))
    bench.save_everything()
    bench.running([7] * 100)
    assert bench.attach(waiting(numbers(400))) == numbers(BLOCK)


def test_a_source_that_slid_away_gives_nothing_and_leaves_nothing() -> None:
    bench = Bench(window=32)
    source = bench.running(numbers(200))
    assert isinstance(bench.memory, SlidingMemory)
    bench.memory.forget(source.slot)
    sequence = waiting([*numbers(100), 1, 2])
    assert bench.attach(sequence, bench.cache.resident(sequence, [source])) == []
    whole = waiting([*numbers(200), 1, 2])
    assert bench.attach(whole, bench.cache.resident(whole, [source])) == numbers(200)


# -- parking and saving -----------------------------------------------------------------------


def test_only_computed_tokens_are_parked() -> None:
    bench = Bench()
    bench.cache.park(bench.running(numbers(40), computed=33))
    assert bench.cache.parked[0].tokens == numbers(33)


def test_saving_goes_block_by_block_oldest_first_and_frees_the_slot() -> None:
    bench = Bench()
    bench.finished(numbers(BLOCK + 1))
    bench.finished([7] * 20)
    assert bench.cache.save_slice()
    assert len(bench.cache.parked) == 2
    assert bench.cache.save_slice()
    assert [p.tokens for p in bench.cache.parked] == [[7] * 20]
    assert not bench.cache.save_slice()
    assert not bench.cache.save_slice()
    assert bench.memory.n_used == 0
    assert bench.pool.available == 8


def test_states_of_what_is_shared_in_the_pool_are_not_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    bench.finished(numbers(400))
    bench.save_everything()
    live = bench.running(numbers(300))
    asked: list[int] = []
    state_of = bench.cache.host.state_of

    def note(block: Block[State]) -> State | None:
        asked.append(block.start)
        return state_of(block)

    monkeypatch.setattr(bench.cache.host, "state_of", note)
    sequence = waiting(numbers(500))
    assert bench.attach(sequence, bench.cache.resident(sequence, [live])) == numbers(400)
    assert asked == [2 * BLOCK, 3 * BLOCK]


def test_what_is_saved_already_is_not_saved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.finished(numbers(200))
    bench.save_everything()
    saved: list[int] = []
    save = bench.pool.save

    def count(slot: int, start: int, end: int) -> State | None:
        saved.append(start)
        return save(slot, start, end)

    monkeypatch.setattr(bench.pool, "save", count)
    bench.finished(numbers(150))
    bench.finished(numbers(300))
    bench.save_everything()
    assert saved == [BLOCK, 2 * BLOCK]


def test_a_state_that_cannot_be_read_gives_up_that_conversation_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    bench.finished(numbers(500))
    bench.finished([7] * 50)
    with monkeypatch.context() as broken:
        broken.setattr(bench.memory, "save", lambda seq: None)
        assert bench.cache.save_slice()
    assert [p.tokens for p in bench.cache.parked] == [[7] * 50]
    bench.save_everything()
    assert bench.attach(waiting([7] * 60)) == [7] * 50


def test_a_conversation_larger_than_the_cache_ends_its_own_saving() -> None:
    bench = Bench(capacity=3000)  # two blocks and a bit
    bench.finished(numbers(1000))
    bench.save_everything()
    bench.cache.host.check_integrity()
    assert bench.memory.n_used == 0
    held = bench.attach(waiting(numbers(1000)))
    assert held == numbers(len(held))
    assert len(held) == 2 * BLOCK


def test_evicting_while_saving_never_leaves_a_gap() -> None:
    """Two conversations wrestle for a cache that holds one: what is found is always a prefix."""
    bench = Bench(capacity=2500)
    for turn in range(6):
        tokens = [turn % 2] * 10 + numbers(300 + turn)
        bench.finished(tokens)
        bench.save_everything()
        bench.cache.host.check_integrity()
        sequence = waiting([*tokens, 1])
        found = bench.attach(sequence)
        assert found == tokens[: len(found)]
        bench.pool.free(sequence.slot)


def test_dropping_an_unsaved_one_frees_its_cells() -> None:
    bench = Bench()
    bench.finished(numbers(300))
    bench.cache.save_slice()
    bench.cache.drop(bench.cache.parked[0])
    assert bench.memory.n_used == 0
    assert bench.attach(waiting(numbers(300))) == numbers(BLOCK)  # the block that was saved


def test_a_conversation_that_slid_is_saved_as_far_as_it_is_whole() -> None:
    bench = Bench(window=BLOCK)
    assert isinstance(bench.memory, SlidingMemory)
    bench.finished(numbers(400))
    bench.memory.forget(bench.cache.parked[0].slot)
    bench.save_everything()
    assert bench.attach(waiting(numbers(500))) == []
    bench.finished(numbers(400))
    bench.save_everything()
    assert bench.attach(waiting(numbers(500))) == numbers(400)
