"""Bodies that are wrong, over the whole app: each dialect says what is wrong in its own words, with
the field's name and what it accepts; nothing is a failure of the server."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.types import ASGIApp

from dialect_server import MODEL, JsonRenderer
from fakes import FakeEngine
from http_client import ask
from naiad.config import Config
from naiad.http.app import build_app
from naiad.service.service import Service

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
CLAUDE, OLLAMA, RAW_OLLAMA = "/v1/messages", "/api/chat", "/api/generate"
KOBOLD, LLAMA = "/api/v1/generate", "/completion"

HI = {"messages": [{"role": "user", "content": "Hi"}]}
ONCE = {"prompt": "Once"}
LEAST: dict[str, dict[str, Any]] = {
    CHAT: HI,
    TEXT: ONCE,
    RESPONSES: {"input": "Hi"},
    CLAUDE: {**HI, "max_tokens": 9},
    OLLAMA: HI,
    RAW_OLLAMA: ONCE,
    KOBOLD: ONCE,
    LLAMA: ONCE,
}


def openai(body: Any) -> tuple[str, str | None]:
    error = body["error"]
    assert error["type"].endswith("_error")
    return error["message"], error["param"]


def anthropic(body: Any) -> tuple[str, None]:
    assert (body["type"], set(body)) == ("error", {"type", "error", "request_id"})
    assert body["error"]["type"] == "invalid_request_error"
    return body["error"]["message"], None


def kobold(body: Any) -> tuple[str, None]:
    assert body["detail"]["type"] == "bad_input"
    return body["detail"]["msg"], None


def ollama(body: Any) -> tuple[str, None]:
    assert set(body) == {"error"}
    return body["error"], None


def llama(body: Any) -> tuple[str, str | None]:
    assert body["error"]["code"] == 400
    return body["error"]["message"], body["error"].get("param")


READERS: dict[str, Callable[[Any], tuple[str, str | None]]] = {
    **dict.fromkeys((CHAT, TEXT, RESPONSES), openai),
    CLAUDE: anthropic,
    **dict.fromkeys((OLLAMA, RAW_OLLAMA), ollama),
    KOBOLD: kobold,
    LLAMA: llama,
}

#: Those whose errors have no place for the field's name.
NAMELESS = {anthropic, ollama, kobold}


@pytest.fixture(scope="module")
def app() -> ASGIApp:
    engine, config = FakeEngine(), Config()
    engine.model = MODEL
    return build_app(Service(engine, config, JsonRenderer()), config)


async def refusal(app: ASGIApp, path: str, body: Any) -> tuple[str, str | None]:
    """The message and the field that it names, of a body that is refused."""
    answer = await ask(app, "POST", path, body)
    assert answer.status == 400, answer.body
    return READERS[path](answer.value)


NO_OBJECTS = {
    "cut off": (b'{"prompt": "x"', "not valid JSON"),
    "a list": (b"[]", "must be a JSON object, not an array"),
    "null": (b"null", "must be a JSON object, not null"),
    "no UTF-8": (b'{"prompt": "\xff"}', "not valid JSON"),
    "UTF-16": ('{"prompt": "x"}'.encode("utf-16"), "in UTF-16: send it in UTF-8"),
    "half an emoji": (b'{"prompt": "\\ud83d"}', "half a character"),
    "too deep": (b'{"a":' * 50_000, "nested too deeply"),
    "no number": (b'{"prompt": "x", "temperature": NaN}', "'temperature' is NaN, which"),
    "no end": (b'{"prompt": "x", "top_p": -Infinity}', "'top_p' is -Infinity, which"),
    "too large": (b'{"prompt": "x", "seed": ' + b"9" * 9999 + b"}", "'seed' is a number too large"),
}


@pytest.mark.parametrize("path", READERS)
async def test_what_is_no_object_of_json_is_refused_by_name(app: ASGIApp, path: str) -> None:
    for body, words in NO_OBJECTS.values():
        message, _ = await refusal(app, path, body)
        assert words in message


@pytest.mark.parametrize("path", set(READERS) - {OLLAMA, RAW_OLLAMA})  # there, it loads the model
async def test_what_is_missing_is_named(app: ASGIApp, path: str) -> None:
    needed = next(iter(LEAST[path]))
    for body in (b"", b"{}", {needed: None}, {"unknown": 5}):
        assert (await refusal(app, path, body))[0] == f"'{needed}' is missing."


#: Names that every dialect reads, a value, and what is said of it.
EVERYWHERE: tuple[tuple[str, Any, str], ...] = (
    ("temperature", "hot", "a number from 0 to 100, not 'hot'"),
    ("temperature", 1e308, "a number from 0 to 100, not 1e+308"),
    ("temperature", [0.5], "a number from 0 to 100, not a list"),
    ("top_p", -0.1, "a number from 0 to 1, not -0.1"),
    ("top_p", 10**400, "a number from 0 to 1, not a very large integer"),
    ("top_k", 2**31, "an integer from -1 to 2147483647, not 2147483648"),
    ("top_k", 1.5, "an integer from -1 to 2147483647, not 1.5"),
    ("seed", 2**64, "an integer from -9223372036854775808 to 18446744073709551615"),
    ("dry_sequence_breakers", ["a", 5], "[1]' must be a string, not a number"),
    ("sampler_order", [6, 9], "[1]' must be an integer from 0 to 6, not 9"),
    ("samplers", ["top_k", "magic"], "a list of sampler names"),
    ("logit_bias", {"999": 1}, "made of token ids from 0 to 255, not '999'"),
    ("logit_bias", {"9": 101}, "made of biases from -100 to 100, not 101"),
    ("banned_strings", ["a", None], "made of texts and token ids from 0 to 255, not null"),
    ("ignore_eos", "maybe", "true or false, not 'maybe'"),
)


@pytest.mark.parametrize("path", READERS)
async def test_samplers_name_their_range_everywhere(app: ASGIApp, path: str) -> None:
    inner = "options" if READERS[path] is ollama else ""
    for name, value, words in EVERYWHERE:
        wrong = {name: value}
        body = {**LEAST[path], **({inner: wrong} if inner else wrong)}
        message, param = await refusal(app, path, body)
        assert message.startswith(f"'{inner}.{name}" if inner else f"'{name}"), message
        assert words in message
        assert (param is None) == (READERS[path] in NAMELESS)
        assert param is None or param.startswith(name)


TOOL = {"type": "function", "function": {"name": "f"}}
CASES: tuple[tuple[str, dict[str, Any], str], ...] = (
    (CHAT, {"n": 17}, "'n' must be an integer from 0 to 16, not 17"),
    (CHAT, {"messages": []}, "'messages' must hold at least one message"),
    (CHAT, {"messages": "Hi"}, "'messages' must be a list, not a string"),
    (CHAT, {"messages": [None]}, "'messages[0]' must be an object, not null"),
    (CHAT, {"messages": [{"content": "x"}]}, "'messages[0].role' is missing"),
    (CHAT, {"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "content[0].type"),
    (CHAT, {"max_tokens": 0}, "'max_tokens' must be an integer of at least 1, not 0"),
    (CHAT, {"stop": ["a", 1]}, "'stop[1]' must be a string, not a number"),
    (CHAT, {"stop": ["a"] * 257}, "'stop' may hold at most 256 strings, not 257"),
    (CHAT, {"tools": {}}, "'tools' must be a list, not an object"),
    (CHAT, {"tool_choice": "required"}, "'tool_choice' forces a call, but there are no tools"),
    (CHAT, {"tools": [TOOL], "tool_choice": "x"}, "'tool_choice' must be none, auto, required"),
    (CHAT, {"response_format": {"type": "xml"}}, "'response_format.type' must be text, json_"),
    (CHAT, {"response_format": {"type": "json_object"}, "grammar": "x"}, "send one of them"),
    (CHAT, {"top_logprobs": 2}, "'logprobs', which must then be true"),
    (CHAT, {"suffix": "x"}, "'suffix' is not supported in chats"),
    (TEXT, {"prompt": ["a"] * 64, "n": 2}, "at most 64 answers in all"),
    (TEXT, {"prompt": ["a"] * 65}, "'prompt' holds 65 prompts; at most 64"),
    (TEXT, {"prompt": [256]}, "'prompt' must hold token ids from 0 to 255"),
    (TEXT, {"prompt": [[]]}, "'prompt' is an empty list"),
    (TEXT, {"best_of": 2}, "'best_of' is not supported"),
    (TEXT, {"echo": True, "logprobs": 1}, "'echo' and 'logprobs' do not go together"),
    (RESPONSES, {"input": []}, "'input' must hold 1 to 10000 items, not 0"),
    (RESPONSES, {"input": [{"type": "x"}]}, "'input[0]' is of type 'x'"),
    (RESPONSES, {"background": True, "store": False}, "'background' needs 'store'"),
    (RESPONSES, {"truncation": "x"}, "'truncation' must be disabled or auto, not 'x'"),
    (CLAUDE, {"max_tokens": None}, "'max_tokens' is missing"),
    (CLAUDE, {"messages": []}, "'messages' must hold at least one message"),
    (CLAUDE, {"system": 5}, "'system' must be a string or a list of blocks, not a number"),
    (CLAUDE, {"tool_choice": {"type": "any"}}, "'tool_choice' forces a call, but there are no"),
    (CLAUDE, {"stop_sequences": "x" * 2000}, "'stop_sequences' must have at most 1024 characters"),
    (OLLAMA, {"messages": "Hi"}, "'messages' must be a list, not a string"),
    (OLLAMA, {"format": "xml"}, "'format' must be \"json\" or a JSON schema, not 'xml'"),
    (OLLAMA, {"format": 5}, "'format' must be \"json\" or a JSON schema, not 5"),
    (OLLAMA, {"think": "hard"}, "'think' must be true, false or one of low, medium, high, max"),
    (OLLAMA, {"keep_alive": "soon"}, "'keep_alive' must be a number of seconds or a duration"),
    (OLLAMA, {"options": []}, "'options' must be an object, not a list"),
    (RAW_OLLAMA, {"raw": True, "system": "x"}, "'system' has no place in a raw prompt"),
    (RAW_OLLAMA, {"context": [256]}, "'context' must hold token ids from 0 to 255"),
    (KOBOLD, {"prompt": ["a"]}, "'prompt' must be a string, not a list"),
    (KOBOLD, {"max_length": 0}, "'max_length' must be an integer of at least 1, not 0"),
    (KOBOLD, {"max_context_length": "x"}, "'max_context_length' must be an integer from 1 to"),
    (KOBOLD, {"stop_sequence": ["a", 5]}, "'stop_sequence[1]' must be a string, not a number"),
    (KOBOLD, {"genkey": 5}, "'genkey' must be a string, not a number"),
    (KOBOLD, {"images": ["x"]}, "'images' is not supported"),
    (LLAMA, {"prompt": ["a", "b"]}, "'prompt' holds 2 prompts; send one prompt per request"),
    (LLAMA, {"n_predict": -3}, "'n_predict' must be an integer from -2 to 2147483647, not -3"),
    (LLAMA, {"n": 2}, "'n' is not supported here: one answer per request"),
    (LLAMA, {"n_cmpl": 2}, "'n_cmpl' is not supported here: one answer per request"),
    (LLAMA, {"response_fields": ["a", 5]}, "'response_fields[1]' must be a string, not a number"),
    (LLAMA, {"grammar": "x", "json_schema": {}}, "send one of them"),
)


async def test_what_is_wrong_is_named_with_what_would_be_right(app: ASGIApp) -> None:
    for path, wrong, words in CASES:
        message, _ = await refusal(app, path, {**LEAST[path], **wrong})
        assert words in message, (path, wrong)


async def test_numbers_as_front_ends_send_them_are_no_mistake(app: ASGIApp) -> None:
    for path, body in LEAST.items():
        told = {**body, "seed": "5", "top_k": 40.0, "temperature": "0.7", "unknown": {"a": []}}
        assert (await ask(app, "POST", path, json.dumps(told).encode())).status == 200
