"""The pure parts of the client: mailbox, table of streams, restart policy."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.client.base import Job, TokenBatch
from naiad.client.restart import RestartLimits, RestartPolicy
from naiad.client.stream import MERGE_BEYOND, Stream
from naiad.client.table import StreamTable
from naiad.errors import Cancelled, ContextExceeded, EngineFailed, IntegrityViolation, NaiadError
from naiad.ipc.messages import Accepted, Loading, Refused, StepDone, StreamItem
from naiad.testing.exact import read_all
from naiad.types import FinishReason, SamplingParams

JOB = Job("prompt", 10, SamplingParams())


def new_stream(*, is_accepted: bool = True) -> Stream:
    stream = Stream(1, JOB, asyncio.get_running_loop().create_future())
    if is_accepted:
        stream.accept(6)
    return stream


def item(uid: int, seq: int, finish: FinishReason | None = None) -> StreamItem:
    return StreamItem(uid, seq, [seq], b"%d" % seq, finish)


class TestMailbox:
    async def test_one_item_one_batch(self) -> None:
        stream = new_stream()
        stream.put(StreamItem(1, 0, [5], b"a", n_cached=3))
        assert await stream.get() == TokenBatch((5,), b"a", 3)
        stream.put(StreamItem(1, 1, [6], b"b", FinishReason.STOP))
        assert await stream.get() == TokenBatch((6,), b"b", 3, FinishReason.STOP)

    async def test_a_merged_batch_says_which_bytes_are_whose(self) -> None:
        stream = new_stream()
        for seq in range(MERGE_BEYOND):
            stream.put(item(1, seq))
        stream.put(StreamItem(1, MERGE_BEYOND, [1, 2, 3], b"abcd", sizes=[1, 0, 3]))
        batch = await stream.get()
        assert batch.sizes == (*(len(str(seq)) for seq in range(MERGE_BEYOND)), 1, 0, 3)
        assert (len(batch.tokens), sum(batch.sizes)) == (len(batch.sizes), len(batch.data))

    @given(reads=st.lists(st.booleans(), min_size=1, max_size=3 * MERGE_BEYOND))
    def test_nothing_is_lost_however_slow_the_reader(self, reads: list[bool]) -> None:
        async def scenario() -> None:
            stream = new_stream()
            tokens: list[int] = []
            data = b""
            for seq, is_reading in enumerate(reads):
                stream.put(item(1, seq))
                if is_reading:
                    batch = await stream.get()
                    tokens += batch.tokens
                    data += batch.data
            stream.end(FinishReason.LENGTH)
            answer = await read_all(stream)
            assert [*tokens, *answer.tokens] == list(range(len(reads))) == stream.emitted
            assert data + answer.data == b"".join(b"%d" % seq for seq in range(len(reads)))
            assert answer.num_batches <= MERGE_BEYOND

        asyncio.run(scenario())

    async def test_a_reader_a_little_late_gets_a_batch_for_each_step(self) -> None:
        stream = new_stream()
        for seq in range(MERGE_BEYOND):
            stream.put(item(1, seq))
        batches = [await stream.get() for _ in range(MERGE_BEYOND)]
        assert [batch.tokens for batch in batches] == [(seq,) for seq in range(MERGE_BEYOND)]

    async def test_a_reader_far_behind_gets_one_batch(self) -> None:
        stream = new_stream()
        for seq in range(MERGE_BEYOND + 1):
            stream.put(item(1, seq))
        assert (await stream.get()).tokens == tuple(range(MERGE_BEYOND + 1))

    async def test_the_end_comes_with_the_last_batch_only(self) -> None:
        stream = new_stream()
        stream.put(item(1, 0))
        stream.put(item(1, 1, FinishReason.STOP))
        finishes = [(await stream.get()).finish for _ in range(2)]
        assert finishes == [None, FinishReason.STOP]

    async def test_a_waiting_reader_is_woken(self) -> None:
        stream = new_stream()
        reading = asyncio.ensure_future(stream.get())
        await asyncio.sleep(0)
        stream.put(item(1, 0))
        assert (await reading).tokens == (0,)

    async def test_a_cancelled_reader_loses_nothing(self) -> None:
        stream = new_stream()
        reading = asyncio.ensure_future(stream.get())
        await asyncio.sleep(0)
        reading.cancel()
        stream.put(item(1, 0))
        assert (await stream.get()).tokens == (0,)

    async def test_an_empty_item_is_no_news(self) -> None:
        stream = new_stream()
        stream.put(StreamItem(1, 0, [], b"", n_cached=7))
        reading = asyncio.ensure_future(stream.get())
        await asyncio.sleep(0)
        assert not reading.done()
        stream.put(item(1, 1))
        assert (await reading).n_cached == 7

    async def test_what_was_given_up_is_counted_from_the_prompt_on(self) -> None:
        stream = new_stream()
        stream.accept(4, 3)
        assert stream.n_dropped == 3
        for n_dropped in (0, 5):
            stream.put(StreamItem(1, 0, [1], b"a", n_dropped=n_dropped))
        assert stream.n_dropped == 8

    async def test_the_first_end_counts_and_there_is_no_second(self) -> None:
        stream = new_stream()
        stream.accept(4)
        stream.end(FinishReason.CANCELLED)
        stream.end(FinishReason.ERROR, EngineFailed("late"))
        assert (await stream.get()).finish is FinishReason.CANCELLED
        with pytest.raises(RuntimeError, match="has ended"):
            await stream.get()

    async def test_an_error_item_carries_its_error(self) -> None:
        stream = new_stream()
        stream.put(StreamItem(1, 0, [], b"", FinishReason.ERROR, 0, ("engine_failed", "NaN")))
        batch = await stream.get()
        assert isinstance(batch.error, EngineFailed)
        assert batch.error.message == "NaN"

    async def test_an_error_item_without_one_still_says_something(self) -> None:
        stream = new_stream()
        stream.put(StreamItem(1, 0, [], b"", FinishReason.ERROR))
        assert isinstance((await stream.get()).error, EngineFailed)

    async def test_an_end_before_the_yes_fails_the_submit(self) -> None:
        stream = new_stream(is_accepted=False)
        stream.end(FinishReason.CANCELLED)
        with pytest.raises(Cancelled):
            await stream.accepted


class Rig:
    """A table, and the aborts it has sent."""

    def __init__(self) -> None:
        self.aborts: list[int] = []
        self.table = StreamTable(self.aborts.append)

    def open(self) -> Stream:
        stream = self.table.open(JOB, asyncio.get_running_loop().create_future())
        self.table.accepted(Accepted(1, stream.uid, 6))
        return stream

    def step(self, *items: StreamItem) -> None:
        self.table.step_done(StepDone(1, 0, list(items)))


class TestTable:
    async def test_each_item_goes_to_its_own_stream(self) -> None:
        rig = Rig()
        a, b = rig.open(), rig.open()
        rig.step(item(a.uid, 0), item(b.uid, 0))
        rig.step(item(b.uid, 1, FinishReason.STOP), item(a.uid, 1))
        assert (a.emitted, b.emitted, b.is_ended, a.is_ended) == ([0, 1], [0, 1], True, False)
        assert (rig.table.n_open, rig.table.violations, a.n_prompt) == (1, 0, 6)

    async def test_uids_are_never_used_again(self) -> None:
        uids = [rig.open().uid for rig in (Rig(), Rig()) for _ in range(3)]
        assert uids == sorted(set(uids))

    async def test_a_refusal_is_raised_with_its_details(self) -> None:
        rig = Rig()
        stream = rig.table.open(JOB, asyncio.get_running_loop().create_future())
        details = {"n_prompt_tokens": 9, "n_ctx": 8}
        rig.table.refused(Refused(1, stream.uid, ContextExceeded.code, "too long", details))
        with pytest.raises(ContextExceeded) as caught:
            await stream.accepted
        assert caught.value.details == details
        assert rig.table.n_open == 0

    @pytest.mark.parametrize("seq", [0, 2, 99])
    async def test_a_wrong_place_fails_that_stream_only(self, seq: int) -> None:
        rig = Rig()
        a, b = rig.open(), rig.open()
        rig.step(item(a.uid, 0), item(b.uid, 0))
        rig.step(item(a.uid, seq), item(b.uid, 1))
        batch = await a.get()
        assert isinstance(batch.error, IntegrityViolation)
        assert (batch.tokens, b.emitted, b.is_ended) == ((0,), [0, 1], False)
        assert (rig.table.violations, rig.aborts) == (1, [a.uid])

    async def test_a_failed_stream_swallows_the_rest(self) -> None:
        rig = Rig()
        stream = rig.open()
        rig.step(item(stream.uid, 1))
        rig.step(item(stream.uid, 2))
        assert rig.table.n_tombstones == 1
        rig.step(item(stream.uid, 3, FinishReason.CANCELLED))
        assert (rig.table.violations, rig.table.n_tombstones) == (1, 0)

    async def test_a_wrong_last_item_leaves_no_tombstone(self) -> None:
        rig = Rig()
        stream = rig.open()
        rig.step(item(stream.uid, 5, FinishReason.STOP))
        assert (rig.table.violations, rig.table.n_tombstones, stream.is_ended) == (1, 0, True)

    async def test_an_item_before_the_yes_fails_the_submit(self) -> None:
        rig = Rig()
        stream = rig.table.open(JOB, asyncio.get_running_loop().create_future())
        rig.step(item(stream.uid, 0))
        with pytest.raises(IntegrityViolation):
            await stream.accepted

    @pytest.mark.parametrize("event", [Accepted(1, 1, 1), Refused(1, 1, "c", "m"), None])
    async def test_what_nobody_asked_for_is_counted(self, event: Accepted | Refused | None) -> None:
        rig = Rig()
        match event:
            case Accepted():
                rig.table.accepted(event)
            case Refused():
                rig.table.refused(event)
            case None:
                rig.step(item(10**9, 0))
        assert (rig.table.violations, rig.table.n_tombstones) == (1, 0)

    async def test_a_second_yes_is_a_violation(self) -> None:
        rig = Rig()
        stream = rig.open()
        rig.table.accepted(Accepted(1, stream.uid, 6))
        assert isinstance((await stream.get()).error, IntegrityViolation)

    async def test_after_an_abort_everything_is_swallowed_until_the_last(self) -> None:
        rig = Rig()
        stream = rig.open()
        rig.step(item(stream.uid, 0))
        rig.table.abort(stream.uid)
        rig.table.abort(stream.uid)
        rig.step(item(stream.uid, 1), item(stream.uid, 2, FinishReason.CANCELLED))
        batch = await stream.get()
        assert (batch.tokens, batch.finish) == ((0,), FinishReason.CANCELLED)
        assert (rig.aborts, rig.table.violations, rig.table.n_tombstones) == ([stream.uid], 0, 0)
        rig.step(item(stream.uid, 3))
        assert rig.table.violations == 1

    async def test_answers_to_an_aborted_submit_are_swallowed(self) -> None:
        rig = Rig()
        for answer in (Accepted(1, 0, 1), Refused(1, 0, "c", "m")):
            stream = rig.table.open(JOB, asyncio.get_running_loop().create_future())
            stream.accepted.cancel()
            rig.table.abort(stream.uid)
            if isinstance(answer, Accepted):
                rig.table.accepted(Accepted(1, stream.uid, 1))
                rig.step(StreamItem(stream.uid, 0, [], b"", FinishReason.CANCELLED))
            else:
                rig.table.refused(Refused(1, stream.uid, "c", "m"))
        assert (rig.table.violations, rig.table.n_tombstones) == (0, 0)

    async def test_an_answer_between_a_callers_leaving_and_its_abort_is_none(self) -> None:
        """Leaving cancels the future at once; the abort goes out a turn later."""
        rig = Rig()
        a, b = (rig.table.open(JOB, asyncio.get_running_loop().create_future()) for _ in range(2))
        for stream in (a, b):
            stream.accepted.cancel()
        rig.table.accepted(Accepted(1, a.uid, 6))
        rig.table.refused(Refused(1, b.uid, "c", "m"))
        rig.step(item(a.uid, 0))
        rig.table.abort(a.uid)
        rig.table.abort(b.uid)
        rig.step(StreamItem(a.uid, 1, [], b"", FinishReason.CANCELLED))
        assert (rig.aborts, rig.table.violations) == ([a.uid], 0)
        assert (rig.table.n_open, rig.table.n_tombstones) == (0, 0)

    async def test_another_epoch_fails_the_streams_it_names(self) -> None:
        rig = Rig()
        a, b = rig.open(), rig.open()
        rig.table.wrong_epoch(StepDone(0, 0, [item(a.uid, 0)]), 1)
        rig.table.wrong_epoch(Accepted(0, b.uid, 1), 1)
        rig.table.wrong_epoch(Loading(0, 0.5), 1)
        assert (a.is_ended, b.is_ended, rig.table.violations) == (True, True, 3)

    async def test_the_workers_end_fails_them_all(self) -> None:
        rig = Rig()
        streams = [rig.open() for _ in range(3)]

        def error(stream: Stream) -> NaiadError:
            return EngineFailed(f"gone: {stream.uid}")

        rig.table.fail_all(error)
        rig.step(item(streams[0].uid, 0))  # still under way: swallowed
        rig.table.forget_tombstones()
        errors = [(await stream.get()).error for stream in streams]
        assert [error.message for error in errors if error] == [f"gone: {s.uid}" for s in streams]
        assert (rig.table.n_open, rig.table.violations) == (0, 0)


class TestRestartPolicy:
    def test_delays_grow_and_stay(self) -> None:
        policy = RestartPolicy(RestartLimits(max_deaths=100))
        assert [policy.died(i, None) for i in range(9)] == [0, 1, 2, 4, 8, 16, 30, 30, 30]

    def test_a_healthy_minute_starts_afresh(self) -> None:
        policy = RestartPolicy(RestartLimits(max_deaths=100))
        assert [policy.died(10, 5), policy.died(20, 15)] == [0, 1]
        assert policy.died(100, 41) == 2  # 59 s
        assert policy.died(200, 140) == 0

    def test_five_deaths_within_ten_minutes_are_the_last(self) -> None:
        policy = RestartPolicy(RestartLimits())
        assert all(policy.died(i, None) < math.inf for i in range(4))
        assert policy.died(599, None) == math.inf

    def test_deaths_long_ago_do_not_count(self) -> None:
        policy = RestartPolicy(RestartLimits())
        times = [0, 200, 400, 500, 601, 802]
        assert all(policy.died(now, now - 60) == 0 for now in times)
