"""The prefill lane: long prompts computed on the side, saved in blocks, moved into the pool."""

from __future__ import annotations

import random
from concurrent.futures import Executor as ThreadLike
from typing import Any

import pytest

from fake_executor import (
    EOG,
    FakeExecutor,
    FakeMemory,
    FakeVocab,
    Later,
    OnTheSpot,
    SlidingMemory,
    answer,
)
from naiad.engine.base import CoreJob
from naiad.engine.core import CoreLimits, EngineCore
from naiad.engine.host_cache import BLOCK
from naiad.engine.lane import Lane
from naiad.engine.scheduler import StepBudget
from naiad.errors import EngineFailed
from naiad.ipc.messages import StreamItem
from naiad.types import FinishReason, SamplingParams

pytestmark = pytest.mark.usefixtures("steady_clock")

GREEDY = SamplingParams(temperature=0)


class Engine:
    """A core with a lane, and what its streams said."""

    def __init__(
        self, *, thread: ThreadLike | None = None, window: int = 0, **changes: Any
    ) -> None:
        limits: dict[str, Any] = {
            "n_ctx": 4000,
            "pool_cells": 8192,
            "parallel": 4,
            "n_parked": 4,
            "host_cache_bytes": 1 << 22,
            "can_shift": True,
            "budget": StepBudget(alone=64, beside=16),
            "check_integrity": True,
            "window": window,
        }
        limits |= changes
        make = (lambda n: SlidingMemory(n, window)) if window else FakeMemory
        self.main = FakeExecutor(memory=make(limits["pool_cells"]))
        self.side = FakeExecutor(memory=make(4096))
        self.lane = Lane(self.side, 4096, window=window, threads=2, thread=thread or OnTheSpot())
        self.core = EngineCore(self.main, FakeVocab(), CoreLimits(**limits), lane=self.lane)
        self.core._cost.saw_prefill = lambda *_, **__: None  # type: ignore[method-assign]
        self.items: dict[int, list[StreamItem]] = {}  # (what a token costs is not learned here)

    def add(self, uid: int, prompt: list[int], n: int = 8, priority: int = 0) -> None:
        self.core.add(CoreJob(uid, tuple(prompt), n, GREEDY, priority=priority))

    def step(self) -> None:
        for item in self.core.step():
            self.items.setdefault(item.uid, []).append(item)

    def run(self, most: int = 5000) -> None:
        for _ in range(most):
            if not self.core.has_work():
                return
            self.step()
        raise AssertionError("it does not end")

    def idle(self) -> None:
        while self.core.idle_slice():
            pass

    def ask(self, uid: int, prompt: list[int], n: int = 8) -> StreamItem:
        """Run one request to its end; its first item."""
        self.add(uid, prompt, n)
        self.run()
        self.idle()
        assert self.said(uid) == answer(prompt, n)
        return self.items[uid][0]

    def said(self, uid: int) -> list[int]:
        return [token for item in self.items.get(uid, []) for token in item.tokens]

    @property
    def n_side(self) -> int:
        return sum(len(run.tokens) for runs in self.side.decoded for run in runs)

    @property
    def n_main(self) -> int:
        return sum(len(run.tokens) for runs in self.main.decoded for run in runs)


def prompt_of(seed: int, n: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(EOG) for _ in range(n)]


def test_a_long_prompt_is_computed_in_the_lane_and_answered_from_the_pool() -> None:
    engine = Engine()
    engine.ask(1, prompt_of(1, 1000))
    assert (engine.n_side, engine.n_main) == (999, 8)


def test_a_short_prompt_goes_straight_into_the_pool() -> None:
    engine = Engine()
    engine.ask(1, prompt_of(1, 60))
    assert (engine.n_side, engine.n_main) == (0, 67)


def test_streams_go_on_while_the_lane_computes() -> None:
    thread = Later()
    engine = Engine(thread=thread)
    engine.add(1, prompt_of(1, 40), 100)
    engine.step()
    engine.add(2, prompt_of(2, 900))
    for _ in range(20):
        engine.step()
    assert len(engine.said(1)) == 21
    assert all(len(runs) == 1 for runs in engine.main.decoded)
    while thread.waiting:
        thread.compute()
        engine.step()
    engine.run()
    assert engine.said(1) == answer(prompt_of(1, 40), 100)
    assert engine.said(2) == answer(prompt_of(2, 900), 8)


