"""Progress on its way through the front: the mailbox, the table, and a real worker's frames."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from fakes import script
from naiad.client.base import Job, TokenBatch
from naiad.client.launch import in_thread
from naiad.client.stream import Stream
from naiad.client.table import StreamTable
from naiad.config import EngineConfig
from naiad.ipc.messages import Accepted, Progressed, ProgressItem, StepDone, StreamItem
from naiad.testing.actor import Actor
from naiad.testing.exact import read_all
from naiad.testing.scripted import RATE_VARIABLE, encode, expected_text
from naiad.types import FinishReason, Progress, SamplingParams

JOB = Job("prompt", 10, SamplingParams(), wants_progress=True)
WAITING = Progress(3, 0, 6)
HALF = Progress(None, 3, 6)


def new_stream() -> Stream:
    stream = Stream(1, JOB, asyncio.get_running_loop().create_future())
    stream.accept(6)
    return stream


def token(seq: int, finish: FinishReason | None = None) -> StreamItem:
    return StreamItem(1, seq, [seq], b"%d" % seq, finish)


def told(progress: Progress) -> TokenBatch:
    return TokenBatch((), b"", progress=progress)


class TestMailbox:
    async def test_progress_wakes_the_reader(self) -> None:
        stream = new_stream()
        reading = asyncio.create_task(stream.get())
        await asyncio.sleep(0)
        stream.report(WAITING)
        assert await reading == told(WAITING)

    async def test_only_the_newest_is_told_and_only_once(self) -> None:
        stream = new_stream()
        stream.report(WAITING)
        stream.report(HALF)
        assert await stream.get() == told(HALF)
        stream.put(token(0, FinishReason.STOP))
        assert await stream.get() == TokenBatch((0,), b"0", 0, FinishReason.STOP)

    async def test_tokens_replace_progress_that_was_not_read(self) -> None:
        stream = new_stream()
        stream.report(HALF)
        stream.put(token(0))
        assert (await stream.get()).tokens == (0,)
        reading = asyncio.create_task(stream.get())
        await asyncio.sleep(0)
        assert not reading.done(), "what is old is not told after the first token"
        stream.put(token(1, FinishReason.STOP))
        assert (await reading).tokens == (1,)

    async def test_progress_that_comes_too_late_is_dropped(self) -> None:
        stream = new_stream()
        stream.put(token(0))
        stream.report(HALF)
        stream.end(FinishReason.CANCELLED)
        stream.report(WAITING)
        assert await stream.get() == TokenBatch((0,), b"0", 0, FinishReason.CANCELLED)

    async def test_the_end_comes_first(self) -> None:
        stream = new_stream()
        stream.report(HALF)
        stream.end(FinishReason.CANCELLED)
        assert (await stream.get()).finish is FinishReason.CANCELLED


class TestTable:
    async def test_progress_reaches_its_stream_only(self) -> None:
        table = StreamTable(lambda uid: None)
        loop = asyncio.get_running_loop()
        mine, other = (table.open(JOB, loop.create_future()) for _ in range(2))
        for stream in (mine, other):
            table.accepted(Accepted(1, stream.uid, 6))
        table.progressed(Progressed(1, [ProgressItem(mine.uid, None, 3, 6)]))
        assert await mine.get() == told(HALF)
        table.step_done(StepDone(1, 1, [StreamItem(other.uid, 0, [5], b"a", FinishReason.STOP)]))
        assert (await other.get()).tokens == (5,)

    async def test_progress_of_nobody_does_no_harm(self) -> None:
        table = StreamTable(lambda uid: None)
        stream = table.open(JOB, asyncio.get_running_loop().create_future())
        early = Progressed(1, [ProgressItem(stream.uid, 0, 0, 6), ProgressItem(10**9, 0, 0, 6)])
        table.progressed(early)
        table.accepted(Accepted(1, stream.uid, 6))
        table.abort(stream.uid)
        table.progressed(early)
        assert table.violations == 0
        assert (await stream.get()).progress is None

    def test_progress_of_an_earlier_worker_counts_as_a_violation(self) -> None:
        table = StreamTable(lambda uid: None)
        table.wrong_epoch(Progressed(1, [ProgressItem(1, 0, 0, 6)]), 2)
        assert table.violations == 1


def asking(prompt: str, **fields: Any) -> Job:
    return Job(prompt, 5, SamplingParams(ignore_eos=True), wants_progress=True, **fields)


async def test_a_waiting_stream_hears_its_place_move_up_until_it_has_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(RATE_VARIABLE, "0")
    engine = in_thread(EngineConfig(engine="scripted", parallel=1, ctx=200))
    await engine.start()
    await engine.wait_ready()
    try:
        blocker = await engine.submit(asking(script(["pause", 1000])))
        first = await engine.submit(asking(script(["pause", 1000]), caller="ann"))
        second = await engine.submit(asking("hello", caller="bob"))
        assert (await second.get()).progress == Progress(1, 0, 5)
        urgent = await engine.submit(asking(script(["pause", 1000]), priority=-1))
        assert (await second.get()).progress == Progress(2, 0, 5)
        for each, place in ((urgent, 1), (first, 0)):
            engine.abort(each.uid)
            assert (await second.get()).progress == Progress(place, 0, 5)
        engine.abort(blocker.uid)
        answer = await read_all(second)
        assert answer.data.decode() == expected_text("hello", 5)
        assert engine.status.integrity_violations == 0
    finally:
        await engine.close()


async def test_progress_of_a_prompt_only_grows_and_ends_with_the_first_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each step waits until what came of the last one was read, so none is missed."""
    go_on = threading.Semaphore(0)

    def work(self: Actor, n_steps: int) -> Iterator[float]:
        for step in range(n_steps):
            self.n_done = self.n_prompt * (step + 1) // n_steps
            yield 0.0
            go_on.acquire()

    monkeypatch.setattr(Actor, "do_prefill", work)
    monkeypatch.setenv(RATE_VARIABLE, "0")
    engine = in_thread(EngineConfig(engine="scripted", parallel=1, ctx=200))
    await engine.start()
    await engine.wait_ready()
    try:
        prompt = script(["prefill", 9], ["emit", 5])
        n_prompt = len(encode(prompt))
        stream = await engine.submit(asking(prompt))
        for step in range(9):
            batch = await stream.get()
            assert batch.progress is not None
            assert (batch.progress.position, batch.tokens) == (None, ())
            assert batch.progress.n_done == n_prompt * (step + 1) // 9
            go_on.release()
        answer = await read_all(stream)
        assert len(answer.tokens) == 5
    finally:
        go_on.release(9)
        await engine.close()
