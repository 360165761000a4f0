"""Work behind the engine's back is done in time, also where nobody lets it run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from naiad.engine import write_behind
from naiad.engine.write_behind import WriteBehind
from patience import PATIENCE_S

#: As they are when no test has changed them.
SHIPPED = write_behind.REST_S, write_behind.PATIENT_S, write_behind.WITHIN_S
JOBS = [b"%d" % i for i in range(6)]


class Desk:
    """Does jobs, and remembers which thread did them."""

    def __init__(self) -> None:
        self.done: list[bytes] = []
        self.by: list[str] = []
        self.failures: list[Exception] = []
        self.n_prepared = 0
        self.behind = WriteBehind(self.do, self.prepare, self.failures.append)

    def do(self, job: bytes) -> None:
        self.done.append(job)
        self.by.append(threading.current_thread().name)

    def prepare(self) -> None:
        self.n_prepared += 1

    def add_all(self) -> None:
        for job in JOBS:
            self.behind.add(job)


class Starved:
    """Stands for a machine on which a thread that gave way gets no processor, until `feed`."""

    def __init__(self) -> None:
        self.arrived, self.fed = threading.Event(), threading.Event()

    def feed(self) -> None:
        self.fed.set()
        for thread in threading.enumerate():
            if thread.name == "naiad-disk-idle":
                thread.join(PATIENCE_S)

    def __call__(self) -> None:
        self.arrived.set()
        assert self.fed.wait(PATIENCE_S)


@pytest.fixture
def starved() -> Iterator[Starved]:
    made = Starved()
    yield made
    made.feed()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rest before the work begins; the times that follow are long unless a test says else."""
    monkeypatch.setattr(write_behind, "REST_S", 0.0)
    monkeypatch.setattr(write_behind, "PATIENT_S", PATIENCE_S)
    monkeypatch.setattr(write_behind, "WITHIN_S", 2 * PATIENCE_S)


def test_where_there_is_time_a_thread_that_gives_way_does_all_of_it() -> None:
    desk = Desk()
    desk.add_all()
    assert desk.behind.wait(PATIENCE_S)
    assert desk.done == JOBS
    assert set(desk.by) == {"naiad-disk-idle"}
    assert desk.n_prepared > len(JOBS)  # and once more at the end


def test_a_thread_that_never_runs_is_not_waited_for(
    starved: Starved, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_behind, "give_way", starved)
    monkeypatch.setattr(write_behind, "PATIENT_S", 0.01)
    monkeypatch.setattr(write_behind, "WITHIN_S", 0.02)
    desk = Desk()
    desk.add_all()
    assert desk.behind.wait(PATIENCE_S)
    assert (desk.done, set(desk.by)) == (JOBS, {"naiad-disk"})
    starved.feed()  # too late: there is nothing left for it
    assert desk.done == JOBS


def test_what_it_is_stuck_in_is_done_again_and_in_order(starved: Starved) -> None:
    desk = Desk()
    do = desk.do

    def stuck(job: bytes) -> None:
        if job == JOBS[2] and threading.current_thread().name == "naiad-disk-idle":
            starved()
        do(job)

    desk.behind = WriteBehind(stuck, desk.prepare, desk.failures.append)
    desk.add_all()
    assert starved.arrived.wait(PATIENCE_S)
    assert desk.behind.finish(PATIENCE_S)  # hurried: somebody else takes over at once
    assert desk.done == JOBS
    starved.feed()
    assert desk.done == [*JOBS, JOBS[2]]