def test_nothing_else_to_do_is_no_work_until_the_lane_is_done() -> None:
    thread = Later()
    engine = Engine(thread=thread)
    woken: list[bool] = []
    engine.core.set_waker(lambda: woken.append(engine.core.has_work()))
    engine.add(1, prompt_of(1, 600))
    assert engine.core.has_work()
    engine.step()
    assert not engine.core.has_work()
    thread.compute()
    assert woken == [True]
    while thread.waiting or engine.core.has_work():
        if engine.core.has_work():
            engine.step()
        else:
            thread.compute()
    assert engine.said(1) == answer(prompt_of(1, 600), 8)


def test_a_new_command_is_work_while_the_lane_computes() -> None:
    engine = Engine(thread=Later())
    engine.add(1, prompt_of(1, 600))
    engine.step()
    engine.add(2, prompt_of(2, 30))
    assert engine.core.has_work()
    for _ in range(10):
        engine.step()
    assert engine.said(2) == answer(prompt_of(2, 30), 8)


def finished(engine: Engine, thread: Later) -> None:
    """Until nothing is left to do, the lane's chunks included."""
    while thread.waiting or engine.core.has_work():
        if engine.core.has_work():
            engine.step()
        else:
            thread.compute()
    engine.idle()


def test_alone_what_is_soon_computed_takes_no_second_thread() -> None:
    thread = Later()
    engine = Engine(thread=thread)
    prompt = prompt_of(1, 1000)
    engine.add(1, prompt)
    finished(engine, thread)
    trimmed = [*prompt[:200], *prompt[400:], *prompt_of(2, 50)]
    engine.add(2, trimmed)
    engine.run()
    assert engine.said(2) == answer(trimmed, 8)
    assert engine.items[2][0].n_cached > 700
    assert engine.side.decoded[-1][0].tokens == trimmed[800:-1]


def test_beside_a_stream_even_a_short_piece_is_computed_apart() -> None:
    thread = Later()
    engine = Engine(thread=thread)
    prompt = prompt_of(1, 1000)
    engine.add(1, prompt)
    finished(engine, thread)
    engine.add(2, prompt_of(3, 40), 100)
    engine.step()
    engine.add(3, [*prompt[:200], *prompt[400:], *prompt_of(2, 50)])
    for _ in range(5):
        engine.step()
    assert len(thread.waiting) == 1
    assert len(engine.said(2)) == 6
    finished(engine, thread)


def test_a_shorter_prompt_goes_first_and_the_long_one_loses_less_than_a_block() -> None:
    thread = Later()
    engine = Engine(thread=thread)
    engine.add(1, prompt_of(1, 3000))
    engine.step()
    thread.compute()
    engine.step()  # the second chunk of the long one is under way
    engine.add(2, prompt_of(2, 300))
    engine.step()
    while thread.waiting or engine.core.has_work():
        if engine.core.has_work():
            engine.step()
        else:
            thread.compute()
    order = list(engine.items)
    assert order == [2, 1]
    assert engine.said(1) == answer(prompt_of(1, 3000), 8)
    assert engine.n_side <= 2999 + 299 + BLOCK


def test_priority_goes_before_length() -> None:
    thread = Later()
    engine = Engine(thread=thread)
    engine.add(3, prompt_of(3, 40), 200)
    engine.step()
    engine.add(1, prompt_of(1, 300))
    engine.add(2, prompt_of(2, 2000), priority=-1)
    engine.step()
    while engine.core.has_work():
        if thread.waiting:
            thread.compute()
        engine.step()
    assert [uid for uid in engine.items if uid != 3] == [2, 1]


def test_who_waits_long_goes_before_who_is_shorter() -> None:
    engine = Engine(thread=Later())
    engine.add(1, prompt_of(1, 3000))
    engine.add(2, prompt_of(2, 300))
    engine.core._by_uid[1].since -= 3600
    engine.step()
    assert engine.lane._holds is engine.core._by_uid[1]


def test_a_known_beginning_is_loaded_into_the_lane() -> None:
    engine = Engine()
    prompt = prompt_of(1, 700)
    engine.ask(1, prompt)
    first = engine.ask(2, [*prompt[:500], *prompt_of(2, 800)])
    assert first.n_cached == 500
    assert engine.n_side == 699 + 799


