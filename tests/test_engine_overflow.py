"""Past the end of the context: end there, or give up the oldest and go on."""

from __future__ import annotations

import random
from typing import cast

import pytest

from fake_executor import EOG, FakeExecutor, FakeMemory, FakeVocab, SlidingMemory, answer
from naiad.engine.base import CoreJob
from naiad.engine.core import CoreLimits, EngineCore
from naiad.engine.host_cache import BLOCK
from naiad.ipc.messages import StreamItem
from naiad.types import FinishReason, SamplingParams

pytestmark = pytest.mark.usefixtures("steady_clock")

N_CTX = 1024
GREEDY = SamplingParams(temperature=0)


def prompt_of(seed: int, n: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(EOG) for _ in range(n)]


def make_core(memory: FakeMemory | None = None, **changes: object) -> EngineCore:
    limits: dict[str, object] = {
        "n_ctx": N_CTX,
        "pool_cells": 8192,
        "parallel": 4,
        "n_parked": 4,
        "host_cache_bytes": 1 << 20,
        "can_shift": True,
        "drafts": True,
        "check_integrity": True,
    }
    executor = FakeExecutor(memory=memory or FakeMemory(8192))
    return EngineCore(executor, FakeVocab(), CoreLimits(**limits | changes))  # type: ignore[arg-type]


def run(core: EngineCore, jobs: list[CoreJob]) -> dict[int, list[StreamItem]]:
    for job in jobs:
        core.add(job)
    items: dict[int, list[StreamItem]] = {job.uid: [] for job in jobs}
    while core.has_work():
        for item in core.step():
            items[item.uid].append(item)
    return items


def said(items: list[StreamItem]) -> list[int]:
    return [token for item in items for token in item.tokens]


@pytest.mark.parametrize("n_prompt", [10, 130, 600, N_CTX - 1])
def test_a_stream_goes_on_past_the_context(n_prompt: int) -> None:
    core = make_core()
    prompt = prompt_of(1, n_prompt)
    items = run(core, [CoreJob(1, tuple(prompt), 3000, GREEDY, shift_at_limit=True)])[1]
    assert said(items) == answer(prompt, 3000)
    assert items[-1].finish is FinishReason.LENGTH
    dropped = [item.n_dropped for item in items]
    assert dropped == sorted(dropped)
    assert n_prompt + 3000 - N_CTX <= dropped[-1] < n_prompt + 3000
    assert [item.seq for item in items] == list(range(len(items)))


def test_without_being_asked_it_ends_at_the_context() -> None:
    prompt = prompt_of(1, 600)
    items = run(make_core(), [CoreJob(1, tuple(prompt), 3000, GREEDY)])[1]
    assert len(said(items)) == N_CTX - 600
    assert items[-1].finish is FinishReason.LENGTH


def test_where_positions_cannot_move_it_ends_at_the_context() -> None:
    prompt = prompt_of(1, 600)
    job = CoreJob(1, tuple(prompt), 3000, GREEDY, shift_at_limit=True)
    items = run(make_core(can_shift=False), [job])[1]
    assert len(said(items)) == N_CTX - 600


def test_who_shares_the_beginning_keeps_its_own_positions() -> None:
    core = make_core()
    prompt = prompt_of(2, 500)
    jobs = [
        CoreJob(1, (*prompt, 1, 1, 1, 1), 2000, GREEDY, shift_at_limit=True),
        CoreJob(2, (*prompt, 2, 2, 2, 2), 400, GREEDY),
    ]
    items = run(core, jobs)
    assert said(items[1]) == answer([*prompt, 1, 1, 1, 1], 2000)
    assert said(items[2]) == answer([*prompt, 2, 2, 2, 2], 400)


def test_the_beginning_stays() -> None:
    core = make_core()
    prompt = prompt_of(3, 700)
    core.add(CoreJob(1, tuple(prompt), 3000, GREEDY, shift_at_limit=True))
    while not core._running or not core._running[0].n_dropped:
        core.step()
    [sequence] = core._running
    assert sequence.tokens[: 2 * BLOCK] == prompt[: 2 * BLOCK]
    assert sequence.tokens[2 * BLOCK] != prompt[2 * BLOCK]
    assert sequence.n_generated == N_CTX - 700
    assert sequence.n_pending == 1  # nothing has to be computed again


def test_sliding_windows_go_on_too() -> None:
    core = make_core(SlidingMemory(8192, 256), window=256)
    prompt = prompt_of(1, 900)
    items = run(core, [CoreJob(1, tuple(prompt), 1500, GREEDY, shift_at_limit=True)])[1]
    assert said(items) == answer(prompt, 1500)


def test_states_that_cannot_be_saved_are_computed_again() -> None:
    memory = FakeMemory(8192)
    core = make_core(memory)
    memory.save = lambda seq: None  # type: ignore[method-assign]
    prompt = prompt_of(1, 900)
    items = run(core, [CoreJob(1, tuple(prompt), 1500, GREEDY, shift_at_limit=True)])[1]
    assert said(items) == answer(prompt, 1500)


def step_until_it_moves(core: EngineCore, items: list[StreamItem]) -> None:
    while not any(s.n_dropped for s in core._running):
        items += core.step()


def interrupted_step(core: EngineCore) -> list[StreamItem]:
    executor = cast(FakeExecutor, core._executor)
    before, executor.during = executor.during, executor.interrupt
    items = core.step()
    executor.during = before
    return items


def test_an_interrupted_decode_after_the_move_is_made_good() -> None:
    """It may have turned to the new positions what some layers hold, and not the others."""
    core = make_core(drafts=False)
    prompt = prompt_of(1, 600)
    core.add(CoreJob(1, tuple(prompt), 1500, GREEDY, shift_at_limit=True))
    items: list[StreamItem] = []
    step_until_it_moves(core, items)
    items += interrupted_step(core)
    while core.has_work():
        items += core.step()
    assert said(items) == answer(prompt, 1500)


def test_nothing_is_kept_of_what_was_aborted_before_it_was_turned() -> None:
    core = make_core(drafts=False)
    prompt, other = prompt_of(1, 600), prompt_of(2, 40)
    core.add(CoreJob(1, tuple(prompt), 1500, GREEDY, shift_at_limit=True))
    core.add(CoreJob(2, tuple(other), 700, GREEDY))
    items: list[StreamItem] = []
    step_until_it_moves(core, items)
    core.abort(1)
    items += interrupted_step(core)
    while core.has_work():
        items += core.step()
    assert said([item for item in items if item.uid == 2]) == answer(other, 700)
    while core.idle_slice():
        pass
    assert not core._prefix.parked
