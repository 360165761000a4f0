"""Priorities and progress from the request to the answer, and refusals before any work."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from dialect_cases import events
from fakes import ALICE, FakeEngine, FakeRenderer, make_service, request, silent
from http_client import Connection, ask, fake_app
from naiad.client.launch import in_thread
from naiad.config import Config, EngineConfig
from naiad.errors import AdminRequired, Overloaded
from naiad.http.app import build_app
from naiad.service.service import Service
from naiad.testing.scripted import RATE_VARIABLE, expected_text
from naiad.types import (
    Caller,
    ChatMessage,
    ChatPrompt,
    FinishReason,
    Progress,
    TextDelta,
    TokenPrompt,
)
from patience import PATIENCE_S

GENERATE = "/fake/generate"
ADMIN = Caller("admin", is_admin=True)


async def test_the_engine_learns_who_asks_how_urgently_and_whether_to_tell() -> None:
    engine = FakeEngine()
    service = make_service(engine)
    async with service.generate(request(priority=7, wants_progress=True), ALICE):
        job = engine.streams[1].job
    assert (job.priority, job.caller, job.wants_progress) == (7, "alice", True)


async def test_a_priority_below_0_is_refused_before_it_takes_a_place() -> None:
    engine = FakeEngine(silent)
    service = make_service(engine, Config(max_queue=0))
    with pytest.raises(AdminRequired, match="'priority' -1 is for the administrator") as refused:
        async with service.generate(request(priority=-1), ALICE):
            raise AssertionError("entered")
    assert refused.value.param == "priority"
    assert (service.n_in_flight, engine.streams) == (0, {})
    async with service.generate(request(priority=-1), ADMIN):
        assert engine.streams[1].job.priority == -1


# -- events -----------------------------------------------------------------------------------


async def test_progress_comes_before_the_text_with_the_times_that_the_front_knows() -> None:
    engine = FakeEngine(silent)
    service = make_service(engine)
    async with service.generate(request(wants_progress=True), ALICE) as generation:
        stream = engine.streams[1]
        stream.report(Progress(1, 0, 5))
        assert await anext(generation) == Progress(1, 0, 5, eta_s=None)
        stream.report(Progress(None, 2, 5, 1))
        told = await anext(generation)
        assert isinstance(told, Progress)
        assert (told.position, told.n_done, told.n_total, told.n_cached) == (None, 2, 5, 1)
        assert 0 <= told.prompt_s < PATIENCE_S
        stream.put("text")
        assert await anext(generation) == TextDelta("text", 1)
    assert engine.aborted == [1]


async def test_a_place_in_the_queue_comes_with_an_estimate_once_something_is_known() -> None:
    engine = FakeEngine()
    service = make_service(engine)
    async with service.generate(request(), ALICE) as generation:
        await generation.whole()
    engine.script = silent
    async with service.generate(request(wants_progress=True), ALICE) as generation:
        engine.streams[2].report(Progress(3, 0, 5))
        told = await anext(generation)
        assert isinstance(told, Progress)
        assert told.eta_s is not None
        assert 0 < told.eta_s < PATIENCE_S


async def test_a_whole_answer_is_the_same_with_and_without_progress() -> None:
    engine = FakeEngine(silent)
    service = make_service(engine)
    async with service.generate(request(wants_progress=True), ALICE) as generation:
        stream = engine.streams[1]
        folding = asyncio.create_task(generation.whole())
        for progress in (Progress(0, 0, 5), Progress(None, 5, 5)):
            stream.report(progress)
            await asyncio.sleep(0)
        stream.put("text")
        stream.end(FinishReason.STOP)
        completion = await folding
    assert completion.text == "text"
    assert completion.finished.usage.completion_tokens == 1


async def test_the_newest_progress_can_be_asked_for_until_there_is_text() -> None:
    engine = FakeEngine(silent)
    service = make_service(engine)
    assert service.progress(ALICE, "K") is None
    async with service.generate(request(handle="K", wants_progress=True), ALICE) as generation:
        stream = engine.streams[1]
        assert service.progress(ALICE, "K") is None
        stream.report(Progress(2, 0, 5))
        told = await anext(generation)
        assert service.progress(ALICE, "K") == told
        assert service.progress(Caller("bob"), "K") is None, "nobody else's business"
        stream.put("text")
        await anext(generation)
        assert service.progress(ALICE, "K") is None


# -- refused before any work ------------------------------------------------------------------


async def test_prompt_tokens_that_wait_are_bounded_before_templates_are_rendered() -> None:
    engine = FakeEngine(silent)
    renderer = FakeRenderer()
    service = Service(engine, Config(max_queue_tokens=100), renderer)
    chat = request(prompt=ChatPrompt((ChatMessage("user", "x" * 80),)))
    async with service.generate(request(prompt=TokenPrompt((1,) * 90)), ALICE) as first:
        with pytest.raises(Overloaded, match="at most 100"):
            async with service.generate(chat, ALICE):
                raise AssertionError("entered")
        assert (renderer.n_rendered, len(engine.streams)) == (0, 1)
        engine.streams[1].put("its prompt is computed")
        await anext(first)
        async with service.generate(chat, ALICE):
            assert renderer.n_rendered == 1


async def test_an_estimate_is_replaced_by_what_the_engine_counted() -> None:
    engine = FakeEngine(silent)  # which counts characters
    service = make_service(engine, Config(max_queue_tokens=100))
    async with service.generate(request("x" * 60), ALICE):  # estimated: 15
        with pytest.raises(Overloaded):
            async with service.generate(request(prompt=TokenPrompt((1,) * 41)), ALICE):
                raise AssertionError("entered")


async def test_a_full_house_refuses_before_the_body_is_read() -> None:
    engine = FakeEngine(silent)
    app = fake_app(engine)
    running = []
    for _ in range(4):
        connection = Connection(app, "POST", GENERATE)
        connection.feed(b'{"prompt": "hey", "stream": true}')
        running.append((asyncio.create_task(connection.run()), connection))
    await engine.until(lambda: len(engine.streams) == 4)
    unread = Connection(app, "POST", GENERATE)  # its body never comes
    answer = await unread.run()
    assert (answer.status, answer.value["fake"]["code"]) == (503, "overloaded")
    for task, connection in running:
        connection.hang_up()
        await task


async def test_keys_are_checked_before_there_is_room() -> None:
    app = fake_app(FakeEngine(), api_key="sk-1")
    assert (await Connection(app, "POST", GENERATE).run()).status == 401


async def test_questions_are_answered_in_a_full_house() -> None:
    engine = FakeEngine(silent)
    app = fake_app(engine)
    tasks = []
    for _ in range(4):
        connection = Connection(app, "POST", GENERATE)
        connection.feed(b'{"prompt": "hey", "stream": true}')
        tasks.append((asyncio.create_task(connection.run()), connection))
    await engine.until(lambda: len(engine.streams) == 4)
    assert (await ask(app, "POST", "/fake/count", {"text": "abc"})).value["n"] == 3
    for task, connection in tasks:
        connection.hang_up()
        await task


# -- over HTTP --------------------------------------------------------------------------------


async def test_a_stream_carries_its_progress() -> None:
    engine = FakeEngine(silent)
    connection = Connection(fake_app(engine), "POST", GENERATE)
    connection.feed(b'{"prompt": "hey", "stream": true, "wants_progress": true}')
    news = iter((Progress(1, 0, 3), Progress(None, 2, 3)))
    take = connection.answer.take

    async def driving(message: Any) -> None:
        """Each piece that is out makes the engine say the next thing."""
        await take(message)
        progress = next(news, None) if connection.answer.pieces else None
        if progress is not None:
            engine.streams[1].report(progress)
        elif connection.answer.pieces[-1:] == [b"progress None 2\n"]:
            engine.streams[1].put("hey")
            engine.streams[1].end(FinishReason.STOP)

    connection.answer.take = driving  # type: ignore[method-assign]
    assert (await connection.run()).pieces == [
        b"open 3\n",
        b"progress 1 0\n",
        b"progress None 2\n",
        b"delta hey\n",
        b"close stop -\n",
    ]


async def test_from_a_workers_queue_to_the_chunks_of_an_openai_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(RATE_VARIABLE, "0")
    config = Config(engine=EngineConfig(engine="scripted", parallel=1, ctx=200))
    service = Service(in_thread(config.engine), config, FakeRenderer())
    await service.start()
    await service._engine.wait_ready()
    try:
        app = build_app(service, config)
        blocker = Connection(app, "POST", "/v1/completions")
        prompt = {"script": [["emit", 1], ["pause", 1000]]}
        blocker.feed(json.dumps({"prompt": json.dumps(prompt), "stream": True}).encode())
        client = Connection(app, "POST", "/v1/completions")
        ask_for = {"prompt": "hello", "max_tokens": 4, "ignore_eos": True, "priority": 5}
        client.feed(json.dumps({**ask_for, "stream": True, "return_progress": True}).encode())
        has_begun = asyncio.Event()
        when(blocker, b'"text"', has_begun.set)
        when(client, b'"queue"', blocker.hang_up)
        async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
            group.create_task(blocker.run())
            await has_begun.wait()
            waiting = group.create_task(client.run())
        first, *rest, end = events(waiting.result().body)
        assert first["queue"] == {"status": "queued", "position": 1, "eta_s": None}
        assert "".join(chunk["choices"][0]["text"] for chunk in rest) == expected_text("hello", 4)
        assert end == "[DONE]"
    finally:
        await service.close()


def when(connection: Connection, seen: bytes, do: Callable[[], object]) -> None:
    """Do something once, as soon as a piece of the answer contains these bytes."""
    take = connection.answer.take
    is_done = False

    async def looking(message: Any) -> None:
        nonlocal is_done
        await take(message)
        if not is_done and seen in connection.answer.body:
            is_done = True
            do()

    connection.answer.take = looking  # type: ignore[method-assign]
