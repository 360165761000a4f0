"""What the load generator sends and how it reads each dialect's stream."""

from __future__ import annotations

import json
import random

import pytest

from naiad.bench import prompts
from naiad.bench.client import encode_request, parse_target
from naiad.bench.wire import DIALECTS, Ask, Piece, error_message, read_line
from naiad.errors import ConfigError


def test_openai_body_is_a_greedy_streamed_chat() -> None:
    body = DIALECTS["openai"].body(Ask("hello", 9, system="be brief"), "m")
    assert body["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
    ]
    assert (body["model"], body["stream"], body["max_tokens"]) == ("m", True, 9)
    assert (body["temperature"], body["ignore_eos"]) == (0, True)
    assert body["stream_options"] == {"include_usage": True}


def test_plain_dialects_put_the_system_text_first() -> None:
    ask = Ask("hello", 9, system="be brief")
    assert DIALECTS["completions"].body(ask, "m")["prompt"] == "be brief\n\nhello"
    kobold = DIALECTS["kobold"].body(ask, "m")
    assert kobold["prompt"] == "be brief\n\nhello"
    assert (kobold["max_length"], kobold["ban_eos_token"]) == (9, True)


@pytest.mark.parametrize("dialect", sorted(DIALECTS))
def test_the_end_may_be_left_to_the_model(dialect: str) -> None:
    body = DIALECTS[dialect].body(Ask("hello", 9, ignore_eos=False), "m")
    assert not {"ignore_eos", "ban_eos_token", "use_default_badwordsids"} & set(body)


@pytest.mark.parametrize(
    ("dialect", "line", "piece"),
    [
        ("openai", b'data: {"choices":[{"delta":{"content":"hi"}}]}', Piece("hi")),
        ("openai", b'data: {"choices":[{"delta":{"reasoning_content":"hm"}}]}', Piece("hm")),
        ("openai", b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}', Piece("", "stop")),
        (
            "openai",
            b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7}}',
            Piece(prompt_tokens=5, completion_tokens=7),
        ),
        ("openai", b'data: {"error":{"message":"gone","code":1}}', Piece(error="gone")),
        ("openai", b'data: {"error":"gone"}', Piece(error="gone")),
        ("completions", b'data:{"choices":[{"text":"hi","finish_reason":null}]}', Piece("hi")),
        ("kobold", b'data: {"token": "hi", "finish_reason": null}', Piece("hi")),
        ("kobold", b'data: {"token": "", "finish_reason": "length"}', Piece("", "length")),
        (
            "kobold",
            b'data: {"token": "", "finish_reason": "error", "detail": {"msg": "it died"}}',
            Piece("", "error", error="it died"),
        ),
        ("kobold", b'data: {"token": "hi", "finish_reason": "null"}', Piece("hi")),
    ],
)
def test_events_are_read(dialect: str, line: bytes, piece: Piece) -> None:
    assert read_line(DIALECTS[dialect], line) == piece


@pytest.mark.parametrize("line", [b"", b": ping", b"event: message", b"data: [DONE]", b"id: 4"])
def test_lines_without_an_event_are_skipped(line: bytes) -> None:
    assert read_line(DIALECTS["openai"], line) is None


@pytest.mark.parametrize("line", [b"data: {oops", b"data: [1]", b'data: {"choices":[7]}'])
def test_a_broken_event_is_the_servers_error(line: bytes) -> None:
    piece = read_line(DIALECTS["openai"], line)
    assert piece is not None
    assert piece.error is not None
    assert piece.error.startswith("not an event")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"queue is\\n full"}}', "queue is full"),
        (b'{"detail":"no such route"}', "no such route"),
        (b'{"detail":{"msg":"too long","type":"bad_input"}}', "too long"),
        (b"<html>Bad gateway</html>", "<html>Bad gateway</html>"),
        (b"[]", "[]"),
        (b"x" * 500, "x" * 200),
    ],
)
def test_a_refusal_is_told_in_one_line(body: bytes, message: str) -> None:
    assert error_message(body) == message


def test_the_request_is_one_http_message() -> None:
    target = parse_target("http://[::1]:81/api/v1/", key="sesame", timeout_s=5)
    head, _, body = encode_request(target, Ask("hé", 3)).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /api/v1/chat/completions HTTP/1.1"
    assert {"Host: [::1]:81", "Authorization: Bearer sesame"} <= set(lines)
    assert f"Content-Length: {len(body)}" in lines
    assert json.loads(body)["messages"][0]["content"] == "hé"


def test_without_a_key_no_key_is_sent() -> None:
    assert b"Authorization" not in encode_request(
        parse_target("http://localhost", timeout_s=5), Ask("x", 1)
    )


@pytest.mark.parametrize(
    ("url", "port", "tls"),
    [("http://h", 80, False), ("https://h", 443, True), ("http://h:5001/v1", 5001, False)],
)
def test_urls_give_a_target(url: str, port: int, tls: bool) -> None:
    target = parse_target(url, timeout_s=5)
    assert (target.host, target.port, target.tls, target.base) == ("h", port, tls, "")


@pytest.mark.parametrize("url", ["localhost:5001", "ftp://h", "", "http://"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="no http:// or https:// URL"):
        parse_target(url, timeout_s=5)


def test_unknown_dialects_are_refused() -> None:
    with pytest.raises(ConfigError, match="dialect must be one of openai, completions, kobold"):
        parse_target("http://h", dialect="gopher", timeout_s=5)


def test_filler_has_the_asked_length_and_follows_its_seed() -> None:
    assert [len(prompts.filler(random.Random(1), n).split()) for n in (1, 2, 7, 500)] == [
        1,
        2,
        7,
        500,
    ]
    assert len(prompts.filler(random.Random(1), -4).split()) == 1
    assert prompts.filler(random.Random(3), 40) == prompts.filler(random.Random(3), 40)


def test_markers_are_distinct_and_not_part_of_each_other() -> None:
    markers = [prompts.marker(i) for i in range(900)]
    assert len(set(markers)) == 900
    assert not [a for i, a in enumerate(markers) if any(a in b for b in markers[:i])]


def test_prompts_name_what_they_ask_for() -> None:
    rng = random.Random(5)
    assert prompts.marker(3) in prompts.marked_prompt(rng, 3, 80)
    first, second = (prompts.story_prompt(rng, 60) for _ in range(2))
    assert first.split()[1] != second.split()[1]
    assert prompts.question(rng) != prompts.question(rng)
