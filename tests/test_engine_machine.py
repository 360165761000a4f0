"""The core under any order of events: Hypothesis plays the clients, the threads and the clock.

Over contexts that show every wrong cell as a wrong token, with pools too small for what is asked.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fake_executor import (
    BACK,
    EOG,
    FakeExecutor,
    FakeMemory,
    FakeVocab,
    NumberedMemory,
    SlidingMemory,
    answer,
)
from naiad.engine.base import CoreJob
from naiad.engine.core import CoreLimits, EngineCore
from naiad.engine.scheduler import StepBudget
from naiad.ipc.messages import StreamItem
from naiad.types import FinishReason, SamplingParams

N_CTX = 300
GREEDY = SamplingParams(temperature=0)
#: Conversations that prompts are cut from: two share a beginning, one is all the same token.
KNOWN = (
    [(7 * i * i + 3) % EOG for i in range(N_CTX)],
    [(7 * i * i + 3) % EOG if i < 150 else (5 * i) % EOG for i in range(N_CTX)],
    [11] * N_CTX,
)


class EngineMachine(RuleBasedStateMachine):
    """Whatever happens, each stream gets its own tokens, in order, and ends once."""

    n_cells = 420
    window = 0
    limits: dict[str, Any] = {}

    def __init__(self) -> None:
        super().__init__()
        self.memory = self.make_memory()
        self.executor = FakeExecutor(memory=self.memory)
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
        self.core = EngineCore(self.executor, FakeVocab(), CoreLimits(**limits | self.limits))
        self.want: dict[int, list[int]] = {}
        self.got: dict[int, list[StreamItem]] = {}
        self.cancelled: set[int] = set()
        self.hinted: set[int] = set()
        self.failed: set[int] = set()

    def make_memory(self) -> FakeMemory:
        return FakeMemory(self.n_cells)

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

    @rule(
        known=st.integers(0, 2),
        cut=st.integers(BACK + 1, N_CTX - 30),
        tail=st.lists(st.integers(0, EOG - 1), max_size=20),
        n=st.integers(1, 40),
        namespace=st.sampled_from(["", "", "", "other"]),
    )
    def submit(self, known: int, cut: int, tail: list[int], n: int, namespace: str) -> None:
        uid = len(self.want)
        prompt = KNOWN[known][:cut] + tail
        self.want[uid] = answer(prompt, min(n, N_CTX - len(prompt)))
        self.core.add(CoreJob(uid, tuple(prompt), n, GREEDY, namespace))

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
        for uid in self.hinted:
            self.core.abort(uid)
        self.cancelled |= self.hinted
        for _ in range(4000):
            if not self.core.has_work():
                break
            self.one_step()
        assert self.live() == [], "a livelock"
        for uid, items in self.got.items():
            tokens = [token for item in items for token in item.tokens]
            if uid not in self.cancelled | self.failed:
                assert (tokens, items[-1].finish) == (self.want[uid], FinishReason.LENGTH)
        for _ in range(100):
            if not self.core.idle_slice():
                break
        assert self.memory.n_used == 0, "cells are left behind"
        assert not self.core._chooser.uids
        assert not self.core._interrupts._hinted - self.cancelled
        self.core.close()


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


_SETTINGS = settings(
    max_examples=50,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
for machine in (EngineMachine, NumberedMachine, SlidingMachine, NoReuseMachine):
    machine.TestCase.settings = _SETTINGS

TestEngine = EngineMachine.TestCase
TestNumbered = NumberedMachine.TestCase
TestSliding = SlidingMachine.TestCase
TestNoReuse = NoReuseMachine.TestCase
