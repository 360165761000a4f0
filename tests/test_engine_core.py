"""The core over a pure-Python context that shows every wrong cell as a wrong token."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from fake_executor import BACK, EOG, FakeExecutor, FakeMemory, FakeVocab, SlidingMemory, answer
from naiad.engine.base import CoreJob
from naiad.engine.core import CoreLimits, EngineCore
from naiad.engine.journal import Journal
from naiad.engine.scheduler import StepBudget
from naiad.engine.sequence import Sequence
from naiad.errors import EngineFailed
from naiad.ipc.messages import StreamItem
from naiad.types import FinishReason, SamplingParams

pytestmark = pytest.mark.usefixtures("steady_clock")

GREEDY = SamplingParams(temperature=0)


def make_core(executor: FakeExecutor | None = None, **changes: object) -> EngineCore:
    settings: dict[str, object] = {
        "n_ctx": 512,
        "pool_cells": 4096,
        "parallel": 4,
        "n_parked": 4,
        "host_cache_bytes": 1 << 20,
        "budget": StepBudget(alone=32, beside=8),
        "check_integrity": True,
    }
    return EngineCore(
        executor or FakeExecutor(),
        FakeVocab(),
        CoreLimits(**{**settings, **changes}),  # type: ignore[arg-type]
    )


def prompt_of(rng: random.Random, n: int) -> list[int]:
    return [rng.randrange(EOG) for _ in range(n)]


def submit(core: EngineCore, uid: int, prompt: list[int], n: int, namespace: str = "") -> None:
    core.add(CoreJob(uid, tuple(prompt), n, GREEDY, namespace))


def run_all(core: EngineCore, steps: int = 10_000) -> dict[int, list[StreamItem]]:
    """Step until nothing is left; the bound turns a livelock into a failure."""
    items: dict[int, list[StreamItem]] = {}
    for _ in range(steps):
        if not core.has_work():
            return items
        for item in core.step():
            items.setdefault(item.uid, []).append(item)
    raise AssertionError("the engine did not finish its work")


def tokens_of(items: list[StreamItem]) -> list[int]:
    assert [item.seq for item in items] == list(range(len(items)))
    assert [bool(item.finish) for item in items] == [False] * (len(items) - 1) + [True]
    return [token for item in items for token in item.tokens]


def test_one_stream_is_its_own_answer() -> None:
    core = make_core()
    prompt = [1, 2, 3, 4, 5]
    submit(core, 7, prompt, 10)
    items = run_all(core)[7]
    assert tokens_of(items) == answer(prompt, 10)
    assert b"".join(i.data for i in items) == bytes(answer(prompt, 10))
    assert items[-1].finish is FinishReason.LENGTH


def test_context_end_is_length() -> None:
    core = make_core(n_ctx=20)
    submit(core, 1, [1, 2, 3, 4], 500)
    items = run_all(core)[1]
    assert len(tokens_of(items)) == 16
    assert items[-1].finish is FinishReason.LENGTH


def test_end_of_generation_token_is_counted_but_has_no_bytes() -> None:
    core = make_core()
    bias = SamplingParams(temperature=0, logit_bias=((EOG, 100.0),))
    core.add(CoreJob(1, (1, 2, 3, 4), 9, bias))
    [item] = run_all(core)[1]
    assert (item.tokens, item.data, item.finish) == ([EOG], b"", FinishReason.STOP)


def test_ignore_eos_never_chooses_it() -> None:
    core = make_core()
    params = SamplingParams(temperature=0, logit_bias=((EOG, 100.0),), ignore_eos=True)
    core.add(CoreJob(1, (1, 2, 3, 4), 9, params))
    assert tokens_of(run_all(core)[1]) == answer([1, 2, 3, 4], 9)


def test_long_prompts_are_chunked_and_do_not_stop_a_running_stream() -> None:
    executor = FakeExecutor()
    core = make_core(executor)
    rng = random.Random(1)
    short, long = prompt_of(rng, 8), prompt_of(rng, 200)
    submit(core, 1, short, 60)
    for _ in range(6):
        core.step()
    submit(core, 2, long, 5)
    items = run_all(core)
    assert tokens_of(items[2]) == answer(long, 5)
    beside = [runs for runs in executor.decoded if len(runs) > 1]
    assert all(sum(len(r.tokens) for r in runs) <= 8 + 1 for runs in beside)
    assert all(any(len(r.tokens) == 1 for r in runs) for runs in beside)


def test_more_requests_than_slots_wait_their_turn() -> None:
    core = make_core(parallel=2)
    rng = random.Random(2)
    prompts = {uid: prompt_of(rng, rng.randrange(BACK + 1, 40)) for uid in range(12)}
    for uid, prompt in prompts.items():
        submit(core, uid, prompt, 6)
    items = run_all(core)
    assert {uid: tokens_of(i) for uid, i in items.items()} == {
        uid: answer(p, 6) for uid, p in prompts.items()
    }


def test_a_shared_prefix_is_computed_once() -> None:
    executor = FakeExecutor()
    core = make_core(executor)
    rng = random.Random(3)
    prefix = prompt_of(rng, 150)
    for uid in range(4):
        submit(core, uid, [*prefix, uid, uid, uid, uid], 5)
    items = run_all(core)
    assert all(
        tokens_of(items[uid]) == answer([*prefix, uid, uid, uid, uid], 5) for uid in range(4)
    )
    computed = sum(len(r.tokens) for runs in executor.decoded for r in runs)
    assert computed < 150 + 4 * (4 + 5) + 4
    assert sorted(i[0].n_cached >= 150 for i in items.values()) == [False, True, True, True]


def test_a_finished_conversation_comes_back_from_host_memory() -> None:
    executor = FakeExecutor()
    core = make_core(executor)
    rng = random.Random(4)
    first = prompt_of(rng, 300)
    submit(core, 1, first, 7)
    said = tokens_of(run_all(core)[1])
    while core.idle_slice():
        pass
    assert executor.memory.n_used == 0  # nothing idle is left in the pool
    follow_up = [*first, *said, 9, 9, 9]
    submit(core, 2, follow_up, 7)
    items = run_all(core)[2]
    assert tokens_of(items) == answer(follow_up, 7)
    assert items[0].n_cached == len(first) + len(said) - 1  # the last token was never computed


def test_a_branch_uses_part_of_a_saved_block() -> None:
    core = make_core()
    rng = random.Random(5)
    first = prompt_of(rng, 300)
    submit(core, 1, first, 3)
    run_all(core)
    while core.idle_slice():
        pass
    branch = [*first[:201], (first[201] + 1) % EOG, 5, 6]
    submit(core, 2, branch, 9)
    items = run_all(core)[2]
    assert tokens_of(items) == answer(branch, 9)
    assert items[0].n_cached == 201


def test_namespaces_share_nothing() -> None:
    core = make_core()
    prompt = prompt_of(random.Random(6), 200)
    for uid, namespace in enumerate(("alice", "bob", "alice")):
        submit(core, uid, prompt, 4, namespace)
        items = run_all(core)[uid]
        assert (items[0].n_cached > 0) == (uid == 2)
        while core.idle_slice():
            pass


def begin_after_another(seconds_a_token: float) -> tuple[EngineCore, list[int]]:
    """A request that comes right after one has ended; how many are parked at each decode."""
    executor, n_parked = FakeExecutor(), list[int]()
    core = make_core(executor)
    core._cost.prefill_s = lambda n, _: n * seconds_a_token  # type: ignore[method-assign,assignment]
    first, second = prompt_of(random.Random(1), 40), prompt_of(random.Random(2), 60)
    submit(core, 1, first, 5)
    run_all(core)
    executor.during = lambda: n_parked.append(len(core._prefix.parked))
    submit(core, 2, [*first[:20], *second], 5)
    items = run_all(core)[2]
    assert tokens_of(items) == answer([*first[:20], *second], 5)
    assert items[0].n_cached == 20
    return core, n_parked


def test_what_was_parked_leaves_before_a_prompt_attends_to_its_cells() -> None:
    core, n_parked = begin_after_another(1e6)
    assert set(n_parked) == {0}
    assert core.cache_counts().n_saved == 1


def test_nobody_waits_for_that_longer_than_it_is_worth() -> None:
    _, n_parked = begin_after_another(0.0)
    assert n_parked[0] == 1


def test_parked_cells_leave_the_pool_while_others_run() -> None:
    executor = FakeExecutor()
    core = make_core(executor)
    rng = random.Random(7)
    submit(core, 0, prompt_of(rng, 10), 400)
    for uid in range(1, 4):
        submit(core, uid, prompt_of(rng, 300), 2)
    used = []
    while core.has_work():
        core.step()
        used.append(executor.memory.n_used)
    assert max(used) > 310
    assert used[-1] <= 410  # what the last running stream holds, and nothing idle


@pytest.mark.parametrize("when", ["waiting", "prefill", "decode"])
def test_abort_ends_once_with_cancelled(when: str) -> None:
    core = make_core(parallel=1 if when == "waiting" else 4)
    rng = random.Random(8)
    other, mine = prompt_of(rng, 20), prompt_of(rng, 200)
    submit(core, 1, other, 30)
    submit(core, 2, mine, 30)
    before = [
        item
        for _ in range({"waiting": 3, "prefill": 4, "decode": 35}[when])
        for item in core.step()
    ]
    core.abort(2)
    core.abort(2)
    after = run_all(core)
    stream = [i for i in before if i.uid == 2] + after[2]
    assert stream[-1].finish is FinishReason.CANCELLED
    assert answer(mine, 30)[: len(tokens_of(stream))] == tokens_of(stream)
    others = [i for i in before if i.uid == 1] + after.get(1, [])
    assert tokens_of(others) == answer(other, 30)


def test_abort_of_an_unknown_uid_is_nothing() -> None:
    core = make_core()
    core.abort(99)
    assert not core.has_work()


def test_a_decode_that_nobody_wants_any_more_is_interrupted() -> None:
    executor = FakeExecutor()
    core = make_core(executor)
    prompt = prompt_of(random.Random(9), 100)
    submit(core, 1, prompt, 5)
    executor.during = lambda: core.cancel_hint(1)
    assert core.step() == []
    assert executor.interrupted
    core.abort(1)
    [item] = core.step()
    assert item.finish is FinishReason.CANCELLED


def test_a_decode_that_someone_wants_goes_on() -> None:
    executor = FakeExecutor()
    core = make_core(executor)
    rng = random.Random(10)
    mine, other = prompt_of(rng, 6), prompt_of(rng, 6)
    submit(core, 1, mine, 5)
    submit(core, 2, other, 5)
    executor.during = lambda: core.cancel_hint(1)
    core.step()
    assert not executor.interrupted
    core.abort(1)
    executor.during = lambda: None
    assert {1, 2} >= run_all(core).keys()


def test_interrupted_work_is_not_lost_when_the_cancel_never_comes() -> None:
    """A hint may race the natural end of another stream; positions are read back, not assumed."""
    executor = FakeExecutor()
    core = make_core(executor)
    rng = random.Random(11)
    a, b = prompt_of(rng, 12), prompt_of(rng, 12)
    submit(core, 1, a, 5)
    submit(core, 2, b, 5)

    def hint_both() -> None:
        core.cancel_hint(1)
        core.cancel_hint(2)

    executor.during = hint_both
    core.step()
    executor.during = lambda: None
    core.abort(2)
    core._interrupts.forget(1)
    assert tokens_of(run_all(core)[1]) == answer(a, 5)


def test_no_room_lets_go_of_the_idle_then_of_the_newest() -> None:
    executor = FakeExecutor(n_cells=130)
    core = make_core(executor, pool_cells=130, n_ctx=120, host_cache_bytes=0)
    rng = random.Random(12)
    prompts = {uid: prompt_of(rng, 30) for uid in range(4)}
    for uid, prompt in prompts.items():
        submit(core, uid, prompt, 70)
    items = run_all(core)
    assert {uid: tokens_of(i) for uid, i in items.items()} == {
        uid: answer(p, 70) for uid, p in prompts.items()
    }


@pytest.mark.parametrize(("priorities", "goes"), [((0, 0, 0), 2), ((0, 5, 0), 1), ((3, 0, 0), 0)])
def test_who_gives_way_is_the_least_important_and_of_equals_the_newest(
    priorities: tuple[int, ...], goes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cells go to host memory: when it comes back nothing is computed twice."""
    executor = FakeExecutor(n_cells=150)
    core = make_core(executor, pool_cells=150, n_ctx=120)
    rng = random.Random(13)
    prompts = [prompt_of(rng, 30) for _ in priorities]
    put_back: list[int] = []
    monkeypatch.setattr(core._intake, "put_back", _noting(core._intake.put_back, put_back))
    for uid, (prompt, priority) in enumerate(zip(prompts, priorities, strict=True)):
        core.add(CoreJob(uid, tuple(prompt), 40, GREEDY, priority=priority))
    items = run_all(core)
    assert [tokens_of(items[uid]) for uid in range(3)] == [answer(p, 40) for p in prompts]
    assert put_back[0] == goes
    computed = sum(len(run.tokens) for runs in executor.decoded for run in runs)
    assert computed <= sum(map(len, prompts)) + 3 * 40


