"""Which way a request takes into the pool: waiting, lane, or straight in. No engine."""

from __future__ import annotations

from typing import Any

import pytest

from fake_executor import FakeExecutor as Fake
from fake_executor import FakeMemory, Later
from naiad.engine.base import CoreJob
from naiad.engine.cost import StepCost
from naiad.engine.executor import State
from naiad.engine.host_cache import HostCache
from naiad.engine.intake import Intake, IntakeRules
from naiad.engine.lane import Lane
from naiad.engine.pool import Pool
from naiad.engine.prefix import PrefixCache
from naiad.engine.scheduler import StepBudget
from naiad.engine.sequence import NO_SLOT, Sequence
from naiad.types import SamplingParams

pytestmark = pytest.mark.usefixtures("steady_clock")


class Door:
    """An intake, and what came through it."""

    def __init__(self, *, has_lane: bool = True, **changes: Any) -> None:
        rules: dict[str, Any] = {
            "parallel": 3,
            "pool_cells": 2000,
            "can_reuse": True,
            "can_shift": False,
            "budget": StepBudget(alone=100, beside=100, target_s=0.08),
        }
        memory = FakeMemory(2000)
        self.pool = Pool(memory, 6)
        self.prefix = PrefixCache(self.pool, HostCache[State](1 << 20))
        self.cost = StepCost(0.001)
        self.lane = Lane(Fake(), 1500, thread=Later()) if has_lane else None
        self.running: list[Sequence] = []
        self.started: list[int] = []
        self.intake = Intake(
            IntakeRules(**rules | changes),
            self.pool,
            self.prefix,
            self.lane,
            self.cost,
            self.running,
            lambda sequence: self.started.append(sequence.uid),
        )
        self.memory = memory

    def come(self, uid: int, n: int, *, first: int = 0, **job: Any) -> Sequence:
        """A prompt of n tokens that shares none with those of another `first`."""
        tokens = tuple(first * 5000 + i for i in range(n))
        sequence = Sequence(CoreJob(uid, tokens, 8, SamplingParams(), **job))
        self.intake.line.add(sequence)
        self.intake.admit()
        return sequence

    def compute(self, sequence: Sequence, n: int) -> None:
        """As if steps had computed so much of it."""
        for position in range(sequence.computed, n):
            self.memory.append(sequence.slot, position, sequence.tokens[position])
        sequence.computed = n

    def decoding(self, uid: int, n: int = 20) -> Sequence:
        """One that runs and needs one token a step."""
        sequence = self.come(uid, n, first=uid)
        sequence.tokens += [1] * 9  # for a while already
        self.compute(sequence, len(sequence.tokens) - 1)
        return sequence

    def in_lane(self) -> list[int]:
        return [sequence.uid for sequence in self.intake.in_lane]

    def waiting(self) -> list[int]:
        return [sequence.uid for sequence in self.intake.line]


def test_a_short_prompt_goes_straight_in() -> None:
    door = Door()
    sequence = door.come(1, 80)
    assert (door.started, door.running, sequence.n_cached) == ([1], [sequence], 0)
    assert sequence.slot != NO_SLOT


@pytest.mark.parametrize(("n", "goes_to_lane"), [(101, False), (102, True)])
def test_more_than_a_step_alone_is_the_lanes(n: int, goes_to_lane: bool) -> None:
    door = Door()
    door.come(1, n)
    assert door.in_lane() == [1] * goes_to_lane


@pytest.mark.parametrize(("n", "goes_to_lane"), [(81, False), (82, True)])
def test_beside_streams_the_time_of_a_step_decides(n: int, goes_to_lane: bool) -> None:
    """0.08 s at a millisecond a token."""
    door = Door()
    door.decoding(9)
    door.come(1, n)
    assert door.in_lane() == [1] * goes_to_lane


def test_prompts_ahead_in_the_pool_count() -> None:
    door = Door()
    door.decoding(9)
    door.come(1, 60, first=1)
    door.come(2, 60, first=2)
    assert (door.started, door.in_lane()) == ([9, 1], [2])


def test_what_comes_together_goes_in_together_for_a_few_steps() -> None:
    """Four prompts of a step each, as long as a stream that has begun with them will wait."""
    door = Door(parallel=9)
    for uid in range(1, 7):
        door.come(uid, 90, first=uid)
    assert (door.started, door.in_lane()) == ([1, 2, 3, 4], [5, 6])


def test_a_few_tokens_are_never_worth_a_move() -> None:
    door = Door()
    door.come(1, 90, first=1)
    door.come(2, 17, first=2)
    assert door.started == [1, 2]


@pytest.mark.parametrize("has_lane", [True, False])
def test_what_the_lane_cannot_take_goes_straight_in(has_lane: bool) -> None:
    door = Door(has_lane=has_lane)
    door.come(1, 1600)
    assert door.started == [1]


def test_a_prompt_that_is_being_computed_is_waited_for_and_then_shared() -> None:
    door = Door()
    first = door.come(1, 90)
    second = door.come(2, 95)
    assert door.waiting() == [2]
    door.compute(first, 90)
    door.intake.admit()
    assert door.started == [1, 2]
    assert (second.computed, second.n_cached) == (90, 90)


def test_what_is_hardly_more_is_not_waited_for() -> None:
    door = Door()
    first = door.come(1, 30)
    door.compute(first, 20)
    door.come(2, 40)
    assert door.started == [1, 2]


def test_nobody_waits_for_another_namespace() -> None:
    door = Door()
    door.come(1, 45)
    door.come(2, 45, namespace="other")
    assert door.started == [1, 2]


def test_without_reuse_nobody_waits_and_nothing_is_shared() -> None:
    door = Door(can_reuse=False)
    first = door.come(1, 45)
    second = door.come(2, 45)
    assert (door.started, second.computed) == ([1, 2], 0)
    door.compute(first, 45)
    assert not door.pool.is_sharing(first.slot)


def test_slots_are_as_many_as_may_run() -> None:
    door = Door()
    for uid in range(1, 6):
        door.come(uid, 20, first=uid)
    assert door.started == [1, 2, 3]
    assert door.waiting() == [4, 5]
    assert not door.intake.lacks_room


def test_cells_are_kept_for_who_is_next() -> None:
    """The one behind would fit, but it would take the room that the first waits for."""
    door = Door(has_lane=False)
    door.decoding(1, 1500)
    door.come(2, 600, first=2)
    door.come(3, 20, first=3)
    assert (door.started, door.waiting()) == ([1], [2, 3])
    assert door.intake.lacks_room


def test_after_a_put_back_nobody_starts_before_somebody_leaves() -> None:
    door = Door()
    first, second = door.decoding(1), door.decoding(2)
    door.running.remove(second)
    door.intake.put_back(second)
    assert (second.slot, second.computed, second.n_held) == (NO_SLOT, 28, 28)
    door.come(3, 20, first=3)
    assert door.waiting() == [2, 3]
    door.running.remove(first)
    door.pool.free(first.slot)
    door.intake.left(first)
    door.intake.admit()
    assert door.started == [1, 2, 2, 3]
    assert second.computed == 28


def test_who_is_not_wanted_leaves_from_wherever_it_is() -> None:
    door = Door()
    lane, line = door.come(1, 900), door.come(2, 950)
    assert (door.in_lane(), door.waiting()) == ([1], [2])
    door.intake.withdraw(lane)
    door.intake.withdraw(line)
    assert (door.in_lane(), door.waiting()) == ([], [])
