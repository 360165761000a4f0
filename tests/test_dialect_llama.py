"""llama-server's bodies, questions and errors."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from dialect_cases import CALLER, MODEL, FakeBackend, events, stream, whole
from fakes import FakeEngine, FakeRenderer
from http_client import LOCAL
from http_client import ask as over_http
from naiad.config import Config
from naiad.dialects.base import Access, Call, Parsed, Raw
from naiad.dialects.llama import DIALECT
from naiad.dialects.llama.errors import error_body
from naiad.dialects.llama.formatter import LlamaFormatter, timings_of
from naiad.dialects.llama.metrics import MEDIA
from naiad.dialects.llama.requests import parse_completion, parse_infill
from naiad.dialects.openai.requests import DEFAULTS
from naiad.errors import (
    ContextExceeded,
    EngineFailed,
    InvalidRequest,
    NaiadError,
    Overloaded,
    Unauthorized,
    Unsupported,
)
from naiad.http.app import build_app
from naiad.service.perf import Perf
from naiad.service.service import Service
from naiad.types import (
    CacheCounts,
    Finished,
    FinishReason,
    GenerateRequest,
    Progress,
    Running,
    TextPrompt,
    Timings,
    TokenPrompt,
    Usage,
)

ROUTES = {(one.method, one.path): one for one in DIALECT.operations}
CODER = msgspec.structs.replace(MODEL, infill=("<PRE>", "<SUF>", "<MID>"))


def parse(**body: Any) -> Parsed:
    return parse_completion({"prompt": "Once", **body}, MODEL)


async def ask(
    path: str, body: dict[str, Any] | None = None, backend: FakeBackend | None = None, **query: str
) -> Any:
    handle = ROUTES["GET" if body is None else "POST", path].handle
    assert handle is not None
    call = Call(body=body or {}, query=query, path_params={}, caller=CALLER)
    return await handle(backend or FakeBackend(), call)


# -- bodies -------------------------------------------------------------------------------------


def test_defaults() -> None:
    request = parse().request
    seed = request.sampling.seed
    assert request == GenerateRequest(
        TextPrompt("Once"), msgspec.structs.replace(DEFAULTS, seed=seed)
    )


@pytest.mark.parametrize(
    ("prompt", "want"),
    [
        ("", TextPrompt("")),
        ([1, 2], TokenPrompt((1, 2))),
        (["Once"], TextPrompt("Once")),
        ({"prompt_string": "Once"}, TextPrompt("Once")),
        ({"prompt_string": "Once", "multimodal_data": []}, TextPrompt("Once")),
    ],
)
def test_prompts(prompt: Any, want: Any) -> None:
    assert parse(prompt=prompt).request.prompt == want


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ({"prompt": None}, "'prompt' is missing"),
        ({"prompt": {}}, "'prompt.prompt_string' is missing"),
        ({"prompt": {"prompt_string": "x", "multimodal_data": ["A"]}}, "multimodal_data"),
        ({"prompt": ["a", "b"]}, "2 prompts"),
        ({"n_predict": -3}, "'n_predict' must be an integer from -2"),
        ({"n_cmpl": 2}, "'n_cmpl' is not supported"),
        ({"response_fields": ["x"] * 65}, "'response_fields' may name at most 64"),
        ({"response_fields": [5]}, "'response_fields[0]' must be a string"),
        ({"temperature": "hot"}, "'temperature'"),
    ],
)
def test_refusals(body: dict[str, Any], what: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(what)):
        parse(**body)


@pytest.mark.parametrize(("given", "limit"), [(-1, None), (-2, None), (None, None), (7, 7), (0, 1)])
def test_lengths(given: int | None, limit: int | None) -> None:
    assert parse(n_predict=given).request.max_tokens == limit


def test_no_text_is_told_where_none_is_asked_for() -> None:
    finished = Finished(FinishReason.LENGTH, Usage(7, 1))
    formatter = parse(n_predict=0).formatter
    [last] = events(stream(formatter, ["Hel"], finished))
    assert (last["content"], last["tokens_predicted"], last["stop_type"]) == ("", 0, "limit")
    assert whole(parse(n_predict=0).formatter, ["Hel"], finished)["content"] == ""


def test_what_clients_send_to_say_nothing_is_no_news() -> None:
    silent = {"cache_prompt": True, "id_slot": -1, "n_keep": 0, "return_tokens": False, "lora": []}
    assert parse(**silent).ignored == ()
    assert parse(n_keep=5, id_slot=2).ignored == ("n_keep", "id_slot")


def test_infill() -> None:
    body = {
        "input_prefix": "def f(",
        "input_suffix": "):",
        "input_extra": [{"filename": "a.py", "text": "A = 1"}],
        "prompt": "x",
        "n_predict": 3,
        "stream": True,
    }
    request = parse_infill(body, CODER).request
    assert request.prompt == TextPrompt("A = 1\n<PRE>def f(<SUF>):<MID>x")
    assert (request.max_tokens, request.stream) == (3, True)
    assert parse_infill({"input_suffix": "b"}, CODER).request.prompt == TextPrompt(
        "<PRE><SUF>b<MID>"
    )
    with pytest.raises(InvalidRequest, match="'input_prefix' or 'input_suffix'"):
        parse_infill({}, CODER)
    with pytest.raises(InvalidRequest, match=r"'input_extra\[0\].text' is missing"):
        parse_infill({"input_prefix": "a", "input_extra": [{}]}, CODER)
    with pytest.raises(Unsupported, match="has no tokens for that"):
        parse_infill({"input_prefix": "a"}, MODEL)


def test_images_are_refused_and_no_images_are_none() -> None:
    assert parse(image_data=[]).ignored == ()
    with pytest.raises(Unsupported, match="'image_data' is not supported; this model reads text"):
        parse(image_data=[{"data": "aaaa", "id": 1}])


# -- answers ------------------------------------------------------------------------------------


def test_settings_are_told_under_its_names() -> None:
    asked = parse(
        top_k=5, repeat_penalty=1.2, seed=9, n_predict=4, stop="\n", grammar='root ::= "a"'
    )
    told = whole(asked.formatter, ["a"], Finished(FinishReason.STOP, Usage(1, 1)))
    settings = told["generation_settings"]
    assert {name: settings[name] for name in ("top_k", "repeat_penalty", "seed", "n_predict")} == {
        "top_k": 5,
        "repeat_penalty": 1.2,
        "seed": 9,
        "n_predict": 4,
    }
    assert (settings["stop"], settings["grammar"]) == (["\n"], 'root ::= "a"')
    assert (told["prompt"], told["model"]) == ("Once", "tiny.Q4_1")


def test_figures() -> None:
    usage = Usage(prompt_tokens=30, completion_tokens=8, cached_tokens=10)
    assert timings_of(usage, Timings(prompt_s=0.5, text_s=2.0)) == {
        "cache_n": 10,
        "prompt_n": 20,
        "prompt_ms": 500.0,
        "prompt_per_token_ms": 25.0,
        "prompt_per_second": 40.0,
        "predicted_n": 8,
        "predicted_ms": 2000.0,
        "predicted_per_token_ms": 250.0,
        "predicted_per_second": 4.0,
    }


@pytest.mark.parametrize(
    ("reason", "n_predicted", "is_truncated"),
    [
        (FinishReason.LENGTH, 3, True),
        (FinishReason.LENGTH, 2, False),
        (FinishReason.STOP, 3, False),
    ],
)
def test_a_full_context_is_told(reason: FinishReason, n_predicted: int, is_truncated: bool) -> None:
    finished = Finished(reason, Usage(7, n_predicted))
    assert whole(LlamaFormatter("m", n_ctx=10), ["a"], finished)["truncated"] is is_truncated


def test_text_that_was_given_up_is_told() -> None:
    finished = Finished(FinishReason.STOP, Usage(7, 3, dropped_tokens=2))
    assert whole(LlamaFormatter("m", n_ctx=99), ["a"], finished)["truncated"] is True


def test_new_lines_are_noticed_streamed_and_whole() -> None:
    finished = Finished(FinishReason.STOP, Usage(1, 2))
    for pieces, want in ((["a\n", "b"], True), (["a", "b"], False)):
        assert events(stream(LlamaFormatter("m"), pieces, finished))[-1]["has_new_line"] is want
        assert whole(LlamaFormatter("m"), pieces, finished)["has_new_line"] is want


def test_progress_is_an_event_without_text() -> None:
    [event] = events(LlamaFormatter("m").progress(Progress(None, 5, 9, 2)))
    assert (event["content"], event["stop"]) == ("", False)
    assert event["prompt_progress"]["processed"] == 5


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (InvalidRequest("m", param="top_k"), 400, "invalid_request_error"),
        (Unsupported("m"), 400, "not_supported_error"),
        (Unauthorized("m"), 401, "authentication_error"),
        (Overloaded("m", retry_after=3), 503, "unavailable_error"),
        (EngineFailed("m"), 500, "server_error"),
    ],
)
def test_errors(error: NaiadError, code: int, kind: str) -> None:
    told = error_body(error)["error"]
    assert (told["code"], told["message"], told["type"]) == (code, "m", kind)
    assert told.get("param") == error.param


def test_a_prompt_that_does_not_fit_is_told_with_both_numbers() -> None:
    told = error_body(ContextExceeded("m", n_prompt_tokens=9, n_ctx=8))["error"]
    assert (told["type"], told["n_prompt_tokens"], told["n_ctx"]) == (
        "exceed_context_size_error",
        9,
        8,
    )


# -- questions ----------------------------------------------------------------------------------


async def test_tokens() -> None:
    assert await ask("/tokenize", {"content": "ab"}) == {"tokens": [97, 98]}
    assert await ask("/tokenize", {"content": ""}) == {"tokens": []}
    assert await ask("/tokenize", {"content": "a", "add_special": True}) == {"tokens": [1, 97]}
    told = await ask("/tokenize", {"content": "aà", "with_pieces": True})
    assert told["tokens"] == [{"id": 97, "piece": "a"}, {"id": 224, "piece": [0xAC]}]
    for body in ({}, {"content": 5}, {"content": ["a"]}):
        with pytest.raises(InvalidRequest, match="'content'"):
            await ask("/tokenize", body)
    with pytest.raises(InvalidRequest, match="at most 16384 tokens; this one has 16385"):
        await ask("/tokenize", {"content": "a" * 16_385, "with_pieces": True})
    assert await ask("/detokenize", {"tokens": [97, 98]}) == {"content": "ab!"}
    for ids in (None, "5", [-1], [1000], ["a"]):
        with pytest.raises(InvalidRequest, match="'tokens'"):
            await ask("/detokenize", {"tokens": ids})


async def test_templates() -> None:
    backend = FakeBackend()
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = {"messages": [{"role": "user", "content": "Hi"}], "tools": tools}
    assert await ask("/apply-template", body, backend) == {"prompt": "rendered"}
    assert [tool.name for tool in backend.asked[0].prompt.tools] == ["f"]
    with pytest.raises(InvalidRequest, match="'messages' is missing"):
        await ask("/apply-template", {})


async def test_props() -> None:
    props = await ask("/props")
    assert props["default_generation_settings"]["n_ctx"] == 4096
    assert props["default_generation_settings"]["params"]["temperature"] == 0.8
    assert (props["total_slots"], props["model_path"]) == (8, "tiny.Q4_1")
    assert props["chat_template"] == MODEL.chat_template
    with pytest.raises(Unsupported, match="cannot be changed"):
        await ask("/props", {"x": 1})


async def test_slots_are_the_callers_own() -> None:
    counters = {"n_in_flight": 8}
    backend = FakeBackend(counters=counters)
    assert await ask("/slots", None, backend) == []
    request = parse(n_predict=5, top_k=3, stop=["x"]).request
    backend.at_work = [
        Running(request, Usage(7, 2)),
        Running(parse().request, Usage(9, 0)),
    ]
    first, second = await ask("/slots", None, backend)
    assert (first["id"], second["id"], first["params"]["top_k"]) == (0, 1, 3)
    assert first["next_token"] == {"has_next_token": True, "n_remain": 3, "n_decoded": 2}
    assert second["next_token"]["n_remain"] == -1
    assert backend.asked == [CALLER, CALLER]
    with pytest.raises(Overloaded, match="No slot is free"):
        await ask("/slots", None, backend, fail_on_no_slot="1")
    counters["n_in_flight"] = 7
    assert len(await ask("/slots", None, backend, fail_on_no_slot="1")) == 2


async def test_there_are_no_adapters() -> None:
    assert await ask("/lora-adapters") == []


async def test_metrics_are_what_was_counted() -> None:
    perf = Perf(lambda: 5.0)
    ends = [FinishReason.STOP, FinishReason.LENGTH, FinishReason.ERROR, FinishReason.CANCELLED]
    for reason in ends:
        perf.record(Finished(reason, Usage(30, 8, 10)), 1, 0.5, 2.0)
    cache = CacheCounts(
        n_from_memory=1,
        n_from_disk=2,
        n_bytes_from_disk=3,
        n_lost=4,
        n_saved=5,
        n_bytes_in_memory=6,
        n_bytes_on_disk=7,
    )
    answer = await ask("/metrics", None, FakeBackend(counters=perf.snapshot(3, 1, 99, cache)))
    assert isinstance(answer, Raw)
    assert answer.media == MEDIA
    lines = answer.data.decode().splitlines()
    assert dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#")) == {
        "llamacpp:tokens_predicted_total": "32",
        "llamacpp:tokens_predicted_seconds_total": "8.0",
        "llamacpp:prompt_seconds_total": "2.0",
        "llamacpp:requests_deferred": "1",
        "naiad_prompt_tokens_cached_total": "40",
        "naiad_uptime_seconds": "0.0",
        "llamacpp:prompt_tokens_total": "80",
        "llamacpp:requests_processing": "2",
        "llamacpp:prompt_tokens_seconds": "40.0",
        "llamacpp:predicted_tokens_seconds": "4.0",
        'naiad_requests_total{outcome="completed"}': "2",
        'naiad_requests_total{outcome="failed"}': "1",
        'naiad_requests_total{outcome="cancelled"}': "1",
        "naiad_prompt_tokens_waiting": "99",
        'naiad_cache_states_reused_total{tier="memory"}': "1",
        'naiad_cache_states_reused_total{tier="disk"}': "2",
        "naiad_cache_read_bytes_total": "3",
        "naiad_cache_states_lost_total": "4",
        "naiad_cache_states_saved_total": "5",
        'naiad_cache_bytes{tier="memory"}': "6",
        'naiad_cache_bytes{tier="disk"}': "7",
    }


async def test_metrics_keep_to_prometheus_format() -> None:
    answer = await ask("/metrics", None, FakeBackend(counters=Perf().snapshot(0, 0)))
    families: dict[str, str] = {}
    for line in answer.data.decode().removesuffix("\n").split("\n"):
        if found := re.fullmatch(r"# HELP (\S+) .+", line):
            assert found[1] not in families
            families[found[1]] = ""
        elif found := re.fullmatch(r"# TYPE (\S+) (counter|gauge)", line):
            families[found[1]] = found[2]
        else:
            found = re.fullmatch(r'([a-z_:]+)(\{[a-z]+="[a-z]+"\})? ([\d.e+-]+)', line)
            assert found is not None, line
            assert found[1].endswith("_total") == (families[found[1]] == "counter")


# -- over the whole app -------------------------------------------------------------------------


def test_everything_is_behind_the_key() -> None:
    assert {one.access for one in DIALECT.operations} == {Access.USER}


async def test_over_the_app() -> None:
    config = Config(api_key="secret")
    app = build_app(Service(FakeEngine(), config, FakeRenderer()), config)
    key = [*LOCAL, ("x-api-key", "secret")]
    for (method, path), _ in ROUTES.items():
        refused = await over_http(app, method, path, {} if method == "POST" else None)
        assert (refused.status, refused.value["error"]["type"]) == (401, "authentication_error")
    whole = await over_http(app, "POST", "/completion", {"prompt": "Hi 😀"}, key)
    assert (whole.value["content"], whole.value["stop_type"]) == ("Hi 😀", "eos")
    metrics = await over_http(app, "GET", "/metrics", None, key)
    assert metrics.headers["content-type"] == MEDIA
    assert 'naiad_requests_total{outcome="completed"} 1' in metrics.body.decode().splitlines()
    assert (await over_http(app, "GET", "/slots", None, key)).value == []
    pieces = await over_http(app, "POST", "/tokenize", {"content": "é", "with_pieces": 1}, key)
    assert pieces.value["tokens"] == [{"id": 195, "piece": [195]}, {"id": 169, "piece": [169]}]
    wrong = await over_http(app, "PUT", "/completion", None, key)
    assert (wrong.status, wrong.value["error"]["code"]) == (405, 405)
    assert (await over_http(app, "GET", "/v1/health")).value["status"] == "ok"