def _noting(put_back: Callable[[Sequence], None], uids: list[int]) -> Callable[[Sequence], None]:
    def note(sequence: Sequence) -> None:
        uids.append(sequence.uid)
        put_back(sequence)

    return note


@pytest.mark.parametrize("window", [0, 20])
def test_no_room_for_the_newest_does_not_stop_the_others(window: int) -> None:
    """It seemed to fit, since it shares a beginning, but nothing of it could be shared.

    Too short to share, or gone from the sliding window. Were it tried again at once, the same step
    would fail for ever, and nobody would get another token.
    """
    memory = SlidingMemory(100, window) if window else FakeMemory(100)
    executor = FakeExecutor(memory=memory)
    budget = StepBudget(alone=64, beside=64)
    core = make_core(executor, pool_cells=100, n_ctx=100, window=window, budget=budget)
    old = prompt_of(random.Random(14), 60)
    submit(core, 1, old, 30)
    items = [item for _ in range(10) for item in core.step()]
    if isinstance(memory, SlidingMemory):
        memory.forget(core._running[0].slot)
    new = [*old[: 15 if window else 4], *[9] * (27 if window else 29)]
    submit(core, 2, new, 5)
    for uid, more in run_all(core, steps=200).items():
        items += [item for item in more if item.uid == uid]
    assert tokens_of([i for i in items if i.uid == 1]) == answer(old, 30)
    assert tokens_of([i for i in items if i.uid == 2]) == answer(new, 5)


