"""Streams that lie high are brought down; nobody's tokens change on the way."""

from __future__ import annotations

import random

import pytest

from fake_executor import EOG, FakeExecutor, FakeVocab, NumberedMemory, answer
from naiad.engine.base import CoreJob
from naiad.engine.compaction import Compactor
from naiad.engine.core import CoreLimits, EngineCore
from naiad.engine.host_cache import BLOCK
from naiad.engine.pool import Pool
from naiad.engine.scheduler import StepBudget
from naiad.engine.sequence import Sequence
from naiad.ipc.messages import StreamItem
from naiad.types import SamplingParams

pytestmark = pytest.mark.usefixtures("steady_clock")

GREEDY = SamplingParams(temperature=0)


def placed(
    pool: Pool, memory: NumberedMemory, compactor: Compactor, n: int, n_below: int
) -> Sequence:
    sequence = Sequence(CoreJob(n, tuple(range(n + 1)), 8, GREEDY))
    sequence.slot = pool.allocate()
    for pos in range(n):
        memory.append(sequence.slot, pos, pos)
    sequence.computed = n
    compactor.placed([sequence], n_below + n)
    return sequence


@pytest.fixture
def stranded() -> tuple[NumberedMemory, Pool, Compactor, Sequence]:
    """300 cells above 700 that have just been given up."""
    memory = NumberedMemory(2000)
    pool = Pool(memory, 4)
    compactor = Compactor(pool)
    below = placed(pool, memory, compactor, 700, 0)
    above = placed(pool, memory, compactor, 300, 700)
    pool.free(below.slot)
    assert memory.highest == 999
    return memory, pool, compactor, above


Stranded = tuple[NumberedMemory, Pool, Compactor, Sequence]


