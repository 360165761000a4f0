"""A generation from admission to its end."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from fakes import ALICE, FakeEngine, FakeRenderer, FakeStream, make_service, request, silent
from naiad.client.base import EngineState
from naiad.config import Config, EngineConfig
from naiad.errors import (
    EngineFailed,
    EngineUnavailable,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
)
from naiad.service.generate import Generation
from naiad.service.service import Service
from naiad.types import (
    Caller,
    ChatMessage,
    ChatPrompt,
    Finished,
    FinishReason,
    SamplingParams,
    TextDelta,
    TokenPrompt,
    Usage,
)


async def read(generation: Generation) -> tuple[str, Finished, int]:
    """(text, end, tokens told in deltas); checks that the end is one and last."""
    parts: list[str] = []
    n_tokens = 0
    end: Finished | None = None
    async for event in generation:
        assert end is None, "an event after the end"
        if isinstance(event, TextDelta):
            assert event.text
            parts.append(event.text)
            n_tokens += event.n_tokens
        elif isinstance(event, Finished):
            end = event
    assert end is not None
    return "".join(parts), end, n_tokens


async def test_a_generation_gives_its_text_once_and_one_end() -> None:
    engine = FakeEngine()
    async with make_service(engine).generate(request("hello"), ALICE) as generation:
        assert generation.started.n_prompt == 5
        text, end, n_tokens = await read(generation)
    assert (text, n_tokens) == ("hello", 5)
    assert end == Finished(FinishReason.STOP, Usage(5, 5, 1))
    assert engine.aborted == []


async def test_the_whole_answer_is_the_fold_of_the_stream() -> None:
    async with make_service(FakeEngine()).generate(request("hello"), ALICE) as generation:
        completion = await generation.whole()
        with pytest.raises(RuntimeError):
            await generation.whole()
    assert completion.text == "hello"
    assert completion.finished.reason is FinishReason.STOP


async def test_no_stop_string_counts_within_the_least_tokens() -> None:
    params = SamplingParams(min_tokens=3)
    asked = replace(request("a.b.c.d", stop=(".",)), sampling=params)
    engine = FakeEngine(lambda stream: stream.put(b"a.b", n_tokens=3))
    async with make_service(engine).generate(asked, ALICE) as generation:
        assert await anext(generation) == TextDelta("a.b", 3)
        engine.streams[1].put(b"c.d", n_tokens=3)
        text, end, _ = await read(generation)
    assert (text, end.reason, end.matched_stop) == ("c", FinishReason.STOP, ".")


async def test_a_split_character_waits_for_its_rest() -> None:
    def script(stream: FakeStream) -> None:
        for byte in "語🙂".encode():
            stream.put(bytes([byte]))
        stream.put(b"\xe8")
        stream.put(b"", n_tokens=1)  # the end-of-generation token: counted, no text
        stream.end(FinishReason.STOP)

    async with make_service(FakeEngine(script)).generate(request(), ALICE) as generation:
        text, end, _ = await read(generation)
    assert text == "語🙂"
    assert end.usage.completion_tokens == 9


async def test_a_stop_string_ends_the_engines_work_and_is_not_shown() -> None:
    engine = FakeEngine(silent)
    service = make_service(engine)
    async with service.generate(request(stop=("END",)), ALICE) as generation:
        stream = engine.streams[1]
        stream.put("one E")
        assert await anext(generation) == TextDelta("one ", 1)
        stream.put("ND two")
        end = await anext(generation)
        assert isinstance(end, Finished)
        assert (end.reason, end.matched_stop) == (FinishReason.STOP, "END")
        assert engine.aborted == [1]
        with pytest.raises(StopAsyncIteration):
            await anext(generation)
    assert engine.aborted == [1], "aborted exactly once"


async def test_a_stop_string_in_the_last_batch_needs_no_abort() -> None:
    def script(stream: FakeStream) -> None:
        stream.put("one END")
        stream.end(FinishReason.LENGTH)

    engine = FakeEngine(script)
    async with make_service(engine).generate(request(stop=("END",)), ALICE) as generation:
        text, end, _ = await read(generation)
    assert (text, end.reason, engine.aborted) == ("one ", FinishReason.STOP, [])


@pytest.mark.parametrize("reason", [FinishReason.STOP, FinishReason.LENGTH, FinishReason.CANCELLED])
async def test_held_back_text_comes_out_at_every_end(reason: FinishReason) -> None:
    def script(stream: FakeStream) -> None:
        stream.put("one EN")
        stream.end(reason)

    async with make_service(FakeEngine(script)).generate(request(stop=("END",)), ALICE) as g:
        text, end, _ = await read(g)
    assert (text, end.reason, end.matched_stop) == ("one EN", reason, None)


async def test_a_failing_engine_ends_the_stream_with_its_error() -> None:
    def script(stream: FakeStream) -> None:
        stream.put("half")
        stream.end(FinishReason.ERROR, EngineFailed("died"))

    async with make_service(FakeEngine(script)).generate(request(), ALICE) as generation:
        text, end, _ = await read(generation)
    assert text == "half"
    assert isinstance(end.error, EngineFailed)


@pytest.mark.parametrize("n_read", [0, 1])
async def test_leaving_early_aborts_once(n_read: int) -> None:
    engine = FakeEngine(silent)
    service = make_service(engine)
    async with service.generate(request(), ALICE) as generation:
        engine.streams[1].put("text")
        for _ in range(n_read):
            await anext(generation)
    assert engine.aborted == [1]
    assert service.health()["in_flight"] == 0
    assert service.perf()["n_cancelled"] == 1


async def test_an_exception_inside_aborts_and_passes_on() -> None:
    engine = FakeEngine(silent)
    service = make_service(engine)
    with pytest.raises(ZeroDivisionError):
        async with service.generate(request(), ALICE):
            raise ZeroDivisionError
    assert engine.aborted == [1]
    assert service.health()["in_flight"] == 0


async def test_cancelling_while_it_waits_for_a_token_aborts() -> None:
    engine = FakeEngine(silent)
    service = make_service(engine)

    async def run() -> None:
        async with service.generate(request(), ALICE) as generation:
            await read(generation)

    task = asyncio.create_task(run())
    await engine.until(lambda: bool(engine.streams))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.aborted == [1]


async def test_an_abort_by_handle_ends_with_cancelled() -> None:
    engine = FakeEngine(silent)
    service = make_service(engine)
    async with service.generate(request(handle="h"), ALICE) as generation:
        engine.streams[1].put("some")
        await anext(generation)
        assert service.partial_text(ALICE, "h") == "some"
        assert service.abort(ALICE, "h") is True
        _, end, _ = await read(generation)
    assert end.reason is FinishReason.CANCELLED
    assert engine.aborted == [1]


async def test_an_abort_before_the_engines_yes_is_remembered() -> None:
    engine = FakeEngine(silent)
    engine.gate.clear()
    service = make_service(engine)

    async def run() -> Finished:
        async with service.generate(request(handle="h"), ALICE) as generation:
            return (await read(generation))[1]

    task = asyncio.create_task(run())
    await engine.until(lambda: engine.n_waiting == 1)
    assert service.abort(ALICE, "h") is True
    engine.gate.set()
    assert (await task).reason is FinishReason.CANCELLED
    assert engine.aborted == [1]


async def test_what_the_engine_refuses_is_raised_on_entering() -> None:
    service = make_service(FakeEngine())
    with pytest.raises(InvalidRequest):
        async with service.generate(request("refuse"), ALICE):
            raise AssertionError("entered")
    assert service.health()["in_flight"] == 0
    assert service.abort(ALICE, None) is False, "a refusal is no hang-up and pays for no abort"


async def test_the_queue_is_bounded_and_checked_before_any_work() -> None:
    engine = FakeEngine(silent)
    renderer = FakeRenderer()
    service = Service(engine, Config(max_queue=1), renderer)
    chat = request(prompt=ChatPrompt((ChatMessage("user", "hi"),)))
    async with (
        service.generate(chat, ALICE),
        service.generate(chat, ALICE),
        service.generate(chat, ALICE),
    ):
        assert service.perf()["n_queued"] == 1
        with pytest.raises(Overloaded) as refused:
            async with service.generate(chat, ALICE):
                raise AssertionError("entered")
        assert 1 <= refused.value.details["retry_after"] <= 60
        assert (renderer.n_rendered, len(engine.streams)) == (3, 3)
    assert service.perf()["n_in_flight"] == 0
    async with service.generate(chat, ALICE):
        assert engine.streams[4].job.prompt == "hi"


async def test_the_configured_number_counts_while_the_engine_has_not_said_its_own() -> None:
    engine = FakeEngine(silent)
    assert engine.model is not None
    engine.model = type(engine.model)(name="fake")
    service = make_service(engine, Config(engine=EngineConfig(parallel=1), max_queue=0))
    async with service.generate(request(), ALICE):
        with pytest.raises(Overloaded):
            async with service.generate(request(), ALICE):
                raise AssertionError("entered")


@pytest.mark.parametrize(
    "state", [s for s in EngineState if s not in (EngineState.READY, EngineState.UNLOADED)]
)
async def test_without_a_ready_engine_requests_are_refused_with_a_time_to_retry(
    state: EngineState,
) -> None:
    engine = FakeEngine()
    engine.state = state
    engine.model = None if state is EngineState.STARTING else engine.model
    with pytest.raises(EngineUnavailable) as refused:
        async with make_service(engine).generate(request(), ALICE):
            raise AssertionError("entered")
    assert refused.value.details["retry_after"] >= 1


async def test_the_model_is_unknown_until_it_is_loaded() -> None:
    engine = FakeEngine()
    engine.model = None
    with pytest.raises(EngineUnavailable):
        _ = make_service(engine).model


async def test_model_names() -> None:
    def service(*, strict: bool) -> Service:
        config = Config(strict_model=strict)
        return Service(FakeEngine(), config, FakeRenderer(), lambda name: name == "other")

    for name in (None, "fake", "gpt-3.5-turbo"):
        async with service(strict=False).generate(request(model=name), ALICE) as generation:
            assert (await generation.whole()).text == "hello"
    for strict, name, word in ((True, "gpt-3.5-turbo", "not exist"), (False, "other", "installed")):
        with pytest.raises(ModelNotFound, match=word) as refused:
            async with service(strict=strict).generate(request(model=name), ALICE):
                raise AssertionError("entered")
        assert refused.value.param == "model"


async def test_prompts_of_each_kind_reach_the_engine() -> None:
    engine = FakeEngine()
    service = make_service(engine)
    chat = ChatPrompt((ChatMessage("user", "a"), ChatMessage("assistant", "b")))
    for prompt in (chat, TokenPrompt((1, 2))):
        async with service.generate(request(prompt=prompt), ALICE):
            pass
    assert [s.job.prompt for s in engine.streams.values()] == ["a|b", (1, 2)]
    assert await service.render_chat(request(prompt=chat)) == "a|b"
    assert await service.render_chat(request(prompt=TokenPrompt((104, 105)))) == "hi"


async def test_tokenising_and_its_reverse() -> None:
    service = make_service(FakeEngine())
    assert await service.tokenize("hi") == [104, 105]
    assert await service.detokenize([104, 0xFF]) == "h�"


async def test_counters_tell_of_the_last_generation() -> None:
    service = make_service(FakeEngine())
    assert service.perf()["last_finish_reason"] is None
    for text in ("hello", "you"):
        async with service.generate(request(text), ALICE) as generation:
            await generation.whole()
    perf = service.perf()
    assert (perf["n_generations"], perf["total_completion_tokens"]) == (2, 8)
    assert (perf["last_completion_tokens"], perf["last_finish_reason"]) == (3, "stop")
    assert (perf["n_failed"], perf["n_cancelled"], perf["n_queued"]) == (0, 0, 0)


async def test_health_tells_the_state_and_the_engines_settings() -> None:
    engine = FakeEngine()
    service = make_service(engine)
    report = service.health()
    assert (report["status"], report["ready"], report["model"]) == ("ok", True, "fake")
    assert {"threads", "kv_type", "n_ubatch", "pool_cells", "n_ctx"} <= set(report["engine"])
    for state, word in ((EngineState.STARTING, "loading"), (EngineState.FAILED, "failed")):
        engine.state, engine.model = state, None
        report = service.health()
        assert (report["status"], report["ready"], report["model"]) == (word, False, None)
        assert (report["live"], report["reason"], report["progress"]) == (True, "because", 0.5)


@pytest.mark.parametrize(("is_shared", "seen"), [(False, ["a", "b"]), (True, ["", ""])])
async def test_each_key_has_a_cache_of_its_own_unless_told_otherwise(
    is_shared: bool, seen: list[str]
) -> None:
    engine = FakeEngine()
    service = make_service(engine, Config(share_cache=is_shared))
    for namespace in ("a", "b"):
        async with service.generate(request(), Caller("x", namespace=namespace)) as generation:
            await read(generation)
    assert [stream.job.namespace for stream in engine.streams.values()] == seen


@pytest.mark.parametrize("cuts", [1, 3, 99])
async def test_a_stop_string_may_stay_in_the_text(cuts: int) -> None:
    engine = FakeEngine(silent)
    service = make_service(engine)
    asked = request(stop=("END", "never"), keeps_stop=True)
    async with service.generate(asked, ALICE) as generation:
        [stream] = engine.streams.values()
        said = "so it ENDs"
        for place in range(0, len(said), cuts):
            stream.put(said[place : place + cuts])
        stream.end(FinishReason.STOP)
        whole = await generation.whole()
    assert (whole.text, whole.finished.matched_stop) == ("so it END", "END")
