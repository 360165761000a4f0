"""Progress in the worker: what is worth telling, when it is sent, what the scripted core says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fakes import script
from naiad.engine.base import CoreJob, ReportsProgress
from naiad.engine.reporting import CacheReporter, ProgressReporter
from naiad.ipc.messages import (
    Accepted,
    CacheTold,
    Progressed,
    ProgressItem,
    StepDone,
    StreamItem,
    Submit,
)
from naiad.testing.scripted import ScriptedCore, encode
from naiad.types import CacheCounts, FinishReason, SamplingParams
from test_worker import FakeBackend, FakeCore, Front

SAMPLING = SamplingParams(ignore_eos=True)


def job(uid: int, prompt: str = "hello", *, asks: bool = True, **fields: Any) -> CoreJob:
    return CoreJob(uid, tuple(encode(prompt)), 3, SAMPLING, wants_progress=asks, **fields)


class TellingCore(FakeCore):
    """A core that says whatever the test has put into `says`; counts how often it was asked.

    n_silent: steps that make nothing, before those that do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.says: list[ProgressItem] = []
        self.n_asked = 0
        self.n_silent = 0
        self.added: list[CoreJob] = []

    def add(self, job: CoreJob) -> None:
        super().add(job)
        self.added.append(job)

    def step(self) -> list[StreamItem]:
        if self.n_silent > 0:
            self.n_silent -= 1
            return []
        return super().step()

    def progress(self) -> list[ProgressItem]:
        self.n_asked += 1
        return self.says


WAITING = ProgressItem(1, 2, 0, 5)


class TestReporter:
    def test_only_what_changed_is_news(self) -> None:
        core = TellingCore()
        reporter = ProgressReporter(core)
        reporter.watch(job(1))
        core.says = [WAITING]
        assert reporter.news([]) == [WAITING]
        assert reporter.news([]) == []
        core.says = [ProgressItem(1, None, 3, 5)]
        assert reporter.news([]) == core.says

    def test_nothing_is_told_after_the_first_item(self) -> None:
        core = TellingCore()
        reporter = ProgressReporter(core)
        reporter.watch(job(1))
        reporter.watch(job(2))
        core.says = [WAITING, ProgressItem(2, None, 3, 5)]
        assert reporter.news([StreamItem(1, 0, [7], b"x")]) == core.says[1:]
        assert reporter.news([StreamItem(2, 0, [], b"", FinishReason.CANCELLED)]) == []
        assert reporter.news([]) == []

    def test_a_core_is_asked_only_while_somebody_wants_to_know(self) -> None:
        core = TellingCore()
        reporter = ProgressReporter(core)
        reporter.watch(job(1, asks=False))
        core.says = [WAITING]
        assert reporter.news([]) == []
        assert core.n_asked == 0

    def test_a_core_that_cannot_tell_is_left_alone(self) -> None:
        reporter = ProgressReporter(FakeCore())
        reporter.watch(job(1))
        assert reporter.news([]) == []


class CountingCore(FakeCore):
    """Saves a state in each idle slice, and reuses one for each job."""

    n_used = 0
    n_saved = 0

    def add(self, job: CoreJob) -> None:
        super().add(job)
        self.n_used += 1

    def idle_slice(self) -> bool:
        self.n_saved += super().idle_slice()
        return self.num_idle > 0

    def cache_counts(self) -> CacheCounts:
        return CacheCounts(n_from_memory=self.n_used, n_saved=self.n_saved)


class TestCache:
    def test_it_is_told_of_when_a_stream_has_ended_and_before_the_worker_rests(self) -> None:
        backend = FakeBackend()
        backend.core = core = CountingCore()
        core.num_idle = 3
        front = Front(lambda progress: backend).ready()
        assert front.next(CacheTold).counts == CacheCounts(n_saved=3)
        front.send(Submit(9, "ab", 2, SAMPLING))
        front.next(Accepted)
        assert [front.next(StepDone).items[0].seq for _ in range(2)] == [0, 1]
        assert front.next(CacheTold).counts == CacheCounts(n_saved=3, n_from_memory=1)
        front.end()

    def test_what_has_not_changed_is_not_told_and_who_keeps_nothing_is_not_asked(self) -> None:
        core = CountingCore()
        reporter = CacheReporter(core)
        assert reporter.news() is None
        core.n_saved = 1
        assert reporter.news() == CacheCounts(n_saved=1)
        assert reporter.news() is None
        assert CacheReporter(FakeCore()).news() is None