@pytest.mark.parametrize("event", ["aborted", "put back", "interrupted"])
def test_who_waits_for_a_prefix_goes_on_when_its_owner_does_not(event: str) -> None:
    executor = FakeExecutor()
    core = make_core(executor)
    prefix = prompt_of(random.Random(15), 200)
    for uid in (1, 2, 3):
        submit(core, uid, [*prefix, uid, uid, uid, uid], 6)
    items = core.step()
    [owner] = core._running
    assert [s.uid for s in core._intake.line] == [2, 3]
    if event == "put back":
        core._put_back(owner)
    elif event == "interrupted":
        executor.during = lambda: core.cancel_hint(1)
        core.step()
        executor.during = lambda: None
    if event != "put back":
        core.abort(1)
    for more in run_all(core, steps=200).values():
        items += more
    for uid in (1, 2, 3):
        said = tokens_of([i for i in items if i.uid == uid])
        is_whole = uid > 1 or event == "put back"
        assert said == (answer([*prefix, uid, uid, uid, uid], 6) if is_whole else [])


def test_who_waits_for_a_prefix_lets_strangers_by_but_keeps_its_place() -> None:
    core = make_core(parallel=2)
    rng = random.Random(16)
    prefix = prompt_of(rng, 200)
    submit(core, 1, prefix, 60)
    submit(core, 2, [*prefix, 1, 2, 3, 4], 3)
    submit(core, 3, prompt_of(rng, 20), 30)
    submit(core, 4, prompt_of(rng, 20), 3)
    core.step()
    assert [s.uid for s in core._running] == [1, 3]
    order = [item.uid for _ in range(200) for item in core.step() if item.finish]
    assert order == [3, 2, 4, 1]


