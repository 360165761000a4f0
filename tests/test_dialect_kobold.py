"""KoboldAI's bodies, questions and errors."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialect_cases import CALLER, MODEL, FakeBackend, events, stream, whole
from naiad.dialects.base import Access, Call, Operation, Parsed
from naiad.dialects.kobold import DIALECT
from naiad.dialects.kobold.errors import error_body
from naiad.dialects.kobold.formatter import KoboldFormatter
from naiad.dialects.kobold.requests import parse_stream, parse_whole
from naiad.dialects.registry import DIALECTS, for_path
from naiad.dialects.sampler_order import kobold_order
from naiad.errors import (
    EngineFailed,
    InvalidRequest,
    NaiadError,
    NotFound,
    Overloaded,
    Unauthorized,
)
from naiad.types import (
    ChatMessage,
    ChatPrompt,
    Finished,
    FinishReason,
    SamplingParams,
    TextPrompt,
    Trim,
    Usage,
)

ROUTES: dict[tuple[str, str], Operation] = {
    (operation.method, operation.path): operation for operation in DIALECT.operations
}
COUNTERS = {
    "uptime_s": 9.0,
    "idle_s": 1.0,
    "n_in_flight": 0,
    "n_queued": 2,
    "n_generations": 5,
    "last_prompt_tokens": 30,
    "last_cached_tokens": 10,
    "last_completion_tokens": 8,
    "last_seed": 42,
    "last_finish_reason": "stop",
    "last_prompt_s": 0.5,
    "last_decode_s": 2.0,
}


def parse(**body: Any) -> Parsed:
    return parse_whole({"prompt": "Once", **body}, MODEL)


async def ask(
    path: str, body: dict[str, Any] | None = None, backend: FakeBackend | None = None
) -> Any:
    handle = ROUTES["GET" if body is None else "POST", path].handle
    assert handle is not None
    call = Call(body=body or {}, query={}, path_params={}, caller=CALLER)
    return await handle(backend or FakeBackend(counters=COUNTERS), call)


def test_documented_defaults() -> None:
    request = parse().request
    assert request.prompt == TextPrompt("Once")
    assert request.max_tokens == 2048
    assert request.sampling == SamplingParams(
        temperature=0.7,
        top_k=100,
        top_p=0.9,
        penalty_last_n=320,
        dry_last_n=320,
        xtc_threshold=0.2,
        order=kobold_order(),
        seed=request.sampling.seed,
    )
    assert (request.stop, request.handle, request.stream) == ((), None, False)


def test_the_path_says_whether_to_stream() -> None:
    assert parse_stream({"prompt": "Once", "stream": False}, MODEL).request.stream
    assert not parse(stream=True).request.stream


def test_memory_goes_in_front() -> None:
    assert parse(memory="Long ago. ").request.prompt == TextPrompt("Long ago. Once")


def test_usual_fields() -> None:
    request = parse(max_length=80, stop_sequence=["\nYou:"], genkey="KCPP1", sampler_seed=3).request
    assert (request.max_tokens, request.stop, request.handle) == (80, ("\nYou:",), "KCPP1")
    assert request.sampling.seed == 3


@pytest.mark.parametrize("value", [None, 5, [1, 2], "\ud800"])
def test_the_prompt_must_be_text(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="'prompt'"):
        parse(prompt=value)


@pytest.mark.parametrize("value", [0, -1, "x", 1.5])
def test_bad_lengths(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="'max_length' must be an integer of at least 1"):
        parse(max_length=value)


def test_a_context_of_its_own_is_a_bound() -> None:
    assert parse(max_context_length=2048).request.trim == Trim(2048)
    with pytest.raises(InvalidRequest, match="'max_context_length'"):
        parse(max_context_length="long")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=6))
def test_the_fold_of_a_stream_is_the_whole(pieces: list[str]) -> None:
    finished = Finished(FinishReason.STOP, Usage(1, 2, 0))
    chunks = events(stream(KoboldFormatter(), pieces, finished))
    result = whole(KoboldFormatter(), pieces, finished)["results"][0]
    assert "".join(chunk["token"] for chunk in chunks) == result["text"]
    assert chunks[-1]["finish_reason"] == result["finish_reason"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequest("m"), "bad_input"),
        (NotFound("m"), "bad_input"),
        (Unauthorized("m"), "unauthorized"),
        (Overloaded("m", retry_after=3), "service_unavailable"),
        (EngineFailed("m"), "generation_error"),
    ],
)
def test_errors(error: NaiadError, kind: str) -> None:
    assert error_body(error) == {"detail": {"msg": "m", "type": kind}}


@pytest.mark.parametrize("prefix", ["/api/v1", "/api/latest"])
async def test_classic_questions(prefix: str) -> None:
    assert await ask(f"{prefix}/model") == {"result": "koboldcpp/tiny.Q4_1"}
    assert await ask(f"{prefix}/info/version") == {"result": "1.2.5"}
    assert await ask(f"{prefix}/config/max_length") == {"value": 2048}
    assert await ask(f"{prefix}/config/max_context_length") == {"value": 4096}
    assert await ask(f"{prefix}/config/soft_prompt") == {"value": ""}
    assert await ask(f"{prefix}/config/soft_prompts_list") == {"values": []}
    assert ROUTES["POST", f"{prefix}/generate"].parse is parse_whole


async def test_version_tells_the_truth() -> None:
    version = await ask("/api/extra/version")
    assert (version["result"], version["llm"], version["jinja"]) == ("KoboldCpp", True, True)
    assert [version[name] for name in ("vision", "tts", "admin", "multiplayer", "protected")] == [
        False,
        False,
        0,
        False,
        False,
    ]
    assert tuple(map(int, version["version"].split("."))) >= (1, 48)  # clients compare
    locked = FakeBackend(is_protected=True)
    assert (await ask("/api/extra/version", backend=locked))["protected"] is True


async def test_context_length() -> None:
    assert await ask("/api/extra/true_max_context_length") == {"value": 4096}


@pytest.mark.parametrize("path", ["/api/extra/tokencount", "/api/extra/tokenize"])
async def test_token_counts(path: str) -> None:
    assert await ask(path, {"prompt": "ab"}) == {"value": 3, "ids": [1, 97, 98]}
    assert await ask(path, {"prompt": "ab", "special": False}) == {"value": 2, "ids": [97, 98]}
    assert await ask(path, {}) == {"value": 1, "ids": [1]}
    with pytest.raises(InvalidRequest, match="'prompt' must be a string"):
        await ask(path, {"prompt": 5})


async def test_token_counts_of_a_conversation() -> None:
    backend = FakeBackend()
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    told = await ask("/api/extra/tokencount", body, backend)
    assert (told["value"], told["prompt"]) == (1 + len("rendered"), "rendered")
    assert backend.asked[0].prompt == ChatPrompt((ChatMessage("user", "Hi"),))


async def test_detokenize() -> None:
    assert await ask("/api/extra/detokenize", {"ids": [97, 98]}) == {
        "result": "ab!",
        "success": True,
    }
    assert (await ask("/api/extra/detokenize", {"ids": [97], "special": 0}))["result"] == "a"
    for ids in (None, "5", [-1], [1000], ["a"]):
        with pytest.raises(InvalidRequest, match="'ids'"):
            await ask("/api/extra/detokenize", {"ids": ids})


async def test_abort_answers_in_strings_and_needs_no_body() -> None:
    backend = FakeBackend()
    yes = {"success": "true", "done": "true"}
    assert await ask("/api/extra/abort", {}, backend) == yes
    assert await ask("/api/extra/abort", {"genkey": "KCPP1"}, backend) == yes
    assert backend.asked == [(CALLER, None), (CALLER, "KCPP1")]
    nothing = FakeBackend(is_found=False)
    assert (await ask("/api/extra/abort", {}, nothing))["success"] == "false"


async def test_check() -> None:
    backend = FakeBackend()
    expected = {"results": [{"text": "so far"}]}
    assert await ask("/api/extra/generate/check", {"genkey": "K"}, backend) == expected
    assert await ask("/api/extra/generate/check", None, backend) == expected
    assert backend.asked == [(CALLER, "K"), (CALLER, None)]


async def test_perf() -> None:
    perf = await ask("/api/extra/perf")
    assert (perf["last_process_speed"], perf["last_eval_speed"]) == (40.0, 4.0)
    assert (perf["total_gens"], perf["queue"], perf["idle"], perf["stop_reason"]) == (5, 2, 1, 1)
    assert (perf["last_token_count"], perf["last_input_count"], perf["last_seed"]) == (8, 30, 42)
    fresh = FakeBackend(
        counters={**COUNTERS, "last_finish_reason": None, "last_decode_s": 0.0, "n_in_flight": 1}
    )
    perf = await ask("/api/extra/perf", backend=fresh)
    assert (perf["stop_reason"], perf["last_eval_speed"], perf["idle"]) == (-1, 0.0, 0)


def test_what_generates_or_tells_about_generations_needs_the_key() -> None:
    public = {path for (_, path), one in ROUTES.items() if one.access is Access.PUBLIC}
    harmless = ("version", "/config/", "max_context", "serviceinfo")
    assert all(any(part in path for part in harmless) for path in public)
    assert all((one.parse is None) != (one.handle is None) for one in ROUTES.values())


PATHS = ("/api/v9", "/props", "/completion", "/completions", "/v1/x", "/", "", "/apix")


def test_unknown_paths_are_answered_in_the_dialect_of_their_prefix() -> None:
    names = {path: for_path(path).name for path in PATHS}
    assert names == {
        "/api/v9": "kobold",
        "/props": "llama",
        "/completion": "llama",
        "/completions": "openai",
        "/v1/x": "openai",
        "/": "openai",
        "": "openai",
        "/apix": "openai",
    }


def test_no_two_dialects_claim_one_route() -> None:
    routes = [(one.method, one.path) for dialect in DIALECTS for one in dialect.operations]
    assert len(routes) == len(set(routes))
