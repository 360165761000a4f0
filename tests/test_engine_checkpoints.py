"""Checkpoints, and the pool and scheduler under them, without an engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from fake_executor import FakeVocab, answer
from fake_whole import WholeExecutor, WholeMemory
from naiad.engine.base import CoreJob
from naiad.engine.blocks import BLOCK
from naiad.engine.checkpoints import Checkpoints
from naiad.engine.core import CoreLimits, EngineCore
from naiad.engine.disk_cache import DiskCache
from naiad.engine.scheduler import StepBudget
from naiad.engine.whole_pool import WholePool
from naiad.types import SamplingParams

pytestmark = pytest.mark.usefixtures("steady_clock")

GREEDY = SamplingParams(temperature=0)
TALK = [(7 * i * i + 3) % 60 for i in range(600)]


def kept(*lengths: int, capacity: int = 1000) -> Checkpoints[bytes]:
    checkpoints = Checkpoints[bytes](capacity)
    for n in lengths:
        assert checkpoints.add("", TALK[:n], bytes([n % 256]) * 100, 100, lasts=False)
    return checkpoints


def test_the_longest_whose_tokens_are_all_there_is_found() -> None:
    checkpoints = kept(50, 100, 200)
    found = checkpoints.longest("", TALK[:199])
    assert found is not None and found.n_tokens == 100
    assert checkpoints.state_of(found) == bytes([100]) * 100
    assert checkpoints.longest("", [*TALK[:49], 61]) is None
    assert checkpoints.longest("other", TALK) is None
    assert checkpoints.holds("", TALK[:50])
    assert not checkpoints.holds("", TALK[:51])


def test_the_closest_may_be_longer_and_the_shortest_of_equals_is_taken() -> None:
    checkpoints = kept(200, 100)
    found, n = checkpoints.closest("", [*TALK[:80], 61, 61])
    assert found is not None and (found.n_tokens, n) == (100, 80)
    found, n = checkpoints.closest("", TALK[:150])
    assert found is not None and (found.n_tokens, n) == (200, 150)
    assert checkpoints.closest("", [61]) == (None, 0)


def test_what_was_not_used_for_longest_goes_first() -> None:
    checkpoints = kept(50, 100, 150, capacity=300)
    found = checkpoints.longest("", TALK[:60])
    assert found is not None and checkpoints.state_of(found) is not None
    checkpoints.add("", TALK[:200], bytes(100), 100, lasts=False)
    checkpoints.check_integrity()
    assert [checkpoints.holds("", TALK[:n]) for n in (50, 100, 150, 200)] == [1, 0, 1, 1]
    assert not checkpoints.add("", TALK[:300], bytes(400), 400, lasts=False)
    assert not checkpoints.add("", [], bytes(1), 1, lasts=False)
    checkpoints.clear()
    assert (len(checkpoints), checkpoints.n_bytes) == (0, 0)


def on_disk(folder: Path, capacity: int = 100_000) -> DiskCache[bytes]:
    return DiskCache[bytes](folder, b"f" * 16, capacity, bytes, {"model": "m", "file": "m.gguf"})


def test_what_lasts_is_there_after_a_restart_and_the_rest_is_not(tmp_path: Path) -> None:
    store = on_disk(tmp_path)
    first = Checkpoints[bytes](250, store)
    for n in (5 * BLOCK // 2, 300, 30):
        first.add("a", TALK[:n], bytes([n % 256]) * 100, 100, lasts=n != 300)
    assert store.flush(10)
    second = Checkpoints[bytes](1000, on_disk(tmp_path))
    found = second.longest("a", TALK)
    assert found is not None and found.n_tokens == 320
    assert second.state_of(found) == bytes([64]) * 100
    assert not second.holds("a", TALK[:300])
    assert second.holds("a", TALK[:30])
    assert second.longest("b", TALK) is None
    second.check_integrity()


def test_one_too_large_for_memory_does_not_empty_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints[bytes](300, on_disk(tmp_path))
    for n in (50, 100):
        checkpoints.add("", TALK[:n], bytes(100), 100, lasts=False)
    assert checkpoints.add("", TALK[:300], bytes(400), 400, lasts=True)
    checkpoints.check_integrity()
    assert [checkpoints.holds("", TALK[:n]) for n in (50, 100, 300)] == [True, True, True]
    found = checkpoints.longest("", TALK)
    assert found is not None and checkpoints.state_of(found) == bytes(400)
    assert checkpoints.n_bytes == 200


def test_what_is_forgotten_keeps_no_state() -> None:
    checkpoints = kept(50)
    found = checkpoints.longest("", TALK)
    checkpoints.clear()
    assert found is not None and found.state is None


def test_what_a_state_really_takes_counts() -> None:
    checkpoints = Checkpoints[bytes](250, weigh=lambda state: 2 * len(state))
    for n in (100, 101, 102):
        checkpoints.add("", TALK[:n], bytes(50), 50, lasts=False)
        checkpoints.check_integrity()
    assert (len(checkpoints), checkpoints.n_bytes) == (2, 200)
    checkpoints.clear()
    assert checkpoints.n_bytes == 0


@pytest.mark.parametrize("at", [60, 700, -1])
def test_a_damaged_file_is_a_miss(tmp_path: Path, at: int) -> None:
    store = on_disk(tmp_path)
    Checkpoints[bytes](0, store).add("", TALK[:200], bytes(100), 100, lasts=True)
    assert store.flush(10)
    (file,) = store.folder.glob("*.kv") if list(store.folder.glob("*.kv")) else block_files(store)
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
    again = Checkpoints[bytes](1000, on_disk(tmp_path))
    found = again.longest("", TALK)
    assert found is None or again.state_of(found) is None
    assert len(again) == 0


def block_files(store: DiskCache[bytes]) -> list[Path]:
    return [p for p in store.folder.iterdir() if p.stat().st_size > 500]


def test_the_disks_bound_is_kept(tmp_path: Path) -> None:
    store = on_disk(tmp_path, capacity=6000)
    checkpoints = Checkpoints[bytes](400, store)
    for n in range(100, 600, 50):
        checkpoints.add("", TALK[:n], bytes(1000)[:300], 300, lasts=True)
        checkpoints.check_integrity()
        assert store.n_bytes <= 6000
    assert checkpoints.holds("", TALK[:550])
    assert not checkpoints.holds("", TALK[:100])


# -- the pool -----------------------------------------------------------------------------------


def test_a_slot_is_kept_whole_or_emptied() -> None:
    memory = WholeMemory(100)
    pool = WholePool(memory, 2)
    slot, other = pool.allocate(), pool.allocate()
    for pos in range(10):
        memory.append(slot, pos, pos)
    assert (pool.cut(slot, 12), pool.length(slot)) == (10, 10)
    assert pool.save(slot, 0, 9) is None
    state = pool.save(slot, 0, 10)
    assert state is not None
    assert pool.load(other, 0, 9, state) == 0, "it is not what it was said to be"
    assert pool.load(other, 3, 10, state) == 0
    assert pool.load(other, 0, 10, state) == 10
    assert pool.cut(other, 9) == 0
    assert pool.share(slot, other, 10) == 10
    assert pool.interrupted(other, 10) == 0
    pool.check_integrity({slot: 10, other: 0})
    with pytest.raises(AssertionError):
        pool.check_integrity({slot: 9, other: 0})


# -- the core -----------------------------------------------------------------------------------


def core_over(executor: WholeExecutor) -> EngineCore:
    limits = CoreLimits(
        n_ctx=2000,
        pool_cells=8000,
        parallel=2,
        n_parked=2,
        host_cache_bytes=1 << 20,
        can_cut=False,
        budget=StepBudget(alone=64, beside=64),
        check_integrity=True,
    )
    return EngineCore(executor, FakeVocab(), limits)


def run(core: EngineCore, uid: int, prompt: list[int], n: int) -> int:
    """Returns how much of the prompt was there already."""
    core.add(CoreJob(uid, tuple(prompt), n, GREEDY))
    items = []
    while core.has_work():
        items += core.step()
    while core.idle_slice():
        pass
    assert [token for item in items for token in item.tokens] == answer(prompt, n)
    return items[0].n_cached


def test_each_turn_computes_what_is_new_and_no_more() -> None:
    executor = WholeExecutor(memory=WholeMemory(8000))
    core = core_over(executor)
    prompt = TALK[:100]
    assert run(core, 1, prompt, 10) == 0
    assert run(core, 2, prompt, 10) == 99
    longer = prompt + answer(prompt, 10) + TALK[5:20]
    executor.decoded.clear()
    assert run(core, 3, longer, 1) == 109
    assert sum(len(r.tokens) for runs in executor.decoded for r in runs) == len(longer) - 109


def test_a_long_prompts_beginning_is_kept_at_doubling_lengths() -> None:
    core = core_over(WholeExecutor(memory=WholeMemory(8000)))
    prompt = [(3 * i * i + i) % 60 for i in range(1300)]
    run(core, 1, prompt, 1)
    lengths = sorted(c.n_tokens for c in core._prefix.host._used)
    assert lengths == [512, 1024, 1299, 1300]
    assert run(core, 2, [*prompt[:1100], 1, 2, 3, 4], 5) == 1024


def test_an_interrupted_prompt_leaves_nothing_wrong_behind() -> None:
    executor = WholeExecutor(memory=WholeMemory(8000))
    core = core_over(executor)
    core.add(CoreJob(1, tuple(TALK[:200]), 5, GREEDY))
    core.step()
    executor.during = lambda: core.cancel_hint(1)
    core.step()
    executor.during = lambda: None
    assert core._running[0].computed == 0
    core.abort(1)
    core.step()
    assert run(core, 2, TALK[:250], 5) == 0


def test_the_same_prompt_twice_at_once_is_computed_once() -> None:
    executor = WholeExecutor(memory=WholeMemory(8000))
    core = core_over(executor)
    for uid in (1, 2):
        core.add(CoreJob(uid, tuple(TALK[:200]), 5, GREEDY))
    while core.has_work():
        core.step()
    n_computed = sum(len(r.tokens) for runs in executor.decoded for r in runs)
    assert n_computed == 200 + 1 + 2 * 4
