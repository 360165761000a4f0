"""Jobs that run alone: in a thread and a core of their own, one after another, beside the pool."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from naiad.engine.base import CoreJob
from naiad.engine.core import CoreLimits, EngineCore
from naiad.engine.journal import Journal
from naiad.engine.scheduler import StepBudget
from naiad.engine.solo import CoreWithSolo, Solo
from naiad.errors import EngineUnavailable
from naiad.ipc.messages import StreamItem
from naiad.types import FinishReason, SamplingParams
from patience import PATIENCE_S
from text_engine import TextExecutor, TextVocab, make_core, reference, tokens_of

pytestmark = pytest.mark.usefixtures("steady_clock")

PROMPT = tuple(range(20))
LIMITS = CoreLimits(n_ctx=512, pool_cells=4096, parallel=4, budget=StepBudget(alone=32, beside=8))


def job(uid: int, *, alone: bool = True, n: int = 12, priority: int = 0) -> CoreJob:
    params = SamplingParams(temperature=1.0, seed=uid % 10)
    return CoreJob(
        uid, PROMPT, n, params, priority=priority, is_deterministic=alone, wants_progress=True
    )


def small_core(_job: CoreJob) -> EngineCore:
    return make_core(TextExecutor(), parallel=1, can_reuse=False, n_parked=0)


class Driver:
    """The worker's loop: steps while there is work, else waits to be woken."""

    def __init__(
        self, make: Callable[[CoreJob], EngineCore] = small_core, journal: Journal | None = None
    ) -> None:
        self.shares: list[bool] = []
        self.core = CoreWithSolo(
            TextExecutor(),
            TextVocab(),
            LIMITS,
            journal,
            solo=Solo(make),
            share=self.shares.append,
        )
        self.woken: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.core.set_waker(lambda: self.woken.put(None))
        self.items: dict[int, list[StreamItem]] = {}

    def step(self) -> None:
        for item in self.core.step():
            self.items.setdefault(item.uid, []).append(item)

    def until_ended(self, *uids: int) -> None:
        while not all(self.items.get(uid, [None])[-1:] and self.is_over(uid) for uid in uids):
            if not self.core.has_work():
                self.woken.get(timeout=PATIENCE_S)
            self.step()

    def is_over(self, uid: int) -> bool:
        items = self.items.get(uid)
        return bool(items) and items[-1].finish is not None  # type: ignore[index]


@pytest.fixture
def driver() -> Iterator[Driver]:
    made = Driver()
    yield made
    made.core.close()
    made.core.close()


def test_jobs_that_run_alone_and_others_go_on_side_by_side(driver: Driver) -> None:
    jobs = [job(1), job(2, alone=False), job(3), job(4, alone=False)]
    for one in jobs:
        driver.core.add(one)
    driver.until_ended(1, 2, 3, 4)
    for one in jobs:
        wanted, finish = reference(PROMPT, 12, one.sampling)
        assert tokens_of(driver.items[one.uid]) == wanted
        assert driver.items[one.uid][-1].finish is finish
    assert set(driver.shares) >= {True}


def test_one_at_a_time_the_most_urgent_first() -> None:
    order: list[int] = []

    def make(one: CoreJob) -> EngineCore:
        order.append(one.uid)
        assert threading.current_thread().name == "naiad-solo"
        return small_core(one)

    driver = Driver(make)
    for one in (job(1), job(2, priority=5), job(3), job(4, priority=-1)):
        driver.core.add(one)
    driver.until_ended(1, 2, 3, 4)
    assert order == [1, 4, 3, 2]
    driver.core.close()


def test_who_waits_is_told_its_place() -> None:
    gate = threading.Event()

    def make(one: CoreJob) -> EngineCore:
        assert gate.wait(PATIENCE_S)
        return small_core(one)

    driver = Driver(make)
    for uid in (1, 2, 3):
        driver.core.add(job(uid))
    places = {item.uid: item.position for item in driver.core.progress()}
    assert places == {2: 1, 3: 2}
    driver.core.abort(2)
    driver.core.abort(99)
    driver.step()
    assert driver.items[2] == [StreamItem(2, 0, [], b"", FinishReason.CANCELLED)]
    gate.set()
    driver.until_ended(1, 3)
    assert tokens_of(driver.items[3]) == reference(PROMPT, 12, job(3).sampling)[0]
    driver.core.close()


def test_an_abort_ends_a_running_one_once(driver: Driver) -> None:
    driver.core.add(job(1, n=400))
    while not driver.items.get(1):
        if not driver.core.has_work():
            driver.woken.get(timeout=PATIENCE_S)
        driver.step()
    driver.core.cancel_hint(1)
    driver.core.cancel_hint(99)
    driver.core.abort(1)
    driver.until_ended(1)
    assert driver.items[1][-1].finish in (FinishReason.CANCELLED, FinishReason.STOP)
    driver.core.add(job(2))
    driver.until_ended(2)
    assert [item.seq for item in driver.items[1]] == list(range(len(driver.items[1])))


def test_one_without_room_ends_in_an_error_and_the_next_goes_on() -> None:
    def make(one: CoreJob) -> EngineCore:
        if one.uid == 1:
            raise EngineUnavailable("no memory for it", retry_after=5)
        return small_core(one)

    driver = Driver(make)
    driver.core.add(job(1))
    driver.core.add(job(2))
    driver.until_ended(1, 2)
    [item] = driver.items[1]
    assert (item.finish, item.error) == (
        FinishReason.ERROR,
        ("engine_unavailable", "no memory for it"),
    )
    assert tokens_of(driver.items[2])
    driver.core.close()


def test_a_defect_ends_the_worker_as_it_would_in_the_pool() -> None:
    def make(_job: CoreJob) -> EngineCore:
        raise ZeroDivisionError

    driver = Driver(make)
    driver.core.add(job(1))
    with pytest.raises(ZeroDivisionError):
        driver.until_ended(1)
    driver.core.close()


def test_closing_in_the_middle_waits_for_the_thread() -> None:
    driver = Driver()
    driver.core.add(job(1, n=480))
    driver.core.add(job(2))
    driver.core.close()
    assert "naiad-solo" not in {thread.name for thread in threading.enumerate()}


def test_the_journal_has_them_too(tmp_path: Path) -> None:
    driver = Driver(journal=Journal(tmp_path / "journal"))
    driver.core.add(job(1))
    driver.until_ended(1)
    driver.core.close()
    lines = [msgspec.json.decode(line) for line in (tmp_path / "journal").read_bytes().splitlines()]
    assert lines[0] == {"uid": 1, "prompt": list(PROMPT)}
    assert [t for line in lines[1:] for t in line["tokens"]] == tokens_of(driver.items[1])
