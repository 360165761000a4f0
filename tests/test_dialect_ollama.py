"""Ollama's dialect: the `ollama` package against the whole server, and bodies by hand."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from dialect_cases import MODEL
from dialect_server import CALL, TEMPLATE, House, failing, house, saying
from naiad.client.base import EngineState
from naiad.dialects.base import Immediate, Parsed
from naiad.dialects.ollama import DIALECT
from naiad.dialects.ollama.requests import parse_chat, parse_generate
from naiad.dialects.registry import for_path
from naiad.errors import InvalidRequest, Overloaded, Unsupported
from naiad.types import ChatPrompt, FinishReason, TextPrompt
from patience import PATIENCE_S

HI: list[Any] = [{"role": "user", "content": "Hi"}]
M = "tiny.Q4_1:latest"
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def client(running: House) -> ollama.AsyncClient:
    made = ollama.AsyncClient(host=running.url, timeout=PATIENCE_S)
    running.closing.push_async_callback(made._client.aclose)
    return made


# -- the package --------------------------------------------------------------------------------


async def test_chat_streamed_and_whole() -> None:
    async with house(saying("Hel", "lo 😀")) as running:
        told = await client(running).chat(M, HI)
        assert (told.message.role, told.message.content) == ("assistant", "Hello 😀")
        chunks = [chunk async for chunk in await client(running).chat(M, HI, stream=True)]
    assert "".join(chunk.message.content or "" for chunk in chunks) == "Hello 😀"
    last = chunks[-1]
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert (last.done_reason, last.model, told.done_reason) == ("stop", M, "stop")
    assert last.eval_count == told.eval_count == 2
    assert last.prompt_eval_count == told.prompt_eval_count == len(running.prompt)
    for answer in (told, last):
        parts = (answer.load_duration, answer.prompt_eval_duration, answer.eval_duration)
        assert all(part is not None and part >= 0 for part in parts)
        assert answer.total_duration == sum(part or 0 for part in parts) > 0


async def test_generate_streamed_and_whole() -> None:
    async with house(saying("Hel", "lo", reason=FinishReason.LENGTH)) as running:
        told = await client(running).generate(M, "Hi", system="Be kind.")
        assert running.asked["turns"] == [{"role": "system", "content": "Be kind."}, *HI]
        assert (told.response, told.done_reason) == ("Hello", "length")
        stream = await client(running).generate(M, "Hi", stream=True)
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.response or "" for chunk in chunks) == "Hello"
        await client(running).generate(M, "Once upon", raw=True)
        assert running.prompt == "Once upon"


async def test_streams_one_after_another_are_each_their_own() -> None:
    async with house(saying("a", "b", "c")) as running:
        for _ in range(3):
            stream = await client(running).chat(M, HI, stream=True)
            assert "".join([chunk.message.content or "" async for chunk in stream]) == "abc"


async def test_thinking_has_a_field_of_its_own() -> None:
    async with house(saying("<thi", "nk>wh", "y</th", "ink>\n\nso")) as running:
        told = await client(running).chat(M, HI, think=True)
        first = running.asked
        assert (told.message.thinking, told.message.content) == ("why", "so")
        stream = await client(running).generate(M, "Hi", think=False, stream=True)
        chunks = [chunk async for chunk in stream]
        assert (first["thinking"], running.asked["thinking"]) == (True, False)
    assert "".join(chunk.thinking or "" for chunk in chunks) == "why"
    assert "".join(chunk.response or "" for chunk in chunks) == "so"


async def test_thinking_is_refused_where_the_model_cannot() -> None:
    async with house(saying("so"), template="{{ messages }}") as running:
        with pytest.raises(ollama.ResponseError, match="does not support thinking") as caught:
            await client(running).chat(M, HI, think=True)
        assert caught.value.status_code == 400
        shown = await client(running).show(M)
        assert shown.capabilities == ["completion", "tools"]


async def test_tools_are_called_and_their_results_sent_back() -> None:
    async with house(saying("Let me see.\n", CALL[:25], CALL[25:])) as running:
        for is_streamed in (False, True):
            if is_streamed:
                stream = await client(running).chat(M, HI, tools=[TOOL], stream=True)
                answers = [chunk async for chunk in stream]
            else:
                answers = [await client(running).chat(M, HI, tools=[TOOL])]
            calls = [call for one in answers for call in one.message.tool_calls or ()]
            assert [call.function.name for call in calls] == ["get_weather"]
            assert calls[0].function.arguments == {"city": "Köln 😀"}
            assert "".join(one.message.content or "" for one in answers) == "Let me see."
            assert answers[-1].done_reason == "stop"
        assert running.asked["tools"] == [TOOL]
        result = {"role": "tool", "tool_name": "get_weather", "content": "30 C"}
        await client(running).chat(M, [*HI, answers[-2].message, result])
        _, assistant, tool = running.asked["turns"]
        function = assistant["tool_calls"][0]["function"]
        assert function == {"name": "get_weather", "arguments": {"city": "Köln 😀"}}
        assert tool == {"role": "tool", "content": "30 C", "name": "get_weather"}


async def test_an_assistants_last_turn_is_gone_on_with() -> None:
    async with house(saying("so")) as running:
        await client(running).chat(M, [*HI, {"role": "assistant", "content": "It is"}])
        assert running.asked["open"] is True
        await client(running).chat(M, HI)
        assert running.asked["open"] is False


async def test_failures_are_errors_of_the_package() -> None:
    async with house(failing) as running:
        received = []
        with pytest.raises(ollama.ResponseError, match="The engine died"):
            async for chunk in await client(running).chat(M, HI, stream=True):
                received.append(chunk.message.content)
        assert received == ["Hel"]
        with pytest.raises(ollama.ResponseError, match="The engine died") as caught:
            await client(running).chat(M, HI)
        assert caught.value.status_code == 500
        with pytest.raises(ollama.ResponseError, match="not found") as caught:
            await client(running).show("other")
        assert caught.value.status_code == 404
        for call in (client(running).pull("x"), client(running).delete("x")):
            with pytest.raises(ollama.ResponseError, match="naiad pull") as caught:
                await call
            assert caught.value.status_code == 400


async def test_what_is_asked_about_models() -> None:
    async with house(saying("so")) as running:
        (model,) = (await client(running).list()).models
        assert (model.model, model.size) == (M, 98_000_000)
        assert model.details is not None
        assert model.details.parameter_size == "134.5M"
        assert model.details.quantization_level == "Q4_1"
        (run,) = (await client(running).ps()).models
        assert (run.model, run.context_length, run.digest) == (M, 4096, model.digest)
        assert run.expires_at is not None
        shown = await client(running).show(M)
        assert shown.capabilities == ["completion", "tools", "thinking"]
        assert shown.template == TEMPLATE
        assert shown.modelinfo is not None
        assert shown.modelinfo["llama.context_length"] == 8192


async def test_without_a_prompt_the_model_is_loaded_and_unloaded() -> None:
    async with house(saying("so")) as running:
        told = await client(running).generate(M, keep_alive="24h")
        assert (told.response, told.done, told.done_reason) == ("", True, "load")
        shown = (await client(running).ps()).models[0]
        assert shown.expires_at is not None
        left_s = (shown.expires_at - datetime.now(UTC)).total_seconds()
        assert left_s == pytest.approx(86_400, abs=PATIENCE_S)
        chat = await client(running).chat(M, [], keep_alive=0)
        assert (chat.message.content, chat.done_reason) == ("", "unload")
        assert (running.engine.n_unloads, (await client(running).ps()).models) == (1, [])
        assert [model.model for model in (await client(running).list()).models] == [M]
        assert (await client(running).generate(M)).done_reason == "load"
        assert len((await client(running).ps()).models) == 1
        assert running.engine.streams == {}


async def test_an_unloaded_model_is_loaded_by_the_next_request_which_is_told() -> None:
    async with house(saying("so")) as running:
        await client(running).generate(M, "Hi", keep_alive=0)
        assert running.engine.state is EngineState.UNLOADED
        running.engine.after_load = EngineState.STARTING
        async with (
            httpx.AsyncClient() as http,
            http.stream(
                "POST",
                f"{running.url}/api/generate",
                json={"prompt": "Hi", "return_progress": True},
            ) as answer,
        ):
            lines = answer.aiter_lines()
            first = json.loads(await anext(lines))
            assert (first["model_load"], first["response"]) == ({"progress": 0.5}, "")
            running.engine.become(EngineState.READY)
            rest = [json.loads(line) async for line in lines]
        assert [line["response"] for line in rest] == ["so", ""]


async def test_only_the_administrator_unloads() -> None:
    async with house(saying("so"), api_key="user", admin_key="admin") as running:
        user, admin = (
            ollama.AsyncClient(host=running.url, headers={"authorization": f"Bearer {key}"})
            for key in ("user", "admin")
        )
        for one in (user, admin):
            running.closing.push_async_callback(one._client.aclose)
        with pytest.raises(ollama.ResponseError, match="administrator") as caught:
            await user.generate(M, keep_alive=0)
        assert caught.value.status_code == 403
        await user.generate(M, "Hi", keep_alive=0)
        assert running.engine.n_unloads == 0
        await admin.generate(M, "Hi", keep_alive="0s")
        assert running.engine.n_unloads == 1


async def test_the_context_goes_on_where_an_earlier_answer_ended() -> None:
    async with house(saying("Hel", "lo")) as running:
        first = await client(running).generate(M, "Hi")
        n_answer = first.eval_count or 0
        assert list(first.context or ())[:-n_answer] == list(running.prompt.encode())
        again = await client(running).generate(M, "More", context=first.context)
        prompt = running.job.prompt
        assert prompt[: len(first.context or ())] == tuple(first.context or ())
        assert b"More" in bytes(prompt[len(first.context or ()) :])
        assert tuple(again.context or ())[:-n_answer] == prompt
        chunks = [chunk async for chunk in await client(running).generate(M, "Hi", stream=True)]
        assert [bool(chunk.context) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        raw = await client(running).generate(M, "Hi", raw=True)
        assert raw.context is None


async def test_what_concerns_a_library_of_models_is_refused_by_name(tmp_path: Path) -> None:
    blob = tmp_path / "model.gguf"
    blob.write_bytes(b"\x00GGUF\xff" * 100_000)
    async with house(saying("so")) as running:
        asks = client(running)
        for asked in (
            asks.pull("llama3"),
            asks.push("me/llama3"),
            asks.copy(M, "other"),
            asks.delete(M),
            asks.create("mine", from_=M),
            asks.create_blob(blob),
        ):
            with pytest.raises(ollama.ResponseError, match="naiad pull") as caught:
                await asked
            assert caught.value.status_code == 400
        assert (await asks.chat(M, HI)).message.content == "so"
        async with httpx.AsyncClient() as http:
            missing = await http.head(f"{running.url}/api/blobs/sha256:00")
        assert (missing.status_code, missing.content) == (400, b"")


async def test_the_wire_is_lines_of_json() -> None:
    async with house(saying("a\n\u2028b")) as running, httpx.AsyncClient() as http:
        answer = await http.post(f"{running.url}/api/chat", json={"model": M, "messages": HI})
        assert answer.headers["content-type"] == "application/x-ndjson"
        lines = answer.text.split("\n")
        assert lines.pop() == ""
        assert len([json.loads(line) for line in lines]) == 2
        wrong = await http.get(f"{running.url}/api/chat")
        assert (wrong.status_code, list(wrong.json())) == (405, ["error"])
        bad = await http.post(f"{running.url}/api/chat", content=b"{")
        assert (bad.status_code, list(bad.json())) == (400, ["error"])
        version = await http.get(f"{running.url}/api/version")
        assert version.json()["version"].count(".") == 2


# -- bodies -------------------------------------------------------------------------------------


def chat(**fields: Any) -> Parsed:
    parsed = parse_chat({"model": M, "messages": HI, **fields}, MODEL)
    assert isinstance(parsed, Parsed)
    return parsed


def test_options_are_the_sampling_parameters() -> None:
    options = {
        "temperature": 0,
        "top_k": 5,
        "repeat_penalty": 1.5,
        "repeat_last_n": -1,
        "seed": 7,
        "stop": ["\n", "END"],
        "num_predict": 9,
        "num_ctx": 2048,
        "num_gpu": 99,
        "mirostat": 2,
        "new": 1,
    }
    parsed = chat(options=options, keep_alive=-1)
    made = parsed.request
    assert (made.sampling.temperature, made.sampling.top_k, made.sampling.seed) == (0, 5, 7)
    assert (made.sampling.repetition_penalty, made.sampling.penalty_last_n) == (1.5, -1)
    assert (made.stop, made.max_tokens, made.sampling.mirostat) == (("\n", "END"), 9, 2)
    assert parsed.ignored == ("options.new",)


def test_what_a_request_does_not_say() -> None:
    made = chat().request
    assert (made.stream, made.max_tokens, made.model) == (True, None, "tiny.Q4_1")
    assert (made.sampling.top_p, made.sampling.repetition_penalty) == (0.9, 1.1)
    assert chat(stream=False, options={"num_predict": -1}).request.max_tokens is None


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [
        *(
            (0, 0),
            ("0", 0),
            (300, 300),
            ("5m", 300),
            ("1h30m", 5400),
            ("500ms", 0.5),
            (" 10s ", 10),
        ),
        *((-1, math.inf), ("-1", math.inf), ("-1m", math.inf), ("9999999h", math.inf)),
    ],
)
def test_how_long_a_model_shall_stay(sent: Any, seconds: float) -> None:
    assert chat(keep_alive=sent).request.keep_alive_s == seconds


@pytest.mark.parametrize("think", ["low", "medium", "high"])
def test_how_hard_to_think_is_told_to_the_template(think: str) -> None:
    prompt = chat(think=think).request.prompt
    assert isinstance(prompt, ChatPrompt)
    assert (prompt.thinking, prompt.template_kwargs) == (True, (("reasoning_effort", think),))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"suffix": "x"}, "'suffix' is not supported"),
        ({"images": ["aGk="]}, "reads text only"),
        ({"template": "{{ .Prompt }}"}, "'raw': true"),
        ({"context": [1, 2], "raw": True}, "'context' has no place in a raw prompt"),
        ({"system": "Be kind.", "raw": True}, "'system' has no place in a raw prompt"),
        ({"context": [1, 5000]}, "'context' must hold token ids"),
        ({"keep_alive": "soon"}, 'such as "5m"'),
        ({"keep_alive": True}, "'keep_alive' must be a number of seconds"),
        ({"think": "much"}, "'think' must be true, false or one of low"),
        ({"options": {"temperature": "hot"}}, "'options.temperature' must be a number"),
        ({"options": 5}, "'options' must be an object"),
        ({"prompt": 5}, "'prompt' must be a string"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_generate({"model": M, "prompt": "Hi", **fields}, MODEL)
    assert words in caught.value.message


@pytest.mark.parametrize("form", ["json", {"type": "object"}])
def test_a_format_becomes_a_grammar(form: Any) -> None:
    grammar = chat(format=form).request.grammar
    assert grammar is not None
    assert (grammar.kind, grammar.text) == ("json_schema", '{"type":"object"}')
    assert chat(format="").request.grammar is None


def test_images_in_messages_are_refused() -> None:
    with pytest.raises(Unsupported, match=r"messages\[0\].images"):
        chat(messages=[{"role": "user", "content": "?", "images": ["aGk="]}])


def test_empty_fields_ask_for_nothing() -> None:
    silent = {"suffix": "", "images": [], "template": "", "context": [], "format": "", "raw": True}
    parsed = parse_generate({"prompt": "Hi", **silent}, MODEL)
    assert isinstance(parsed, Parsed)
    assert parsed.request.prompt == TextPrompt("Hi")
    assert parsed.ignored == ()
    assert isinstance(parse_generate({}, MODEL), Immediate)


def test_paths_of_ollama_answer_in_its_shape() -> None:
    names = {path: for_path(path).name for path in ("/api/chat", "/api/tags", "/api/v1/x")}
    assert names == {"/api/chat": "ollama", "/api/tags": "ollama", "/api/v1/x": "kobold"}
    assert DIALECT.error_body(Overloaded("Full.")) == {"error": "Full."}