def test_a_hint_without_its_command_stops_nobody_else() -> None:
    """The command may be a while: others go on, and the stream ends when it comes."""
    core = make_core(budget=StepBudget(alone=8, beside=8))
    rng = random.Random(17)
    mine, other = prompt_of(rng, 100), prompt_of(rng, 30)
    submit(core, 1, mine, 5)
    submit(core, 2, other, 20)
    core.cancel_hint(2)
    items = [item for _ in range(12) for item in core.step()]
    core.abort(2)
    for more in run_all(core, steps=300).values():
        items += more
    assert tokens_of([i for i in items if i.uid == 1]) == answer(mine, 5)
    cancelled = [i for i in items if i.uid == 2]
    assert cancelled[-1].finish is FinishReason.CANCELLED


def test_a_request_that_can_never_fit_ends_with_an_error() -> None:
    executor = FakeExecutor(n_cells=16)
    core = make_core(executor, pool_cells=16)
    submit(core, 1, prompt_of(random.Random(13), 12), 50)
    items = run_all(core)[1]
    assert items[-1].finish is FinishReason.ERROR
    assert items[-1].error is not None
    assert "too small" in items[-1].error[1]


def test_nan_fails_that_stream_only() -> None:
    executor = FakeExecutor()
    core = make_core(executor)
    executor.force_nan = True
    submit(core, 1, [1, 2, 3, 4], 5)
    [item] = run_all(core)[1]
    assert item.finish is FinishReason.ERROR
    executor.force_nan = False
    submit(core, 2, [1, 2, 3, 4], 5)
    items = run_all(core)[2]
    assert items[0].n_cached == 0  # nothing of a failed stream is reused
    assert tokens_of(items) == answer([1, 2, 3, 4], 5)