def test_the_beginning_of_a_running_stream_is_saved_for_the_lane_and_shared_in_the_pool() -> None:
    engine = Engine()
    prompt = prompt_of(1, 700)
    engine.add(1, prompt, 500)
    while not engine.said(1):
        engine.step()
    engine.add(2, [*prompt[:600], *prompt_of(2, 400)], 400)
    while not engine.said(2):
        engine.step()
    assert engine.items[2][0].n_cached == 600
    assert engine.n_side == 699 + 399
    cells = engine.main.memory.n_used
    engine.run()
    assert engine.said(2) == answer([*prompt[:600], *prompt_of(2, 400)], 400)
    assert cells < 700 + 1000


def test_who_shares_a_prompt_in_the_lane_waits_for_it() -> None:
    engine = Engine()
    prompt = prompt_of(1, 1000)
    for uid in (1, 2, 3):
        engine.add(uid, [*prompt, uid, uid, uid], 8)
    engine.run()
    assert engine.n_side == 1002
    for uid in (1, 2, 3):
        assert engine.said(uid) == answer([*prompt, uid, uid, uid], 8)


# -- trimmed histories --------------------------------------------------------------------------


def test_a_trimmed_history_is_shifted_not_computed() -> None:
    engine = Engine()
    system, turns, new = prompt_of(1, 150), prompt_of(2, 1500), prompt_of(3, 80)
    engine.ask(1, [*system, *turns])
    before = engine.n_side
    first = engine.ask(2, [*system, *turns[400:], *new])
    assert engine.n_side - before < len(new) + 50
    assert first.n_cached > 1150


def test_lore_inserted_in_the_middle_costs_only_itself() -> None:
    engine = Engine()
    system, turns, lore = prompt_of(1, 150), prompt_of(2, 1500), prompt_of(4, 100)
    engine.ask(1, [*system, *turns])
    before = engine.n_side
    engine.ask(2, [*system, *turns[300:900], *lore, *turns[900:], *prompt_of(3, 60)])
    assert engine.n_side - before < 100 + 60 + 50


def test_a_trimmed_history_goes_on_from_its_own_blocks() -> None:
    engine = Engine()
    system, turns = prompt_of(1, 150), prompt_of(2, 1500)
    engine.ask(1, [*system, *turns])
    trimmed = [*system, *turns[400:], *prompt_of(3, 80)]
    engine.ask(2, trimmed)
    first = engine.ask(3, [*trimmed, *engine.said(2), *prompt_of(5, 40)])
    assert first.n_cached >= len(trimmed)


def test_shifting_can_be_switched_off() -> None:
    engine = Engine(can_shift=False)
    system, turns = prompt_of(1, 150), prompt_of(2, 1500)
    engine.ask(1, [*system, *turns])
    first = engine.ask(2, [*system, *turns[400:], *prompt_of(3, 80)])
    assert first.n_cached == 150


def test_pieces_that_do_not_arrive_are_computed_by_the_pool() -> None:
    engine = Engine()
    memory = engine.side.memory
    system, turns = prompt_of(1, 150), prompt_of(2, 1500)
    engine.ask(1, [*system, *turns])
    memory.shift = lambda seq, start, end, delta: None  # type: ignore[method-assign]
    first = engine.ask(2, [*system, *turns[400:], *prompt_of(3, 80)])
    assert first.n_cached == 150


# -- what can go wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "computing", "computed"])
def test_abort_in_the_lane(moment: str) -> None:
    thread = Later()
    engine = Engine(thread=thread)
    engine.add(2, prompt_of(2, 2000))
    engine.step()
    if moment == "before":
        engine.add(1, prompt_of(1, 2500))
        engine.step()
    uid = 1 if moment == "before" else 2
    if moment == "computed":
        thread.compute()
    engine.core.cancel_hint(uid)
    engine.core.abort(uid)
    engine.step()
    [end] = engine.items[uid]
    assert end.finish is FinishReason.CANCELLED
    while thread.waiting:
        thread.compute()
        engine.run()
    assert not engine.lane.members
    engine.add(9, prompt_of(9, 700))
    engine.step()
    while thread.waiting or engine.core.has_work():
        if thread.waiting:
            thread.compute()
        engine.step()
    assert engine.said(9) == answer(prompt_of(9, 700), 8)