class TestWorker:
    @pytest.fixture
    def core(self) -> TellingCore:
        return TellingCore()

    @pytest.fixture
    def front(self, core: TellingCore) -> Iterator[Front]:
        backend = FakeBackend()
        backend.core = core
        front = Front(lambda progress: backend).ready()
        yield front
        front.end()

    def submit(self, front: Front, *, asks: bool) -> None:
        front.send(Submit(9, "ab", 2, SAMPLING, "mine", -3, "ann", asks))
        front.next(Accepted)

    def test_news_has_a_frame_of_its_own_and_is_told_once(
        self, front: Front, core: TellingCore
    ) -> None:
        core.says = [ProgressItem(9, 4, 0, 2), ProgressItem(10, 0, 0, 2)]
        core.n_silent = 3
        self.submit(front, asks=True)
        assert front.next(Progressed).items == core.says[:1]
        assert [front.next(StepDone).items[0].seq for _ in range(2)] == [0, 1]
        assert core.n_asked == 3

    def test_tokens_do_not_wait_for_news(self, front: Front, core: TellingCore) -> None:
        core.says = [ProgressItem(9, 4, 0, 2)]
        self.submit(front, asks=True)
        assert [front.next(StepDone).items[0].seq for _ in range(2)] == [0, 1]
        assert core.n_asked == 0

    def test_who_does_not_ask_is_told_nothing(self, front: Front, core: TellingCore) -> None:
        core.says = [ProgressItem(9, 4, 0, 2)]
        core.n_silent = 3
        self.submit(front, asks=False)
        front.next(StepDone)
        assert core.n_asked == 0

    def test_the_core_learns_who_asks_and_how_urgently(
        self, front: Front, core: TellingCore
    ) -> None:
        self.submit(front, asks=True)
        front.next(StepDone)
        (added,) = core.added
        assert (added.priority, added.caller, added.wants_progress) == (-3, "ann", True)


def core(parallel: int = 1) -> ScriptedCore:
    return ScriptedCore(parallel, rate=0)


class TestScriptedCore:
    def test_it_says_who_waits_where(self) -> None:
        scripted = core()
        assert isinstance(scripted, ReportsProgress)
        scripted.add(job(1, script(["pause", 1000])))
        for uid in (2, 3):
            scripted.add(job(uid))
        scripted.add(job(4, asks=False))
        scripted.step()
        waiting = [item for item in scripted.progress() if item.uid != 1]
        assert waiting == [ProgressItem(2, 0, 0, 5), ProgressItem(3, 1, 0, 5)]

    def test_it_says_how_far_a_prompt_is(self) -> None:
        scripted = core()
        prompt = script(["prefill", 4], ["emit", 2])
        scripted.add(job(1, prompt))
        n_done = []
        while not scripted.step():
            n_done += [item.n_done for item in scripted.progress()]
        n_total = len(encode(prompt))
        assert n_done == [n_total * step // 4 for step in (1, 2, 3, 4)]
        assert scripted.progress() == []

    def test_lower_priorities_first_and_callers_take_turns(self) -> None:
        scripted = core()
        scripted.add(job(0))
        scripted.step()
        for uid in (1, 2, 3):
            scripted.add(job(uid, caller="ann"))
        scripted.add(job(4, caller="bob"))
        scripted.add(job(5, caller="bob", priority=1))
        scripted.add(job(6, caller="bob", priority=-1))
        ends = []
        while scripted.has_work():
            ends += [item.uid for item in scripted.step() if item.finish]
        assert ends == [0, 6, 1, 4, 2, 3, 5]

    def test_an_abort_in_the_line_leaves_it(self) -> None:
        scripted = core()
        scripted.add(job(1, script(["pause", 1000])))
        scripted.add(job(2))
        scripted.add(job(3))
        scripted.step()
        scripted.abort(2)
        assert [item.finish for item in scripted.step()] == [FinishReason.CANCELLED]
        assert [(i.uid, i.position) for i in scripted.progress() if i.uid != 1] == [(3, 0)]