def test_a_fatal_decode_is_not_hidden() -> None:
    executor = FakeExecutor()
    core = make_core(executor)
    executor.fatal = True
    submit(core, 1, [1, 2, 3, 4], 5)
    with pytest.raises(EngineFailed):
        core.step()


def test_models_that_cannot_be_cut_reuse_nothing() -> None:
    executor = FakeExecutor()
    core = make_core(executor, can_reuse=False)
    prompt = prompt_of(random.Random(14), 100)
    for uid in (1, 2):
        submit(core, uid, prompt, 4)
        items = run_all(core)[uid]
        assert items[0].n_cached == 0
        assert tokens_of(items) == answer(prompt, 4)
    assert executor.memory.n_used == 0


def test_random_work_is_exact_and_leaves_nothing_behind() -> None:
    """Shared, branching and disjoint prompts, aborts at any time, a small pool: all exact."""
    rng = random.Random(20)
    executor = FakeExecutor(n_cells=1200)
    core = make_core(executor, pool_cells=1200, n_ctx=400, host_cache_bytes=6000)
    known = [prompt_of(rng, rng.randrange(BACK + 1, 250)) for _ in range(6)]
    want: dict[int, list[int]] = {}
    got: dict[int, list[StreamItem]] = {}
    for uid in range(300):
        base = rng.choice(known)
        prompt = rng.choice(
            [
                base,
                base[: rng.randrange(BACK + 1, len(base) + 1)]
                + prompt_of(rng, rng.randrange(1, 40)),
                prompt_of(rng, rng.randrange(BACK + 1, 200)),
            ]
        )[:380]
        known[rng.randrange(len(known))] = prompt
        n = min(rng.randrange(1, 30), 400 - len(prompt))
        want[uid] = answer(prompt, n)
        submit(core, uid, prompt, n)
        for _ in range(rng.randrange(4)):
            for item in core.step():
                got.setdefault(item.uid, []).append(item)
        if rng.random() < 0.15:
            core.abort(rng.randrange(uid + 1))
        if rng.random() < 0.3:
            core.idle_slice()
    for uid, items in run_all(core).items():
        got.setdefault(uid, []).extend(items)
    assert got.keys() == want.keys()
    for uid, items in got.items():
        tokens = tokens_of(items)
        whole = items[-1].finish is not FinishReason.CANCELLED
        assert tokens == (want[uid] if whole else want[uid][: len(tokens)])
    while core.idle_slice():
        pass
    assert executor.memory.n_used == 0
    core.check_integrity()


