"""Which generation an abort means: the race of Stop, hang-up and the next stream."""

from __future__ import annotations

import itertools
from contextlib import ExitStack

import pytest

from fakes import ALICE, request
from naiad import types
from naiad.service.registry import CREDIT_S, Entry, Registry
from naiad.types import Caller, Usage

BOB = Caller("bob")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Running:
    """A generation in flight, and how it can end."""

    def __init__(self, registry: Registry, caller: Caller = ALICE, handle: str | None = None):
        self._stack = ExitStack()
        self.entry: Entry = self._stack.enter_context(registry.enter(caller, handle))
        self.n_stopped = 0
        self.entry.attach(self._count)

    def _count(self) -> None:
        self.n_stopped += 1

    def hang_up(self) -> None:
        self._stack.close()

    def finish(self) -> None:
        self.entry.is_finished = True
        self._stack.close()


def test_a_caller_sees_what_the_engine_has_accepted_of_its_own() -> None:
    registry = Registry()
    mine, waiting, other = Running(registry), Running(registry), Running(registry, BOB)
    told = types.Running(request(), Usage(1, 2))
    mine.entry.running = other.entry.running = lambda: told
    assert registry.running(ALICE) == [told]
    mine.finish()
    assert registry.running(ALICE) == []
    for one in (waiting, other):
        one.finish()
    assert registry.running(BOB) == []


def test_the_race_of_stop_two_hundred_times() -> None:
    """Hang-up, abort and the next stream in every order, the same caller all the time."""
    orders = [
        order
        for order in itertools.permutations(("hang_up", "abort", "next"))
        if order != ("next", "next")
    ]
    registry = Registry(Clock())
    cut_short = 0
    current = Running(registry)
    for i in range(200):
        following: Running | None = None
        for step in orders[i % len(orders)]:
            if step == "hang_up":
                current.hang_up()
            elif step == "abort":
                assert registry.abort(ALICE, None)
            else:
                following = Running(registry)
        assert following is not None
        cut_short += following.entry.is_aborted
        current = following
    current.finish()
    assert cut_short == 0
    assert len(registry) == 0


def test_an_abort_without_a_handle_takes_the_oldest_one_only() -> None:
    registry = Registry()
    named, first, second = Running(registry, handle="h"), Running(registry), Running(registry)
    assert registry.abort(ALICE, None)
    assert [g.n_stopped for g in (named, first, second)] == [0, 1, 0]
    assert registry.abort(ALICE, None), "the aborted one is still there, but is not hit again"
    assert [g.n_stopped for g in (named, first, second)] == [0, 1, 1]
    assert not registry.abort(ALICE, None)


def test_an_abort_by_handle_takes_all_of_that_handle() -> None:
    registry = Registry()
    first, second, other = (Running(registry, handle=h) for h in ("h", "h", "x"))
    assert registry.abort(ALICE, "h")
    assert [g.n_stopped for g in (first, second, other)] == [1, 1, 0]
    assert not registry.abort(ALICE, "unknown")


def test_callers_cannot_touch_each_other() -> None:
    registry = Registry()
    hers = Running(registry, ALICE, "h")
    keyless = Running(registry, ALICE)
    hers.entry.pieces.append("secret")
    assert not registry.abort(BOB, "h")
    assert not registry.abort(BOB, None)
    assert registry.partial_text(BOB, "h") == ""
    keyless.hang_up()
    his = Running(registry, BOB)
    assert registry.abort(BOB, None), "her hang-up does not pay for his abort"
    assert (hers.n_stopped, his.n_stopped) == (0, 1)


def test_each_hang_up_pays_for_one_abort() -> None:
    registry = Registry(Clock())
    Running(registry).hang_up()
    Running(registry).hang_up()
    following = Running(registry)
    assert registry.abort(ALICE, None)
    assert registry.abort(ALICE, None)
    assert following.n_stopped == 0
    assert registry.abort(ALICE, None)
    assert following.n_stopped == 1


@pytest.mark.parametrize(("after_s", "n_stopped"), [(CREDIT_S - 0.1, 0), (CREDIT_S + 0.1, 1)])
def test_a_hang_up_pays_for_a_short_time_only(after_s: float, n_stopped: int) -> None:
    clock = Clock()
    registry = Registry(clock)
    Running(registry).hang_up()
    following = Running(registry)
    clock.now += after_s
    assert registry.abort(ALICE, None)
    assert following.n_stopped == n_stopped


def test_ends_that_pay_for_nothing() -> None:
    registry = Registry(Clock())
    Running(registry).finish()
    Running(registry, handle="h").hang_up()
    aborted = Running(registry)
    assert registry.abort(ALICE, None)
    aborted.hang_up()
    with pytest.raises(ValueError, match="refused"), registry.enter(ALICE, None):
        raise ValueError("refused")
    assert not registry.abort(ALICE, None)


def test_an_abort_before_there_is_work_is_carried_out_later() -> None:
    registry = Registry()
    stopped: list[int] = []
    with registry.enter(ALICE, "h") as entry:
        assert registry.abort(ALICE, "h")
        entry.attach(lambda: stopped.append(1))
    assert stopped == [1]


def test_partial_text_is_that_of_the_oldest_under_the_handle() -> None:
    registry = Registry()
    first, second = Running(registry, handle="h"), Running(registry, handle="h")
    first.entry.pieces += ["a", "b"]
    second.entry.pieces += ["c"]
    assert registry.partial_text(ALICE, "h") == "ab"
    assert registry.partial_text(ALICE, None) == ""
    first.finish()
    assert registry.partial_text(ALICE, "h") == "c"


def test_ids_are_ours_and_long() -> None:
    registry = Registry()
    ids = {Running(registry, handle="same").entry.id for _ in range(100)}
    assert len(ids) == 100
    assert all(len(name) == 32 for name in ids)