def test_a_stranded_stream_comes_down_block_by_block(stranded: Stranded) -> None:
    memory, pool, compactor, above = stranded
    n_blocks = 0
    while compactor.tidy([above], 300):
        n_blocks += 1
        assert pool.length(above.slot) == 300
    assert n_blocks == -(-300 // BLOCK)
    assert memory.highest == 299
    cells = memory.sequences[above.slot]
    assert [cells[p][0] for p in range(300)] == list(range(300))


def test_then_there_is_nothing_left_to_do(stranded: Stranded) -> None:
    _, _, compactor, above = stranded
    while compactor.tidy([above], 300):
        pass
    assert (above.top, above.n_moved) == (300, 0)
    assert not compactor.tidy([above], 300)
    assert not compactor.tidy([], 0)


def test_a_little_higher_than_needed_is_good_enough() -> None:
    memory = NumberedMemory(2000)
    pool = Pool(memory, 4)
    compactor = Compactor(pool)
    sequence = placed(pool, memory, compactor, 300, 200)
    assert not compactor.tidy([sequence], 300)
    compactor.placed([sequence], 557)
    assert compactor.tidy([sequence], 300)


def test_the_highest_one_is_moved_first() -> None:
    memory = NumberedMemory(4000)
    pool = Pool(memory, 4)
    compactor = Compactor(pool)
    first = placed(pool, memory, compactor, 100, 1000)
    second = placed(pool, memory, compactor, 100, 2000)
    compactor.tidy([first, second], 200)
    assert (first.top, second.top) == (1100, 200)


def test_who_shares_cells_stays(stranded: Stranded) -> None:
    _, pool, compactor, above = stranded
    other = pool.allocate()
    pool.share(above.slot, other, 100)
    assert not compactor.tidy([above], 300)
    pool.free(other)
    assert compactor.tidy([above], 300)


def test_cells_that_cannot_be_put_back_are_computed_again(
    stranded: Stranded, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, pool, compactor, above = stranded
    compactor.tidy([above], 300)
    with monkeypatch.context() as broken:
        broken.setattr(memory, "load", lambda seq, state: False)
        compactor.tidy([above], 300)
    assert above.computed == pool.length(above.slot) == BLOCK
    assert above.n_pending == 301 - BLOCK
    assert (above.top, above.n_moved) == (300, 0)


def test_a_stream_without_cells_yet_is_no_trouble(stranded: Stranded) -> None:
    _, pool, compactor, _ = stranded
    empty = Sequence(CoreJob(1, (1, 2, 3), 8, GREEDY), slot=pool.allocate())
    compactor.placed([empty], 5000)
    compactor.tidy([empty], 300)
    assert (empty.computed, empty.top) == (0, 300)


# -- in the engine ----------------------------------------------------------------------------


def make_core(memory: NumberedMemory, **changes: object) -> EngineCore:
    settings: dict[str, object] = {
        "n_ctx": 1024,
        "pool_cells": memory.n_cells,
        "parallel": 6,
        "n_parked": 6,
        "host_cache_bytes": 1 << 20,
        "budget": StepBudget(alone=256, beside=64),
        "check_integrity": True,
    }
    limits = CoreLimits(**{**settings, **changes})  # type: ignore[arg-type]
    return EngineCore(FakeExecutor(memory=memory), FakeVocab(), limits)


def prompt_of(rng: random.Random, n: int) -> list[int]:
    return [0, *(rng.randrange(EOG) for _ in range(n - 1))]


def drain(core: EngineCore, items: list[StreamItem], until: int | None = None) -> None:
    """Step until all work is done, or only `until` streams run."""
    while core.has_work() and (
        until is None or len(core._running) + len(core._intake.line) > until
    ):
        items += core.step()


def said(items: list[StreamItem], uid: int) -> list[int]:
    return [token for item in items if item.uid == uid for token in item.tokens]


def test_prompts_that_begin_with_the_same_token_are_moved_all_the_same() -> None:
    """A beginning-of-text token in common is no shared prefix."""
    memory = NumberedMemory(4096)
    core = make_core(memory)
    rng = random.Random(1)
    leaving, staying = prompt_of(rng, 600), prompt_of(rng, 200)
    core.add(CoreJob(1, tuple(leaving), 5, GREEDY))
    items = core.step()
    core.add(CoreJob(2, tuple(staying), 150, GREEDY))
    drain(core, items, until=1)
    for _ in range(30):
        items += core.step()
    assert memory.highest < 500
    drain(core, items)
    assert said(items, 2) == answer(staying, 150)


def test_the_last_of_several_sharers_is_brought_down() -> None:
    memory = NumberedMemory(4096)
    core = make_core(memory)
    rng = random.Random(2)
    blocker, prefix = prompt_of(rng, 600), prompt_of(rng, 100)
    core.add(CoreJob(0, tuple(blocker), 3, GREEDY))
    core.step()
    for uid in range(1, 5):
        core.add(CoreJob(uid, (*prefix, *[uid] * 5), 150 if uid == 4 else 4, GREEDY))
    items: list[StreamItem] = []
    drain(core, items, until=1)
    assert memory.highest > 500
    for _ in range(40):
        items += core.step()
    assert memory.highest < 450
    drain(core, items)
    assert said(items, 4) == answer([*prefix, 4, 4, 4, 4, 4], 150)


def test_streams_that_took_from_one_finished_stay_shared() -> None:
    """Moving one of them would give each its own copy of what they share."""
    memory = NumberedMemory(4096)
    core = make_core(memory)
    rng = random.Random(3)
    prefix = prompt_of(rng, 400)
    core.add(CoreJob(0, tuple(prefix), 1, GREEDY))
    items: list[StreamItem] = []
    drain(core, items)
    core.add(CoreJob(9, tuple(prompt_of(rng, 900)), 20, GREEDY))
    prompts = {uid: [*prefix[: 300 + 20 * uid], *[uid] * 5] for uid in range(1, 5)}
    for uid, prompt in prompts.items():  # each shares more with the finished one than with these
        core.add(CoreJob(uid, tuple(prompt), 60, GREEDY))
    while core.has_work():
        items += core.step()
        sharers = [s for s in core._running if s.uid in prompts and s.computed > 300]
        if len(sharers) > 1:
            first = [memory.sequences[s.slot][0] for s in sharers]
            assert all(cell is first[0] for cell in first)
    for uid, prompt in prompts.items():
        assert said(items, uid) == answer(prompt, 60)


def test_finished_ones_are_saved_while_a_request_waits_for_room() -> None:
    """Waiting for cells is no reason to leave idle ones in everybody's way."""
    memory = NumberedMemory(1300)
    core = make_core(memory)
    rng = random.Random(4)
    running, large = prompt_of(rng, 300), prompt_of(rng, 1020)
    core.add(CoreJob(1, tuple(running), 200, GREEDY))
    core.add(CoreJob(2, tuple(prompt_of(rng, 200)), 2, GREEDY))
    items: list[StreamItem] = []
    drain(core, items, until=1)
    assert [len(p.tokens) for p in core._prefix.parked] == [201]
    core.add(CoreJob(3, tuple(large), 2, GREEDY))
    for _ in range(8):
        items += core.step()
    assert [s.uid for s in core._intake.line] == [3]
    assert core._prefix.parked == []
    drain(core, items)
    assert said(items, 1) == answer(running, 200)
    assert said(items, 3) == answer(large, 2)


def test_saved_cells_are_loaded_into_the_first_places_not_behind_what_is_parked(
    steady_clock: None,
) -> None:
    memory = NumberedMemory(4096)
    core = make_core(memory)
    core._cost.saw_prefill = lambda *_, **__: None  # type: ignore[method-assign]
    rng = random.Random(5)
    items: list[StreamItem] = []
    prompt = prompt_of(rng, 700)
    core.add(CoreJob(1, tuple(prompt), 2, GREEDY))
    drain(core, items)
    while core.idle_slice():
        pass
    core.add(CoreJob(2, tuple(prompt_of(rng, 600)), 2, GREEDY))
    drain(core, items)
    assert len(core._prefix.parked) == 1
    longer = [*prompt, *prompt_of(rng, 200)]
    core.add(CoreJob(3, tuple(longer), 2, GREEDY))
    items += core.step()
    assert core._prefix.parked == []
    assert memory.highest < len(longer)
    drain(core, items)
    assert said(items, 3) == answer(longer, 2)
