"""Logprobs and embeddings on their way between worker and front."""

from __future__ import annotations

import asyncio
import math
import struct

import pytest

from naiad.client.base import Job
from naiad.client.launch import in_thread
from naiad.client.stream import MERGE_BEYOND, Stream
from naiad.config import EngineConfig
from naiad.errors import EngineUnavailable, InvalidRequest
from naiad.ipc.messages import StreamItem
from naiad.testing.scripted import RATE_VARIABLE, expected_tokens
from naiad.types import FinishReason, SamplingParams, TokenLogprob

ASKING = Job("hello", 12, SamplingParams(ignore_eos=True, n_logprobs=2))


async def test_each_token_comes_with_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RATE_VARIABLE, "0")
    engine = in_thread(EngineConfig(engine="scripted", parallel=2, ctx=200))
    await engine.start()
    await engine.wait_ready()
    try:
        stream = await engine.submit(ASKING)
        tokens: list[int] = []
        told: list[TokenLogprob] = []
        while True:
            batch = await stream.get()
            assert [one.token for one in batch.logprobs] == list(batch.tokens)
            assert b"".join(one.data for one in batch.logprobs) == batch.data
            tokens += batch.tokens
            told += batch.logprobs
            if batch.finish is not None:
                break
        assert tokens == expected_tokens("hello", 12)
        assert {one.logprob for one in told} == {-math.log(2)}
        assert {len(one.top) for one in told} == {2}
        found = await engine.embed("hello")
        same = await engine.embed(tuple(b"hello"))
        assert (found.n_tokens, found) == (5, same)
        assert math.hypot(*struct.unpack("<8f", found.vector)) == pytest.approx(1)
        with pytest.raises(InvalidRequest, match="empty"):
            await engine.embed("")
    finally:
        await engine.close()
    with pytest.raises(EngineUnavailable):
        await engine.embed("late")


async def test_a_reader_far_behind_finds_them_all_in_order() -> None:
    stream = Stream(1, ASKING, asyncio.get_running_loop().create_future())
    stream.accept(5)
    n = 2 * MERGE_BEYOND
    for seq in range(n):
        finish = FinishReason.STOP if seq == n - 1 else None
        told = [TokenLogprob(seq, b"x", -1.0)]
        stream.put(StreamItem(1, seq, [seq], b"x", finish, logprobs=told))
    tokens: list[int] = []
    while not (batch := await stream.get()).finish:
        assert [one.token for one in batch.logprobs] == list(batch.tokens)
        tokens += batch.tokens
    tokens += [one.token for one in batch.logprobs]
    assert tokens == list(range(n))