def test_the_instrument_sees_a_foreign_prefix() -> None:
    """Negative control: share one token too many and the answers must come out wrong."""
    executor = FakeExecutor()
    core = make_core(executor, check_integrity=False)
    a = [5] * 100
    b = [*a[:50], 9, *a[51:]]
    submit(core, 1, a, 3)
    run_all(core)
    while core.idle_slice():
        pass
    for path in core._prefix.host.recent_paths("", 9):
        for block in path:
            block.tokens = b[block.start : block.end]  # the cache now believes a's cells are b's
    submit(core, 2, [*b, 1, 2], BACK + 2)
    executor.back = 51
    wrong = tokens_of(run_all(core)[2])
    assert wrong != answer([*b, 1, 2], BACK + 2, back=51)


def test_journal_records_what_was_said(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    limits = CoreLimits(n_ctx=64, pool_cells=64, parallel=1)
    core = EngineCore(FakeExecutor(), FakeVocab(), limits, Journal(path))
    submit(core, 3, [1, 2, 3, 4], 2)
    run_all(core)
    core.close()
    lines = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    assert lines[0] == {"uid": 3, "prompt": [1, 2, 3, 4]}
    assert [t for line in lines[1:] for t in line["tokens"]] == answer([1, 2, 3, 4], 2)
    assert lines[-1]["finish"] == "length"


def test_close_frees_the_executor() -> None:
    executor = FakeExecutor()
    core = make_core(executor)
    submit(core, 1, [1, 2, 3, 4], 50)
    core.step()
    core.close()
    core.close()
    assert executor.is_closed


def test_a_stranded_stream_is_moved_down_and_stays_exact() -> None:
    """Cells are numbered here: the lowest free ones are used first, as in the real pool."""
    executor = FakeExecutor()
    core = make_core(executor)
    rng = random.Random(30)
    leaving, staying = prompt_of(rng, 400), prompt_of(rng, 300)
    submit(core, 1, leaving, 60)
    submit(core, 2, staying, 150)
    moved: list[int] = []
    move = core._pool.move

    def counted(slot: int, start: int, end: int) -> bool:
        moved.append(end - start)
        return move(slot, start, end)

    core._pool.move = counted  # type: ignore[method-assign]
    items = []
    while core.has_work():
        items += core.step()
    assert sum(moved) >= len(staying)
    assert tokens_of([i for i in items if i.uid == 2]) == answer(staying, 150)


def test_shared_cells_are_not_moved() -> None:
    core = make_core()
    rng = random.Random(31)
    prompt = prompt_of(rng, 300)
    submit(core, 1, prompt_of(rng, 400), 1)
    submit(core, 2, prompt, 100)
    submit(core, 3, [*prompt, 1, 2, 3], 100)
    items = []
    while core.has_work():
        items += core.step()
        sharing = [s for s in core._running if core._pool.is_sharing(s.slot)]
        assert all(s.n_moved == 0 for s in sharing)
    for uid, tail in ((2, []), (3, [1, 2, 3])):
        assert tokens_of([i for i in items if i.uid == uid]) == answer([*prompt, *tail], 100)