def test_what_comes_late_is_spread_over_the_time_that_is_left(
    starved: Starved, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_behind, "give_way", starved)
    monkeypatch.setattr(write_behind, "PATIENT_S", 0.0)
    monkeypatch.setattr(write_behind, "WITHIN_S", 100.0)
    now = 5000.0
    monkeypatch.setattr(write_behind, "time", SimpleNamespace(monotonic=lambda: now))
    desk = Desk()
    waits: list[float] = []
    wait = desk.behind._wait

    def noted(until: object, timeout_s: float) -> bool:
        if threading.current_thread().name == "naiad-disk":
            waits.append(timeout_s)
            return False
        return wait(until, timeout_s)  # type: ignore[arg-type]

    monkeypatch.setattr(desk.behind, "_wait", noted)
    for job in JOBS:
        desk.behind._jobs.append((job, now))
    desk.behind.start()
    assert desk.behind.wait(PATIENCE_S)
    rest, *pauses = waits
    assert (rest, len(pauses)) == (0.0, len(JOBS) - 1)
    assert [round(pause * n / 100) for pause, n in zip(pauses, (5, 4, 3, 2, 1), strict=True)] == (
        [1] * 5
    )


def test_under_steady_work_each_job_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What came just now is not hurried because the first came long ago; what is late is."""
    monkeypatch.setattr(write_behind, "WITHIN_S", 100.0)
    behind = Desk().behind
    waits: list[float] = []
    monkeypatch.setattr(behind, "_wait", lambda until, timeout_s: waits.append(timeout_s))
    now = 5000.0
    monkeypatch.setattr(write_behind, "time", SimpleNamespace(monotonic=lambda: now))
    behind._writer, behind._began = threading.current_thread(), now - 1000
    for ages in ([0, 0], [90, 0], [0, 90], [200]):
        behind._jobs.clear()
        behind._jobs.extend((b"", now - age) for age in ages)
        behind._pause()
    assert [round(wait) for wait in waits] == [50, 10, 5, -100]


def test_a_late_failure_of_a_stuck_thread_is_not_told(starved: Starved) -> None:
    desk = Desk()

    def stuck(job: bytes) -> None:
        if threading.current_thread().name == "naiad-disk-idle":
            starved()
            raise OSError("long ago")
        desk.do(job)

    desk.behind = WriteBehind(stuck, desk.prepare, desk.failures.append)
    desk.add_all()
    assert starved.arrived.wait(PATIENCE_S)
    assert desk.behind.finish(PATIENCE_S)
    starved.feed()
    assert (desk.done, desk.failures) == (JOBS, [])


def test_a_job_that_fails_is_told_and_the_others_are_done() -> None:
    desk = Desk()

    def fail(job: bytes) -> None:
        if job == JOBS[1]:
            raise OSError("full")
        desk.do(job)

    desk.behind = WriteBehind(fail, desk.prepare, desk.failures.append)
    desk.add_all()
    assert desk.behind.wait(PATIENCE_S)
    assert desk.done == [JOBS[0], *JOBS[2:]]
    assert [str(failure) for failure in desk.failures] == ["full"]


def test_without_threads_it_is_told_and_a_second_one_may_be_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name in refused:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    refused = {"naiad-disk-idle"}
    desk = Desk()
    desk.add_all()
    assert desk.behind.finish(PATIENCE_S)
    assert (desk.done, desk.failures) == (JOBS, [])
    refused = {"naiad-disk"}
    desk.behind.add(b"more")
    assert [str(failure) for failure in desk.failures] == ["can't start new thread"]
    refused = set()
    desk.behind.start()
    assert desk.behind.wait(PATIENCE_S)
    assert desk.done == [*JOBS, b"more"]


def test_nothing_to_do_is_done_and_prepare_is_called_when_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(write_behind, "REST_S", PATIENCE_S)  # so that it is hurried in its rest
    desk = Desk()
    assert desk.behind.finish(0)
    assert desk.n_prepared == 0
    desk.behind.start()
    assert desk.behind.finish(PATIENCE_S)
    assert (desk.n_prepared, desk.done) == (1, [])


def test_what_is_promised_of_a_crash_is_what_is_waited_for() -> None:
    """A conversation is on disk five seconds after its last token, the writing itself included."""
    rest_s, patient_s, within_s = SHIPPED
    assert rest_s < patient_s < within_s <= 4
