"""One suite for every kind of engine: the same promises, whatever runs the tokens.

To put another engine under it, add a line to ENGINES.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from naiad.client.base import EngineState, Job, TokenBatch
from naiad.client.engine import SocketEngine
from naiad.client.launch import engine_from, in_thread
from naiad.config import EngineConfig
from naiad.errors import ContextExceeded, EngineUnavailable, InvalidRequest
from naiad.testing.exact import check_exact, exact_job, read_all
from naiad.testing.scripted import expected_text, natural_length
from naiad.types import FinishReason, ModelInfo, SamplingParams

PARALLEL = 64
CTX = 512


@dataclass(frozen=True)
class Kind:
    """How to build an engine under test, what it says, and how often a cycle test may run."""

    build: Callable[[], SocketEngine]
    expected: Callable[[str, int], str]
    num_cycles: int


CONFIG = EngineConfig(engine="scripted", parallel=PARALLEL, ctx=CTX)
ENGINES = {
    "thread": Kind(lambda: in_thread(CONFIG), expected_text, 10_000),
    "process": Kind(lambda: engine_from(CONFIG), expected_text, 1_000),
}


@pytest.fixture(params=list(ENGINES.values()), ids=list(ENGINES))
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kind:
    monkeypatch.setenv("NAIAD_SCRIPTED_RATE", "0")
    chosen: Kind = request.param
    return chosen


@pytest.fixture
async def engine(kind: Kind) -> AsyncIterator[SocketEngine]:
    engine = kind.build()
    await engine.start()
    await engine.wait_ready()
    yield engine
    assert engine.status.integrity_violations == 0
    await engine.close()


async def settle(engine: SocketEngine, kind: Kind) -> None:
    """Run one more stream: when it has ended, so has at the worker all that was aborted before."""
    await check_exact(engine, "settle", 3, expected=kind.expected("settle", 3))
    assert engine.num_open == 0


async def check(engine: SocketEngine, kind: Kind, prompt: str, n: int) -> None:
    await check_exact(engine, prompt, n, expected=kind.expected(prompt, n))


class TestTokens:
    async def test_consecutive_streams_are_exact(self, engine: SocketEngine, kind: Kind) -> None:
        for i in range(100):
            await check(engine, kind, f"prompt {i}", 1 + i % 17)
        assert engine.num_open == 0

    async def test_256_streams_at_once_are_exact(self, engine: SocketEngine, kind: Kind) -> None:
        await asyncio.gather(*(check(engine, kind, f"prompt {i}", 40) for i in range(256)))
        assert engine.num_open == 0

    async def test_the_prompts_length_comes_with_the_yes(self, engine: SocketEngine) -> None:
        stream = await engine.submit(exact_job("fünf", 1))
        assert stream.n_prompt == len(await engine.tokenize("fünf"))
        await read_all(stream)

    async def test_ids_and_their_text_are_the_same_prompt(
        self, engine: SocketEngine, kind: Kind
    ) -> None:
        ids = tuple(await engine.tokenize("as ids"))
        stream = await engine.submit(Job(ids, 5, SamplingParams(temperature=0, ignore_eos=True)))
        assert (await read_all(stream)).data.decode() == kind.expected("as ids", 5)

    async def test_a_reader_that_comes_late_gets_it_all(
        self, engine: SocketEngine, kind: Kind
    ) -> None:
        late = await engine.submit(exact_job("late", 100))
        await check(engine, kind, "behind", 120)  # entered later and longer: "late" is over by then
        assert late.is_ended
        answer = await read_all(late)
        assert answer.finish is FinishReason.LENGTH
        assert answer.data.decode() == kind.expected("late", 100)
        assert late.emitted == list(answer.tokens)
        assert answer.num_batches < 100

    async def test_max_tokens_beyond_the_context_ends_with_length(
        self, engine: SocketEngine
    ) -> None:
        prompt = "x" * (CTX - 10)
        stream = await engine.submit(exact_job(prompt, 10_000))
        answer = await read_all(stream)
        assert answer.finish is FinishReason.LENGTH
        assert len(answer.tokens) == CTX - stream.n_prompt


class TestAbort:
    async def test_at_every_place_of_the_stream(self, engine: SocketEngine, kind: Kind) -> None:
        for n_read in range(12):
            stream = await engine.submit(exact_job(f"abort {n_read}", 400))
            batches: list[TokenBatch] = []
            while sum(len(batch.tokens) for batch in batches) < n_read:
                batches.append(await stream.get())
            engine.abort(stream.uid)
            last = await stream.get()
            while last.finish is None:
                batches.append(last)
                last = await stream.get()
            data = b"".join(batch.data for batch in [*batches, last])
            assert last.finish in {FinishReason.CANCELLED, FinishReason.LENGTH}
            assert kind.expected(f"abort {n_read}", 400).encode().startswith(data)
            await settle(engine, kind)

    async def test_ends_a_reader_that_waits(self, engine: SocketEngine, kind: Kind) -> None:
        stream = await engine.submit(exact_job("waits", 400))
        reading = asyncio.ensure_future(read_all(stream))
        await asyncio.sleep(0)
        engine.abort(stream.uid)
        assert (await reading).finish in {FinishReason.CANCELLED, FinishReason.LENGTH}
        await settle(engine, kind)

    async def test_of_unknown_or_finished_streams_is_nothing(
        self, engine: SocketEngine, kind: Kind
    ) -> None:
        stream = await engine.submit(exact_job("finished", 1))
        await read_all(stream)
        engine.abort(stream.uid)
        engine.abort(10**12)
        await settle(engine, kind)

    async def test_start_abort_start_cycles(self, engine: SocketEngine, kind: Kind) -> None:
        for i in range(kind.num_cycles):
            stream = await engine.submit(exact_job("cycle", 400))
            engine.abort(stream.uid)
            if i % 50 == 0:
                await check(engine, kind, f"between {i}", 3)
        await settle(engine, kind)

    async def test_leaves_the_others_alone(self, engine: SocketEngine, kind: Kind) -> None:
        async def aborted(i: int) -> None:
            stream = await engine.submit(exact_job(f"aborted {i}", 400))
            for _ in range(i % 5):
                if (await stream.get()).finish is not None:
                    return
            engine.abort(stream.uid)

        async with asyncio.TaskGroup() as group:
            for i in range(100):
                group.create_task(aborted(i))
                group.create_task(check(engine, kind, f"left alone {i}", 20))
        await settle(engine, kind)

    async def test_a_caller_that_leaves_while_submitting(
        self, engine: SocketEngine, kind: Kind
    ) -> None:
        for num_turns in range(6):
            submitting = asyncio.ensure_future(engine.submit(exact_job("leaves", 400)))
            for _ in range(num_turns):
                await asyncio.sleep(0)
            if submitting.done():
                engine.abort(submitting.result().uid)
            else:
                submitting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await submitting
            await settle(engine, kind)


class TestRefusals:
    async def test_a_prompt_beyond_the_context_says_both_numbers(
        self, engine: SocketEngine, kind: Kind
    ) -> None:
        n_prompt = len(await engine.tokenize("x" * CTX))
        with pytest.raises(ContextExceeded, match=str(CTX)) as caught:
            await engine.submit(exact_job("x" * CTX, 1))
        assert caught.value.details == {"n_prompt_tokens": n_prompt, "n_ctx": CTX}
        await settle(engine, kind)

    @pytest.mark.parametrize(
        "job",
        [
            Job("x", 0, SamplingParams()),
            Job((-1,), 1, SamplingParams()),
            Job((10**9,), 1, SamplingParams()),
            Job((2**80,), 1, SamplingParams()),
            Job("\ud800", 1, SamplingParams()),
        ],
        ids=["max_tokens 0", "id -1", "id outside", "id beyond 64 bits", "lone surrogate"],
    )
    async def test_bad_requests(self, engine: SocketEngine, kind: Kind, job: Job) -> None:
        with pytest.raises(InvalidRequest):
            await engine.submit(job)
        await settle(engine, kind)


class TestTokenizer:
    @pytest.mark.parametrize("text", ["", "plain", "Grüße 😀 漢字", "x" * 20_000])
    async def test_there_and_back(self, engine: SocketEngine, text: str) -> None:
        ids = await engine.tokenize(text, add_special=False)
        assert (await engine.detokenize(ids)).decode() == text

    async def test_ids_outside_the_vocabulary(self, engine: SocketEngine) -> None:
        with pytest.raises(InvalidRequest, match="vocabulary"):
            await engine.detokenize([10**6])

    async def test_text_that_no_frame_can_carry(self, engine: SocketEngine) -> None:
        with pytest.raises(InvalidRequest):
            await engine.tokenize("\ud800")

    async def test_while_the_engine_is_busy(self, engine: SocketEngine, kind: Kind) -> None:
        async with asyncio.TaskGroup() as group:
            for i in range(PARALLEL * 2):
                group.create_task(check(engine, kind, f"busy {i}", 20))
            for _ in range(20):
                assert await engine.tokenize("ab") == await engine.tokenize("ab")

    async def test_a_caller_that_leaves(self, engine: SocketEngine) -> None:
        asking = asyncio.ensure_future(engine.tokenize("text"))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await engine.detokenize(await engine.tokenize("still")) == b"still"


class TestLife:
    async def test_the_states_of_a_plain_life(self, kind: Kind) -> None:
        engine = kind.build()
        assert engine.status.state is EngineState.STARTING
        with pytest.raises(EngineUnavailable, match="loading"):
            await engine.submit(exact_job("early", 1))
        await engine.start()
        model = await engine.wait_ready()
        assert isinstance(model, ModelInfo)
        assert engine.status.model == model
        assert (engine.status.state, engine.status.progress) == (EngineState.READY, 1.0)
        await engine.close()
        assert (engine.status.state, engine.status.restarts) == (EngineState.STOPPED, 0)

    async def test_close_while_streaming_ends_every_stream(self, kind: Kind) -> None:
        engine = kind.build()
        await engine.start()
        await engine.wait_ready()
        streams = [await engine.submit(exact_job(f"closing {i}", 400)) for i in range(8)]
        reading = [asyncio.ensure_future(read_all(stream)) for stream in streams]
        await asyncio.gather(engine.close(), engine.close())
        for i, answer in enumerate(await asyncio.gather(*reading)):
            assert kind.expected(f"closing {i}", 400).encode().startswith(answer.data)
            if answer.finish is FinishReason.ERROR:
                assert isinstance(answer.error, EngineUnavailable)
        assert engine.status.integrity_violations == 0
        await engine.close()

    async def test_after_close_nothing_works_and_nothing_hangs(self, kind: Kind) -> None:
        engine = kind.build()
        await engine.start()
        await engine.close()
        calls: list[Callable[[], Any]] = [
            lambda: engine.submit(exact_job("late", 1)),
            lambda: engine.tokenize("late"),
            lambda: engine.detokenize([1]),
            engine.wait_ready,
        ]
        for call in calls:
            with pytest.raises(EngineUnavailable, match="shutting down"):
                await call()
        with pytest.raises(RuntimeError):
            await engine.start()

    async def test_close_before_start(self, kind: Kind) -> None:
        engine = kind.build()
        await engine.close()
        assert engine.status.state is EngineState.STOPPED

    async def test_uids_differ_between_engines(self, kind: Kind) -> None:
        uids = []
        for _ in range(2):
            engine = kind.build()
            await engine.start()
            await engine.wait_ready()
            stream = await engine.submit(exact_job("same prompt", 2))
            await read_all(stream)
            uids.append(stream.uid)
            await engine.close()
        assert all(a < b for a, b in itertools.pairwise(uids))


async def test_the_models_own_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAIAD_SCRIPTED_RATE", "0")
    engine = in_thread(CONFIG)
    await engine.start()
    await engine.wait_ready()
    answer = await read_all(await engine.submit(Job("an end", None, SamplingParams())))
    n = natural_length("an end")
    assert (answer.finish, len(answer.tokens)) == (FinishReason.STOP, n + 1)
    assert answer.data.decode() == expected_text("an end", n)
    await engine.close()
