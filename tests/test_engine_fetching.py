"""States are read from disk beside the steps of running streams, never in their way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fake_executor import FakeExecutor, FakeMemory, FakeVocab, OnTheSpot, answer
from fake_whole import WholeExecutor, WholeMemory
from naiad.engine import fetching
from naiad.engine.base import CoreJob
from naiad.engine.blocks import BLOCK, Entry
from naiad.engine.core import CoreLimits, EngineCore
from naiad.engine.executor import State
from naiad.engine.fetching import Fetcher
from naiad.engine.lane import Lane
from naiad.types import SamplingParams
from patience import PATIENCE_S

pytestmark = pytest.mark.usefixtures("steady_clock")

GREEDY = SamplingParams(temperature=0)
TALK = [1 + i % 50 for i in range(3 * BLOCK + 20)]
OTHER = [3, 9, 27, 18, 54]


class Shelf:
    """A store that outlives its cores; who reads waits for `gate`."""

    n_bytes = 0

    def __init__(self) -> None:
        self.kept: dict[bytes, tuple[Entry, State]] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.readers: list[threading.Thread] = []
        self.started: list[threading.Thread] = []  # to read, whether or not they did
        self.n_asked = threading.Semaphore(0)
        self.broken: set[bytes] = set()

    def root_key(self, namespace: str) -> bytes:
        return namespace.encode()

    def block_key(self, parent: bytes, tokens: list[int]) -> bytes:
        return b"%d" % hash((parent, *tokens))

    def entries(self) -> list[Entry]:
        return [entry for entry, _ in self.kept.values()]

    def has_room(self, n_bytes: int) -> bool:
        return True

    def fits(self, n_bytes: int) -> bool:
        return True

    def put(self, entry: Entry, state: State) -> bool:
        self.kept[entry.key] = entry, state
        return True

    def holds(self, key: bytes) -> bool:
        return key in self.kept

    def detach(self, key: bytes) -> bool:
        return key in self.kept

    def get(self, key: bytes) -> State | None:
        self.readers.append(threading.current_thread())
        self.n_asked.release()
        assert self.gate.wait(PATIENCE_S)
        found = self.kept.get(key)
        if found is None or key in self.broken:
            self.remove(key)
            return None
        return found[1]

    def remove(self, key: bytes) -> None:
        self.kept.pop(key, None)

    def replace(self, old: bytes, new: bytes) -> None:
        self.remove(old)

    def touch(self, key: bytes, start: int) -> None:
        """Nothing here goes by age."""


class Engine:
    def __init__(
        self, shelf: Shelf, kind: str, host_cache_bytes: int = 1 << 22, lane: Lane | None = None
    ) -> None:
        can_cut = kind == "blocks"
        memory = FakeMemory(4000) if can_cut else WholeMemory(4000)
        executor = FakeExecutor(memory=memory) if can_cut else WholeExecutor(memory=memory)
        limits: dict[str, Any] = {"n_ctx": 2000, "pool_cells": 4000, "parallel": 3, "n_parked": 3}
        self.core = EngineCore(
            executor,
            FakeVocab(),
            CoreLimits(
                **limits,
                host_cache_bytes=host_cache_bytes,
                can_cut=can_cut,
                can_shift=lane is not None,
                check_integrity=True,
            ),
            lane=lane,
            store=shelf,
        )
        self.said: dict[int, list[int]] = {}
        self.n_cached: dict[int, int] = {}

    def add(self, uid: int, prompt: list[int], n: int) -> None:
        self.said[uid] = []
        self.core.add(CoreJob(uid, tuple(prompt), n, GREEDY))

    def step(self) -> None:
        for item in self.core.step():
            self.said[item.uid] += item.tokens
            self.n_cached[item.uid] = item.n_cached

    def run(self) -> None:
        while self.core.has_work():
            self.step()
        while self.core.idle_slice():
            pass


@pytest.fixture(params=["blocks", "whole"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def empty_shelf(monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """Knows the threads that read."""
    shelf = Shelf()

    def in_a_thread(run: Callable[[], None]) -> None:
        shelf.started.append(threading.Thread(target=run, name="naiad-fetch", daemon=True))
        shelf.started[-1].start()

    monkeypatch.setattr(fetching, "in_a_thread", in_a_thread)
    return shelf


@pytest.fixture
def shelf(kind: str, empty_shelf: Shelf) -> Shelf:
    """Holds a conversation of an earlier life."""
    engine = Engine(empty_shelf, kind)
    engine.add(1, TALK, 10)
    engine.run()
    assert empty_shelf.kept
    return empty_shelf


NEXT = [*TALK, *answer(TALK, 10), 5, 6, 7]


def join_readers(shelf: Shelf) -> None:
    """Wait until all is read that was asked for, however late the threads begin."""
    for thread in shelf.started:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def steps_until(engine: Engine, uid: int) -> Iterator[int]:
    n = 0
    while uid not in engine.n_cached:
        yield n
        engine.step()
        n += 1


def test_streams_go_on_while_a_conversation_is_read(shelf: Shelf, kind: str) -> None:
    engine = Engine(shelf, kind)
    engine.add(1, OTHER, 200)
    engine.step()
    shelf.gate.clear()
    engine.add(2, NEXT, 10)
    for _ in range(30):
        engine.step()
    assert len(engine.said[1]) >= 30
    assert 2 not in engine.n_cached
    assert engine.core.progress() == []
    assert shelf.n_asked.acquire(timeout=PATIENCE_S)
    shelf.gate.set()
    for _ in steps_until(engine, 2):
        join_readers(shelf)
    assert threading.main_thread() not in shelf.readers
    assert all(not sequence.fetched for sequence in engine.core._running)
    assert engine.n_cached[2] >= len(TALK) + 9
    engine.run()
    assert engine.said == {1: answer(OTHER, 200), 2: answer(NEXT, 10)}
    counts = engine.core.cache_counts()
    assert (counts.n_from_disk, counts.n_from_memory) == (len(shelf.readers), 0)


def test_where_nobody_streams_it_is_read_at_once(shelf: Shelf, kind: str) -> None:
    engine = Engine(shelf, kind)
    engine.add(1, NEXT, 10)
    engine.run()
    assert set(shelf.readers) == {threading.main_thread()}
    assert engine.n_cached[1] >= len(TALK) + 9
    assert engine.said[1] == answer(NEXT, 10)


def test_a_first_token_that_all_share_is_not_read(shelf: Shelf, kind: str) -> None:
    engine = Engine(shelf, kind)
    prompt = [TALK[0], *OTHER, *[7] * 30]
    for uid in (1, 2):  # alone, and beside a stream
        engine.add(uid, [*prompt, uid], 100)
        engine.step()
    engine.run()
    assert shelf.readers == []
    assert engine.n_cached[1] == 0
    assert engine.said[2] == answer([*prompt, 2], 100)


def test_what_memory_cannot_hold_is_asked_for_once(shelf: Shelf, kind: str) -> None:
    """Then it is read when it is used, rather than again and again."""
    engine = Engine(shelf, kind, host_cache_bytes=0)
    engine.add(1, OTHER, 100)
    engine.step()
    engine.add(2, NEXT, 10)
    for _ in steps_until(engine, 2):
        join_readers(shelf)
    engine.run()
    n_states = len(set(shelf.readers) & {threading.main_thread()})
    assert n_states == 1
    assert engine.said == {1: answer(OTHER, 100), 2: answer(NEXT, 10)}
    assert engine.n_cached[2] >= len(TALK) + 9


def test_what_is_lost_on_disk_is_computed_and_counted(shelf: Shelf, kind: str) -> None:
    engine = Engine(shelf, kind)
    engine.add(1, OTHER, 100)
    engine.step()
    shelf.gate.clear()
    engine.add(2, NEXT, 10)
    engine.step()
    assert shelf.n_asked.acquire(timeout=PATIENCE_S)
    shelf.broken = {key for key, (entry, _) in shelf.kept.items() if entry.start == 0}
    shelf.gate.set()
    for _ in steps_until(engine, 2):
        join_readers(shelf)
    engine.run()
    assert engine.n_cached[2] == 0
    assert engine.core.cache_counts().n_lost == 1
    assert engine.said == {1: answer(OTHER, 100), 2: answer(NEXT, 10)}


def test_one_that_leaves_while_it_is_read_harms_nothing(shelf: Shelf, kind: str) -> None:
    engine = Engine(shelf, kind)
    engine.add(1, OTHER, 60)
    engine.step()
    shelf.gate.clear()
    engine.add(2, NEXT, 10)
    engine.step()
    engine.core.abort(2)
    engine.core._prefix.host.clear()
    shelf.gate.set()
    join_readers(shelf)
    engine.run()
    engine.core._prefix.host.check_integrity()
    engine.add(3, NEXT, 10)
    engine.run()
    assert engine.said[3] == answer(NEXT, 10)
    assert engine.said[1] == answer(OTHER, 60)


@pytest.mark.parametrize("moment", ["step", "idle"])
def test_what_nobody_wants_any_more_is_taken_into_the_bound(
    shelf: Shelf, kind: str, moment: str
) -> None:
    engine = Engine(shelf, kind)
    engine.add(1, OTHER, 60)
    engine.step()
    engine.add(2, NEXT, 10)
    engine.step()
    engine.core.abort(2)
    join_readers(shelf)
    if moment == "step":
        engine.step()
    else:
        engine.core.abort(1)
        engine.core.idle_slice()
    host = engine.core._prefix.host
    assert not host._fetcher.take()
    assert host.counts.n_from_disk == len(shelf.readers)


def test_reads_for_one_that_left_are_not_begun(shelf: Shelf, kind: str) -> None:
    """Those that another waits for as well are."""
    other = [*OTHER, *TALK]
    engine = Engine(shelf, kind)
    engine.add(1, other, 10)
    engine.run()
    again = Engine(shelf, kind)
    again.add(1, OTHER, 200)
    again.step()
    shelf.gate.clear()
    again.add(2, [*other, *answer(other, 10), 1], 10)
    again.step()
    assert shelf.n_asked.acquire(timeout=20)  # the first of them is being read
    again.add(3, NEXT, 10)
    again.add(4, [*NEXT, 8], 10)
    again.step()
    again.core.abort(2)
    again.core.abort(3)
    shelf.gate.set()
    for _ in steps_until(again, 4):
        join_readers(shelf)
    again.run()
    n_for_talk = 4 if kind == "blocks" else 1
    assert len(shelf.readers) == 1 + n_for_talk
    assert again.said[4] == answer([*NEXT, 8], 10)


def test_pieces_of_a_trimmed_history_are_read_beside_the_steps(empty_shelf: Shelf) -> None:
    shelf = empty_shelf
    story = [1 + (i * i + i // 7) % 50 for i in range(8 * BLOCK)]
    first = Engine(shelf, "blocks")
    first.add(1, story, 10)
    first.run()
    side = FakeExecutor(memory=FakeMemory(4000))
    engine = Engine(shelf, "blocks", lane=Lane(side, 4000, threads=2, thread=OnTheSpot()))
    engine.add(1, OTHER, 400)
    engine.step()
    shelf.gate.clear()
    trimmed = [*story[: BLOCK // 2], *story[3 * BLOCK :], 5, 6]
    engine.add(2, trimmed, 10)
    for _ in range(30):
        engine.step()
    assert 2 not in engine.n_cached
    shelf.gate.set()
    for _ in steps_until(engine, 2):
        join_readers(shelf)
    assert threading.main_thread() not in shelf.readers
    assert engine.n_cached[2] > len(trimmed) * 3 // 4
    engine.run()
    assert engine.said == {1: answer(OTHER, 400), 2: answer(trimmed, 10)}


# -- the fetcher --------------------------------------------------------------------------------


def test_each_is_read_once_in_order_and_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def note(key: int) -> int:
        read.append(key)
        return key * key

    runs: list[Any] = []
    monkeypatch.setattr(fetching, "in_a_thread", runs.append)
    fetcher = Fetcher(note)
    fetcher.ask([])
    assert (runs, fetcher.take()) == ([], [])
    fetcher.ask([3, 1])
    fetcher.ask([1, 2])
    assert len(runs) == 1
    assert fetcher.is_coming({2})
    runs[0]()
    assert fetcher.is_coming({2})  # not taken yet
    assert fetcher.take() == [(3, 9), (1, 1), (2, 4)]
    assert not fetcher.is_coming({1, 2, 3})
    fetcher.ask([3, 4, 5])
    fetcher.drop([4, 7])
    assert [fetcher.is_coming({key}) for key in (3, 4, 5)] == [True, False, True]
    runs[1]()
    assert (fetcher.take(), read) == ([(3, 9), (5, 25)], [3, 1, 2, 3, 5])


def test_without_threads_nothing_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(run: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(fetching, "in_a_thread", refuse)
    fetcher = Fetcher(str)
    fetcher.ask([1, 2])
    assert not fetcher.is_coming({1, 2})
    monkeypatch.setattr(fetching, "in_a_thread", lambda run: run())
    fetcher.ask([1])
    assert fetcher.take() == [(1, "1")]


def test_a_read_that_fails_is_a_loss_and_the_next_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def read(key: int) -> str:
        if key == 1:
            raise MemoryError
        return str(key)

    monkeypatch.setattr(fetching, "in_a_thread", lambda run: run())
    fetcher = Fetcher(read)
    fetcher.ask([1, 2])
    assert fetcher.take() == [(1, None), (2, "2")]
    assert not fetcher.is_coming({1, 2})
    fetcher.ask([3])
    assert fetcher.take() == [(3, "3")]
    assert "MemoryError" in caplog.text
