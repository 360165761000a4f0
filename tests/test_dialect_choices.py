"""Several answers and logprobs over the whole server, by the `openai` package."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import openai
import pytest

from dialect_cases import events
from dialect_server import failing, house, saying
from fakes import FakeEngine, FakeRenderer, FakeStream, silent
from http_client import Answer, ask, connected, http
from naiad.client.base import EngineState
from naiad.config import Config
from naiad.http.app import build_app
from naiad.service.service import Service
from naiad.types import FinishReason

HI: list[Any] = [{"role": "user", "content": "Hi"}]


def by_choice(stream: FakeStream) -> None:
    """Each choice says its own number, in three pieces."""
    for piece in ("I am ", str(stream.job.sampling.choice), "!"):
        stream.put(piece)
    stream.end(FinishReason.STOP)


async def test_choices_whole_and_streamed() -> None:
    async with house(by_choice) as running:
        create: Any = running.sdk().chat.completions.create
        told = await create(model="m", messages=HI, n=3, seed=5)
        assert [c.message.content for c in told.choices] == ["I am 0!", "I am 1!", "I am 2!"]
        assert [c.index for c in told.choices] == [0, 1, 2]
        jobs = [stream.job for stream in running.engine.streams.values()]
        assert {job.sampling.seed for job in jobs} == {5}
        assert len({job.prompt for job in jobs}) == 1
        usage = told.usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (len(jobs[0].prompt), 9)
        texts, ends, roles = ["", "", ""], [], []
        options = {"include_usage": True}
        chunks = [
            chunk
            async for chunk in await create(
                model="m", messages=HI, n=3, stream=True, stream_options=options
            )
        ]
        for chunk in chunks[:-1]:
            (choice,) = chunk.choices
            texts[choice.index] += choice.delta.content or ""
            ends += [choice.index] if choice.finish_reason else []
            roles += [choice.index] if choice.delta.role else []
        assert texts == ["I am 0!", "I am 1!", "I am 2!"]
        assert sorted(ends) == sorted(roles) == [0, 1, 2]
        assert chunks[-1].usage == usage


async def test_several_prompts_with_echo() -> None:
    async with house(saying(" yes", "!")) as running:
        create: Any = running.sdk().completions.create
        told = await create(model="m", prompt=["Is it?", "Was it?"], echo=True)
        assert [c.text for c in told.choices] == ["Is it? yes!", "Was it? yes!"]
        assert told.usage.prompt_tokens == len("Is it?") + len("Was it?")
        texts = ["", "", ""]
        prompts = [[72, 105], [72, 111], [33]]
        async for chunk in await create(model="m", prompt=prompts, echo=True, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].text
        assert texts == ["Hi yes!", "Ho yes!", "! yes!"]


@pytest.mark.parametrize("size", [1, 2, 100])
async def test_logprobs_of_a_chat_line_up_with_its_text(size: int) -> None:
    data = "Hé😀 there STOP more".encode()
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    told: dict[str, Any] = {"messages": HI, "model": "m", "stop": " STOP"}
    asked: dict[str, Any] = {**told, "logprobs": True, "top_logprobs": 2}
    async with house(saying(*pieces)) as running:  # type: ignore[arg-type]
        create: Any = running.sdk().chat.completions.create
        whole = (await create(**asked)).choices[0]
        assert (await create(**told)).choices[0].logprobs is None
        entries: list[Any] = []
        text = ""
        async for chunk in await create(**asked, stream=True):
            choice = chunk.choices[0]
            text += choice.delta.content or ""
            if choice.logprobs:
                entries += choice.logprobs.content
        assert text == whole.message.content == "Hé😀 there"
        assert entries == whole.logprobs.content
        joined = b"".join(bytes(one.bytes) for one in entries)
        assert joined.startswith(text.encode())
        assert entries == [one for one in entries if one.logprob == -0.5]
        assert [len(one.top_logprobs) for one in entries] == [2] * len(entries)
        assert entries[0].top_logprobs[1].logprob == -9999.0  # JSON knows no infinity
        if size == 1:
            assert joined == text.encode()


async def test_logprobs_of_a_completion_have_offsets_in_the_text() -> None:
    async with house(saying("Hé", "😀", " end")) as running:
        create: Any = running.sdk().completions.create
        whole = (await create(model="m", prompt="x", logprobs=1)).choices[0].logprobs
        assert whole.tokens == ["Hé", "😀", " end"]
        assert whole.text_offset == [0, 2, 3]
        assert whole.token_logprobs == [-0.5] * 3
        assert whole.top_logprobs == [{"Hé": -0.5}, {"😀": -0.5}, {" end": -0.5}]
        offsets: list[int] = []
        async for chunk in await create(model="m", prompt="x", logprobs=0, stream=True):
            if found := chunk.choices[0].logprobs:
                offsets += found.text_offset
                assert found.top_logprobs is None
        assert offsets == [0, 2, 3]


async def test_reasoning_has_no_entries_among_the_texts() -> None:
    async with house(saying("<think>", "hm", "</think>", "\n\nSo", " it is")) as running:
        create: Any = running.sdk().chat.completions.create
        told = (await create(model="m", messages=HI, logprobs=True)).choices[0]
        assert told.message.content == "So it is"
        assert [one.token for one in told.logprobs.content] == ["\n\nSo", " it is"]


@pytest.mark.parametrize("stream", [False, True])
async def test_one_that_fails_ends_all(*, stream: bool) -> None:
    def script(one: FakeStream) -> None:
        (failing if one.job.sampling.choice == 1 else silent)(one)
        if one.job.sampling.choice == 0 and not stream:
            one.end(FinishReason.STOP)

    async with house(script) as running:
        create: Any = running.sdk().chat.completions.create
        with pytest.raises(openai.APIError, match="The engine died"):
            answer = await create(model="m", messages=HI, n=2, stream=stream)
            [chunk async for chunk in answer]
        await running.engine.until(lambda: all(s.is_ended for s in running.engine.streams.values()))


@pytest.mark.parametrize("is_streamed", ["false", "true"])
async def test_a_client_that_hangs_up_ends_all_its_answers(is_streamed: str) -> None:
    body = b'{"prompt": "x", "n": 4, "stream": %s}' % is_streamed.encode()
    async with house(silent) as running:
        port = int(running.url.rpartition(":")[2])
        async with connected(port) as wire:
            await wire.send(http("/v1/completions", body))
            await running.engine.until(lambda: len(running.engine.streams) == 4)
        await running.engine.until(lambda: len(running.engine.aborted) == 4)


async def test_when_there_is_no_room_for_all_none_is_left_behind() -> None:
    async with house(silent) as running:  # four run, two may wait
        with pytest.raises(openai.InternalServerError, match="busy"):
            await running.sdk().chat.completions.create(model="m", messages=HI, n=7)
        assert len(running.engine.aborted) == 6


async def test_a_defect_in_one_part_ends_the_stream_with_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> bytes:
        raise RuntimeError("a defect")

    monkeypatch.setattr("naiad.http.many.told", broken)
    async with house(by_choice) as running:
        create: Any = running.sdk().chat.completions.create
        with pytest.raises(openai.APIError, match="its log says why"):
            [chunk async for chunk in await create(model="m", messages=HI, n=2, stream=True)]
        assert all(s.is_ended for s in running.engine.streams.values())


async def test_choices_are_told_as_they_form() -> None:
    """Not one after another: the second is read while the first says nothing."""
    said: asyncio.Event = asyncio.Event()
    tell: Callable[[FakeStream], None] = lambda one: (  # noqa: E731
        saying("second")(one) if one.job.sampling.choice == 1 else None
    )
    async with house(tell) as running:
        create: Any = running.sdk().completions.create
        async for chunk in await create(model="m", prompt="x", n=2, stream=True):
            if chunk.choices[0].index == 1 and chunk.choices[0].finish_reason:
                said.set()
                running.engine.streams[1].put("first")
                running.engine.streams[1].end(FinishReason.STOP)
        assert said.is_set()
        assert math.isfinite(running.engine.streams[1].n_prompt)


class Unloaded:
    """A stream of two answers whose model has to be loaded for it; the test says how that ends."""

    def __init__(self) -> None:
        self.engine = FakeEngine(by_choice)
        self.engine.after_load = EngineState.STARTING
        self.engine.unload()

    async def answer(self, state: EngineState, prompt: str, **body: Any) -> Answer:
        config = Config(heartbeat_s=60)
        app = build_app(Service(self.engine, config, FakeRenderer()), config)
        asked = {"prompt": prompt, "n": 2, "stream": True, **body}
        task = asyncio.create_task(ask(app, "POST", "/v1/completions", asked))
        await self.engine.until(lambda: self.engine.state is EngineState.STARTING)
        await asyncio.sleep(0)  # the word of progress, for who asked
        self.engine.become(state)
        return await task


async def test_loading_is_told_to_who_asks_for_several_answers() -> None:
    told = events((await Unloaded().answer(EngineState.READY, "hey", return_progress=True)).body)
    assert told[0]["model_load"] == {"progress": 0.5}
    texts = ["", ""]
    for chunk in told[:-1]:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert (texts, told[-1]) == (["I am 0!", "I am 1!"], "[DONE]")
    silent_load = await Unloaded().answer(EngineState.READY, "hey")
    assert b"model_load" not in silent_load.body


async def test_a_load_that_fails_ends_several_answers_as_one() -> None:
    refused = await Unloaded().answer(EngineState.UNLOADED, "hey")
    assert refused.status == 503
    late = await Unloaded().answer(EngineState.UNLOADED, "hey", return_progress=True)
    *_, error, done = events(late.body)
    assert (late.status, error["error"]["code"], done) == (200, "engine_unavailable", "[DONE]")