def test_a_prompt_begins_with_all_threads_once_an_unwanted_chunk_has_ended() -> None:
    thread = Later()
    engine = Engine(thread=thread)
    engine.add(1, prompt_of(1, 600))
    engine.step()
    engine.add(2, prompt_of(2, 30))
    engine.core.cancel_hint(1)
    engine.core.abort(1)
    engine.step()
    assert engine.n_main == 0
    assert not engine.core.has_work()  # but for the lane, which tells when it is done
    thread.compute()
    assert engine.core.has_work()
    engine.step()
    assert (engine.n_main, engine.main.n_threads) == (30, 2)
    engine.run()
    assert engine.said(2) == answer(prompt_of(2, 30), 8)


def test_where_no_decode_can_be_interrupted_nobody_waits_for_its_end() -> None:
    engine = Engine(thread=Later(), can_interrupt=False)
    engine.add(1, prompt_of(1, 600))
    engine.step()
    engine.add(2, prompt_of(2, 30))
    engine.core.abort(1)
    engine.step()
    assert engine.n_main == 30


def test_hints_about_strangers_are_not_kept() -> None:
    engine = Engine()
    for uid in range(100):
        engine.core.cancel_hint(uid)
        engine.core.abort(uid)
    assert not engine.lane._interrupts._hinted
    assert not engine.core._interrupts._hinted


def test_a_stream_does_not_wait_for_an_unwanted_chunk() -> None:
    engine = Engine(thread=Later())
    engine.add(2, prompt_of(2, 30), 20)
    engine.step()
    engine.add(1, prompt_of(1, 600))
    engine.step()
    engine.core.abort(1)
    n_said = len(engine.said(2))
    engine.step()
    assert len(engine.said(2)) == n_said + 1


def test_a_chunk_whose_thread_had_not_begun_is_not_computed_for_nobody() -> None:
    thread = Later()
    engine = Engine(thread=thread)
    engine.add(1, prompt_of(1, 600))
    engine.step()
    engine.core.abort(1)  # and no hint: it was given before there was this chunk
    thread.compute()
    engine.step()
    assert engine.n_side == 0
    engine.add(1, prompt_of(1, 600))  # it is not remembered against who comes later
    engine.step()
    thread.compute()
    assert engine.n_side > 0


def test_an_interrupted_chunk_is_computed_again() -> None:
    engine = Engine()
    engine.add(1, prompt_of(1, 1500))
    calls: list[None] = []

    def interrupt_once() -> None:
        calls.append(None)
        if len(calls) == 2:
            engine.side.interrupted = True

    engine.side.during = interrupt_once
    engine.run()
    assert engine.said(1) == answer(prompt_of(1, 1500), 8)


def test_a_fatal_decode_in_the_lane_is_not_hidden() -> None:
    engine = Engine()
    engine.side.fatal = True
    engine.add(1, prompt_of(1, 1500))
    with pytest.raises(EngineFailed):
        engine.run()


def test_a_prompt_larger_than_the_lane_is_computed_in_the_pool() -> None:
    engine = Engine(n_ctx=6000)
    engine.lane._n_cells = 500
    engine.ask(1, prompt_of(1, 1000))
    assert engine.n_side == 0


def test_no_room_in_the_lane_sends_the_prompt_to_the_pool() -> None:
    engine = Engine()
    engine.side.memory.n_cells = 600
    engine.ask(1, prompt_of(1, 1000))
    assert engine.n_main > 300


def test_states_that_cannot_be_saved_send_the_prompt_to_the_pool() -> None:
    engine = Engine()
    engine.side.memory.save = lambda seq: None  # type: ignore[method-assign]
    engine.ask(1, prompt_of(1, 1000))
    assert engine.n_main == 1007


def test_one_that_is_put_back_goes_on_where_it_was() -> None:
    engine = Engine(pool_cells=1500, budget=StepBudget(alone=512, beside=512))
    engine.add(1, prompt_of(1, 500), 600)
    engine.add(2, prompt_of(2, 480), 600)
    engine.run()
    for uid, n in ((1, 500), (2, 480)):
        assert engine.said(uid) == answer(prompt_of(uid, n), 600)
    assert engine.n_main + engine.n_side < 980 + 1200 + 3 * BLOCK


def test_threads_are_split_only_while_both_compute() -> None:
    thread = Later()
    engine = Engine(thread=thread)
    engine.add(1, prompt_of(1, 40), 50)
    engine.step()
    assert engine.main.n_threads == 2
    engine.add(2, prompt_of(2, 500))
    engine.step()
    assert (engine.main.n_threads, engine.side.n_threads) == (1, 1)
    engine.core.abort(2)
    thread.compute()
    engine.step()
    assert engine.main.n_threads == 2


