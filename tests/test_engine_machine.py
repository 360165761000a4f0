"""The core under any order of events: Hypothesis plays the clients, the threads and the clock.

Over contexts that show every wrong cell as a wrong token, with pools too small for what is asked.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fake_executor import (
    BACK,
    EOG,
    FakeExecutor,
    FakeMemory,
    FakeVocab,
    Later,
    NumberedMemory,
    OnTheSpot,
    SlidingMemory,
    answer,
)
from naiad.engine import core as core_module
from naiad.engine import intake as intake_module
from naiad.engine import lane as lane_module
from naiad.engine.base import CoreJob
from naiad.engine.core import CoreLimits, EngineCore
from naiad.engine.lane import Lane
from naiad.engine.scheduler import StepBudget
from naiad.ipc.messages import StreamItem
from naiad.types import FinishReason, SamplingParams

N_CTX = 300
GREEDY = SamplingParams(temperature=0)
#: Conversations that prompts are cut from: two share a beginning, one is all the same token, one
#: repeats itself as the answer will, two are the first with a piece dropped or inserted.
KNOWN = (
    [(7 * i * i + 3) % EOG for i in range(N_CTX)],
    [(7 * i * i + 3) % EOG if i < 150 else (5 * i) % EOG for i in range(N_CTX)],
    [11] * N_CTX,
    answer([1, 20, 40, 50], N_CTX),
    [(7 * i * i + 3) % EOG for i in (*range(20), *range(70, N_CTX + 50))],
    [(7 * i * i + 3) % EOG for i in (*range(30), *range(900, 920), *range(30, N_CTX - 20))],
)


class Clock:
    """Time that passes when somebody looks, so that a history is the same each time.

    It passes as Hypothesis says: a step may take a second, and what comes after it no time at all.
    """

    def __init__(self) -> None:
        self._now = 1000.0
        self.ticks = itertools.cycle([0.001])  # seconds, one for each look

    def monotonic(self) -> float:
        self._now += next(self.ticks)
        return self._now

    perf_counter = monotonic


class EngineMachine(RuleBasedStateMachine):
    """Whatever happens, each stream gets its own tokens, in order, and ends once."""

    n_cells = 420
    window = 0
    limits: dict[str, Any] = {}

    def __init__(self) -> None:
        super().__init__()
        self.clock, self.patch = Clock(), pytest.MonkeyPatch()
        for module in (core_module, intake_module, lane_module):
            self.patch.setattr(module, "time", self.clock)
        self.memory = self.make_memory()
        self.executor = self.make_executor()
        limits: dict[str, Any] = {
            "n_ctx": N_CTX,
            "pool_cells": self.n_cells,
            "parallel": 3,
            "n_parked": 2,
            "host_cache_bytes": 5000,
            "window": self.window,
            "budget": StepBudget(alone=64, beside=24),
            "check_integrity": True,
        }
        chosen, lane = CoreLimits(**limits | self.limits), self.make_lane()
        self.core = EngineCore(self.executor, FakeVocab(), chosen, lane=lane)
        self.prepare()
        self.want: dict[int, list[int]] = {}
        self.got: dict[int, list[StreamItem]] = {}
        self.cancelled: set[int] = set()
        self.hinted: set[int] = set()
        self.failed: set[int] = set()

    def make_memory(self) -> FakeMemory:
        return FakeMemory(self.n_cells)

    def make_executor(self) -> FakeExecutor:
        return FakeExecutor(memory=self.memory)

    def make_lane(self) -> Lane | None:
        return None

    def prepare(self) -> None:
        """Change the core before anything happens."""

    def add(self, job: CoreJob) -> None:
        self.core.add(job)
        self.core._by_uid[job.uid].since = self.clock.monotonic()

    @rule(ticks=st.lists(st.sampled_from([0.0, 1e-6, 1e-3, 2.0]), min_size=1, max_size=5))
    def the_machine_is_busy_otherwise(self, ticks: list[float]) -> None:
        self.clock.ticks = itertools.cycle(ticks)

    def live(self) -> list[int]:
        ended = {uid for uid, items in self.got.items() if items[-1].finish}
        return sorted(self.want.keys() - ended)

    def one_step(self) -> None:
        for item in self.core.step():
            items = self.got.setdefault(item.uid, [])
            assert item.seq == len(items), "a frame is missing or came twice"
            assert not items or not items[-1].finish, "something came after the end"
            items.append(item)
            if item.finish is FinishReason.ERROR:
                self.failed.add(item.uid)
        if isinstance(self.memory, SlidingMemory):
            for sequence in self.core._running:
                self.memory.forget(sequence.slot)
            for parked in self.core._prefix.parked:
                self.memory.forget(parked.slot)

    def go_on(self) -> bool:
        """False: there is nothing to do."""
        has_work = self.core.has_work()
        if has_work:
            self.one_step()
        return has_work

    @rule(
        known=st.integers(0, len(KNOWN) - 1),
        cut=st.integers(BACK + 1, N_CTX - 30),
        tail=st.lists(st.integers(0, EOG - 1), max_size=20),
        n=st.integers(1, 40),
        namespace=st.sampled_from(["", "", "", "other"]),
    )
    def submit(self, known: int, cut: int, tail: list[int], n: int, namespace: str) -> None:
        uid = len(self.want)
        prompt = KNOWN[known][:cut] + tail
        self.want[uid] = answer(prompt, min(n, N_CTX - len(prompt)))
        self.add(CoreJob(uid, tuple(prompt), n, GREEDY, namespace))

    @rule(n=st.integers(1, 12))
    def step(self, n: int) -> None:
        for _ in range(n):
            self.one_step()

    @precondition(lambda self: self.want)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        """Any uid that ever was: the core may have ended it long ago."""
        uid = data.draw(st.sampled_from(sorted(self.want)))
        self.core.abort(uid)
        self.hinted.discard(uid)
        self.cancelled.add(uid)

    @precondition(lambda self: self.live())
    @rule(data=st.data(), during=st.booleans())
    def hint(self, data: st.DataObject, during: bool) -> None:
        """The other thread knows already; the command comes later."""
        uid = data.draw(st.sampled_from(self.live()))
        self.hinted.add(uid)
        if not during:
            self.core.cancel_hint(uid)
            return
        self.executor.during = lambda: self.core.cancel_hint(uid)
        self.one_step()
        self.executor.during = lambda: None
        self.core.cancel_hint(uid)

    @precondition(lambda self: self.hinted)
    @rule()
    def commands_arrive(self) -> None:
        for uid in sorted(self.hinted):
            self.core.abort(uid)
        self.cancelled |= self.hinted
        self.hinted.clear()

    @precondition(lambda self: not self.core.has_work())
    @rule(n=st.integers(1, 5))
    def idle(self, n: int) -> None:
        for _ in range(n):
            self.core.idle_slice()

    @rule()
    def numbers_go_bad(self) -> None:
        self.executor.force_nan = True
        self.one_step()
        self.executor.force_nan = False

    @invariant()
    def every_token_is_right(self) -> None:
        for uid, items in self.got.items():
            tokens = [token for item in items for token in item.tokens]
            assert tokens == self.want[uid][: len(tokens)], f"stream {uid}"

    @invariant()
    def the_books_agree(self) -> None:
        self.core.check_integrity()
        assert self.memory.n_used <= self.n_cells

    @invariant()
    def no_work_means_everyone_has_ended(self) -> None:
        if not self.core.has_work():
            assert self.live() == []

    def teardown(self) -> None:
        try:
            self.come_to_rest()
        finally:
            self.patch.undo()

    def come_to_rest(self) -> None:
        for uid in self.hinted:
            self.core.abort(uid)
        self.cancelled |= self.hinted
        for _ in range(4000):
            if not self.go_on():
                break
        assert self.live() == [], "a livelock"
        for uid, items in self.got.items():
            tokens = [token for item in items for token in item.tokens]
            if uid not in self.cancelled | self.failed:
                assert (tokens, items[-1].finish) == (self.want[uid], FinishReason.LENGTH)
        for _ in range(100):
            if not self.core.idle_slice():
                break
        self.check_at_rest()
        assert not self.core._chooser.uids
        assert not self.core._interrupts._hinted - self.cancelled
        self.core.close()

    def check_at_rest(self) -> None:
        assert self.memory.n_used == 0, "cells are left behind"


class NumberedMachine(EngineMachine):
    """Cells have places, so streams get stranded and are moved."""

    n_cells = 1100
    limits = {"parallel": 5, "n_parked": 5, "host_cache_bytes": 0}

    def make_memory(self) -> FakeMemory:
        return NumberedMemory(self.n_cells)


class SlidingMachine(EngineMachine):
    """Sliding layers that give away what nobody can look at, after every step."""

    n_cells = 700
    window = 130

    def make_memory(self) -> FakeMemory:
        return SlidingMemory(self.n_cells, self.window)


class NoReuseMachine(EngineMachine):
    limits = {"can_reuse": False, "n_parked": 0}


class DraftMachine(EngineMachine):
    """Guesses wherever there are any, since a step costs a thousand tokens."""

    limits = {"drafts": True}

    def prepare(self) -> None:
        cost = self.core._cost
        cost._decode_s = 1.0
        cost.saw_decode = lambda *_: None  # type: ignore[method-assign]
        cost.saw_prefill = lambda *_, **__: None  # type: ignore[method-assign]


class SlidingDraftMachine(DraftMachine, SlidingMachine):
    """What a guess took from the window is not there when the guess was wrong."""


class LaneMachine(DraftMachine):
    """Longer prompts are computed on the side, on the spot."""

    limits = {"drafts": True, "can_shift": True, "host_cache_bytes": 20_000}

    def make_lane(self) -> Lane:
        self.thread = self.make_thread()
        self.side = FakeExecutor(memory=self.make_memory())
        return Lane(self.side, self.n_cells, window=self.window, threads=2, thread=self.thread)

    def make_thread(self) -> OnTheSpot | Later:
        return OnTheSpot()


class LateLaneMachine(LaneMachine):
    """The lane's chunks are done when Hypothesis says so."""

    def make_thread(self) -> Later:
        return Later()

    def compute(self) -> bool:
        assert isinstance(self.thread, Later)
        if self.thread.waiting:
            self.thread.compute()
            return True
        return False

    @rule()
    def the_lane_computes(self) -> None:
        self.compute()

    @rule()
    def the_lane_is_interrupted(self) -> None:
        """By a hint that comes while it computes."""
        for uid in [s.uid for s in self.core._intake.in_lane]:
            self.side.during = lambda uid=uid: self.core.cancel_hint(uid)  # type: ignore[misc]
            self.compute()
            self.side.during = lambda: None
            self.hinted.add(uid)
            self.core.cancel_hint(uid)
            return

    @invariant()
    def no_work_means_everyone_has_ended(self) -> None:
        """Or that nothing can be done before the lane is done."""
        if not self.core.has_work():
            assert self.live() == [] or self.core._lane.is_busy  # type: ignore[union-attr]

    def go_on(self) -> bool:
        return self.compute() | super().go_on()


class SlidingLaneMachine(SlidingMachine, LaneMachine):
    limits = LaneMachine.limits


_SETTINGS = settings(
    max_examples=40,
    stateful_step_count=40,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
for machine in (
    EngineMachine,
    NumberedMachine,
    SlidingMachine,
    NoReuseMachine,
    DraftMachine,
    SlidingDraftMachine,
    LaneMachine,
    LateLaneMachine,
    SlidingLaneMachine,
):
    machine.TestCase.settings = _SETTINGS

TestEngine = EngineMachine.TestCase
TestNumbered = NumberedMachine.TestCase
TestSliding = SlidingMachine.TestCase
TestNoReuse = NoReuseMachine.TestCase
TestDraft = DraftMachine.TestCase
TestSlidingDraft = SlidingDraftMachine.TestCase
TestLane = LaneMachine.TestCase
TestLateLane = LateLaneMachine.TestCase
TestSlidingLane = SlidingLaneMachine.TestCase
