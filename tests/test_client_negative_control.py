"""The check of exactness must be able to fail: here is the defect that it is for, on purpose.

`PolledEngine` does what servers with one process-wide answer do: the caller starts a generation,
waits a fixed while for it to begin, and then polls a shared buffer and a shared `finished` flag.
When the generation begins later than that while, both still hold the previous answer.

Time is counted in turns of the event loop, so that the race is lost the same way every time.
"""

from __future__ import annotations

import asyncio
import itertools

import pytest

from naiad.client.base import EngineState, EngineStatus, Job, TokenBatch
from naiad.testing.exact import check_exact
from naiad.testing.scripted import encode, expected_tokens
from naiad.testing.words import decode_token
from naiad.types import EmbeddedText, FinishReason, ModelInfo, SamplingParams

SLEEP_TURNS = 3
SAMPLING = SamplingParams()


class Shared:
    """The process-wide state that every request reads and writes."""

    def __init__(self) -> None:
        self.answer: list[int] = []
        self.finished = True

    async def generate(self, prompt: str, n: int, late_turns: int) -> None:
        await turns(late_turns)
        self.finished = False
        self.answer = []
        for token in expected_tokens(prompt, n):
            self.answer.append(token)
            await turns(1)
        self.finished = True


class PolledStream:
    def __init__(self, uid: int, n_prompt: int, shared: Shared) -> None:
        self.uid = uid
        self.n_prompt = n_prompt
        self.n_dropped = 0
        self._shared = shared
        self._taken = 0

    async def get(self) -> TokenBatch:
        while True:
            tokens = tuple(self._shared.answer[self._taken :])
            is_last = self._shared.finished
            if tokens or is_last:
                self._taken += len(tokens)
                data = b"".join(decode_token(token) for token in tokens)
                finish = FinishReason.LENGTH if is_last else None
                return TokenBatch(tokens, data, finish=finish)
            await turns(1)


class PolledEngine:
    """An EngineClient with the defect. `late_turns`: how long a generation takes to begin."""

    def __init__(self, late_turns: int) -> None:
        self._late_turns = late_turns
        self._shared = Shared()
        self._uids = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def status(self) -> EngineStatus:
        return EngineStatus(EngineState.READY)

    async def start(self) -> None: ...

    async def wait_ready(self) -> ModelInfo:
        return ModelInfo(name="polled")

    async def submit(self, job: Job) -> PolledStream:
        assert isinstance(job.prompt, str)
        assert job.max_tokens is not None
        work = self._shared.generate(job.prompt, job.max_tokens, self._late_turns)
        self._tasks.append(asyncio.create_task(work))
        await turns(SLEEP_TURNS)  # "it will have begun by then"
        return PolledStream(next(self._uids), len(encode(job.prompt)), self._shared)

    def abort(self, uid: int) -> None:
        self._shared.finished = True

    async def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        return encode(text)

    async def detokenize(self, ids: list[int], *, special: bool = True) -> bytes:
        return b"".join(map(decode_token, ids))

    async def embed(self, prompt: str | tuple[int, ...]) -> EmbeddedText:
        return EmbeddedText(b"", 0)

    def unload(self) -> None: ...

    def load(self) -> None: ...

    def next_change(self) -> asyncio.Event:
        return asyncio.Event()

    async def close(self) -> None:
        await asyncio.gather(*self._tasks)


async def turns(n: int) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


async def consecutive(engine: PolledEngine) -> None:
    for i in range(30):
        await check_exact(engine, f"prompt {i}", 10)


async def concurrent(engine: PolledEngine) -> None:
    async with asyncio.TaskGroup() as group:
        for i in range(8):
            group.create_task(check_exact(engine, f"prompt {i}", 10))


async def test_in_good_weather_the_defect_does_not_show() -> None:
    engine = PolledEngine(late_turns=0)
    await consecutive(engine)
    await engine.close()


@pytest.mark.parametrize("late_turns", [SLEEP_TURNS + 1, 20, 200])
async def test_a_late_start_is_caught_by_consecutive_streams(late_turns: int) -> None:
    engine = PolledEngine(late_turns)
    with pytest.raises(AssertionError):
        await consecutive(engine)
    await engine.close()


async def test_the_second_stream_gets_the_first_ones_answer_at_once() -> None:
    engine = PolledEngine(late_turns=0)
    await check_exact(engine, "first", 5)
    engine._late_turns = 50
    batch = await (await engine.submit(Job("second", 5, SAMPLING))).get()
    assert batch.tokens == tuple(expected_tokens("first", 5))
    assert batch.finish is FinishReason.LENGTH
    await engine.close()


async def test_concurrent_streams_are_caught() -> None:
    engine = PolledEngine(late_turns=0)
    with pytest.raises(ExceptionGroup) as caught:
        await concurrent(engine)
    assert caught.group_contains(AssertionError)
    await engine.close()