@pytest.mark.parametrize("window", [BLOCK, 256, 1000])
def test_sliding_windows_survive_the_move(window: int) -> None:
    engine = Engine(window=window)
    prompt = prompt_of(1, 1800)
    engine.ask(1, prompt)
    first = engine.ask(2, [*prompt[:1500], *prompt_of(2, 500)])
    assert engine.n_side > 0
    assert first.n_cached in (0, 1500)


def test_closing_waits_for_the_chunk_and_frees_the_context() -> None:
    engine = Engine()
    engine.core.close()
    engine.core.close()
    assert engine.side.is_closed
    assert engine.main.is_closed


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("window", [0, 256])
def test_random_work_is_exact(seed: int, window: int) -> None:
    rng = random.Random(seed)
    thread = Later()
    engine = Engine(thread=thread, window=window, pool_cells=3000, host_cache_bytes=60_000)
    known = [prompt_of(i, rng.randrange(200, 1200)) for i in range(4)]
    want: dict[int, list[int]] = {}
    cancelled: set[int] = set()
    for uid in range(30):
        base = rng.choice(known)
        cut = rng.randrange(50, len(base))
        tail = prompt_of(1000 + uid, rng.randrange(1, 150))
        shapes = [base, base[:cut] + tail, base + tail, base[:60] + base[cut:] + tail]
        prompt = rng.choice(shapes)
        known.append(prompt[:1300])
        want[uid] = answer(prompt, 12)
        engine.add(uid, prompt, 12, priority=rng.randrange(2))
        for _ in range(rng.randrange(12)):
            if thread.waiting and rng.random() < 0.6:
                thread.compute()
            engine.step()
        if rng.random() < 0.15 and uid in engine.core._by_uid:
            engine.core.cancel_hint(uid)
            engine.core.abort(uid)
            cancelled.add(uid)
        if rng.random() < 0.2:
            engine.core.idle_slice()
    while engine.core.has_work() or thread.waiting:
        if thread.waiting:
            thread.compute()
        engine.step()
    for uid, right in want.items():
        said = engine.said(uid)
        assert said == right[: len(said)], uid
        assert uid in cancelled or said == right, uid
        assert sum(item.finish is not None for item in engine.items[uid]) == 1


def test_tiny_prompts_never_take_the_lane_however_many_come() -> None:
    engine = Engine(parallel=8)
    for uid in range(40):
        engine.add(uid, prompt_of(uid, 4 + uid % 12), 30)
    engine.run()
    assert engine.n_side == 0
    assert all(engine.said(uid) == answer(prompt_of(uid, 4 + uid % 12), 30) for uid in range(40))


def test_the_lane_works_and_keeps_nothing_where_reuse_is_switched_off() -> None:
    engine = Engine(can_reuse=False, n_parked=0)
    prompt = prompt_of(1, 1000)
    for uid in (1, 2):
        engine.add(uid, prompt)
    engine.run()
    assert engine.said(1) == engine.said(2) == answer(prompt, 8)
    assert engine.n_side == 2 * 999
    assert [engine.items[uid][0].n_cached for uid in (1, 2)] == [0, 0]
    assert engine.core._prefix.host.n_bytes == 0


def test_long_prompts_in_the_lane_leave_the_slots_to_short_ones() -> None:
    engine = Engine(thread=Later(), parallel=2)
    for uid in range(5):
        engine.add(uid, prompt_of(uid, 2000))
    engine.step()
    assert len(engine.lane.members) == 2  # the others wait where callers take turns
    engine.add(9, prompt_of(9, 30))
    for _ in range(10):
        engine.step()
    assert engine.said(9) == answer(prompt_of(9, 30), 8)


def test_a_trimmed_history_is_shifted_even_where_it_could_be_computed_in_one_step() -> None:
    engine = Engine(budget=StepBudget(alone=512, beside=512))
    system, turns = prompt_of(1, 100), prompt_of(2, 380)
    engine.ask(1, [*system, *turns])
    first = engine.ask(2, [*system, *turns[80:], *prompt_of(3, 30)])
    assert first.n_cached == 400


def test_nobody_waits_for_the_work_of_somebody_less_important() -> None:
    engine = Engine(thread=Later())
    prompt = prompt_of(1, 1000)
    engine.add(1, [*prompt, 1], priority=5)
    engine.step()
    engine.add(2, [*prompt, 2], priority=0)
    engine.step()
    assert {s.uid for s in engine.lane.members} == {1, 2}
