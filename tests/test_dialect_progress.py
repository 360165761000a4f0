"""Priorities and progress on the wire: fields and exact bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from dialect_cases import CALLER, MODEL, FakeBackend
from naiad.dialects.anthropic.formatter import MessageFormatter
from naiad.dialects.base import Call, Formatter, Parsed
from naiad.dialects.kobold.errors import error_body as kobold_error
from naiad.dialects.kobold.formatter import KoboldFormatter
from naiad.dialects.kobold.queries import check_generation
from naiad.dialects.kobold.requests import parse_stream, parse_whole
from naiad.dialects.llama.formatter import LlamaFormatter
from naiad.dialects.ollama.formatter import ChatFormatter as OllamaChat
from naiad.dialects.openai.errors import error_body as openai_error
from naiad.dialects.openai.formatter import ChatFormatter, Head, TextFormatter
from naiad.dialects.openai.requests import parse_chat, parse_completion
from naiad.errors import AdminRequired, InvalidRequest
from naiad.types import Progress

GOLDEN = Path(__file__).parent / "golden" / "progress.txt"
HEAD = Head(model="tiny.Q4_1", id="cmpl-1", created=1700000000)
NEWS = (
    Progress(1, 0, 300, eta_s=None),
    Progress(0, 0, 300, eta_s=2.55),
    Progress(None, 100, 300, 100, prompt_s=0.0),
    Progress(None, 228, 300, 100, prompt_s=0.0714),
)
FORMATTERS: dict[str, Callable[[], Formatter]] = {
    "openai-chat": lambda: ChatFormatter(HEAD),
    "openai-chat-usage": lambda: ChatFormatter(HEAD, include_usage=True),
    "openai-text": lambda: TextFormatter(HEAD),
    "kobold": KoboldFormatter,
}
PARSERS: dict[str, tuple[Callable[[Mapping[str, Any], Any], Parsed], dict[str, Any]]] = {
    "chat": (parse_chat, {"messages": [{"role": "user", "content": "Hi"}], "stream": True}),
    "completion": (parse_completion, {"prompt": "Hi", "stream": True}),
    "kobold": (parse_whole, {"prompt": "Hi"}),
    "kobold-stream": (parse_stream, {"prompt": "Hi"}),
}
each_parser = pytest.mark.parametrize("name", PARSERS)


def parsed(name: str, **fields: Any) -> Parsed:
    parse, body = PARSERS[name]
    return parse({**body, **fields}, MODEL)


def test_a_model_that_is_loading_first_is_told_in_every_dialect() -> None:
    told = {name: make().loading(0.4249) for name, make in FORMATTERS.items()}
    told["ollama"] = OllamaChat("tiny", "2026-01-02T03:04:05Z").loading(0.4249)
    for name, data in told.items():
        line = data.decode().strip().split("\n")[-1].removeprefix("data: ")
        assert json.loads(line)["model_load"] == {"progress": 0.42}, name
    # Before the message has begun, Anthropic's clients skip pings and nothing else.
    assert (
        MessageFormatter("tiny", "msg_1").loading(0.4) == b'event: ping\ndata: {"type":"ping"}\n\n'
    )


def test_who_waits_is_told_its_position_and_an_estimate_in_every_dialect_with_a_place_for_it() -> (
    None
):
    makers: dict[str, Callable[[], Formatter]] = {
        **FORMATTERS,
        "ollama": lambda: OllamaChat("tiny", "2026-01-02T03:04:05Z"),
        "llama": lambda: LlamaFormatter("tiny"),
    }
    for name, make in makers.items():
        told = []
        for news in NEWS[:2]:
            line = make().progress(news).decode().strip().split("\n")[-1].removeprefix("data: ")
            told.append(json.loads(line)["queue"])
        waiting = {"status": "queued", "position": 2, "eta_s": None}
        assert told == [waiting, {"status": "queued", "position": 1, "eta_s": 2.5}], name


# -- fields -----------------------------------------------------------------------------------


@each_parser
def test_a_request_that_says_nothing_has_priority_0_and_asks_for_no_news(name: str) -> None:
    made = parsed(name, priority=None, return_progress=None).request
    assert (made.priority, made.wants_progress) == (0, False)


@each_parser
@pytest.mark.parametrize(
    ("value", "priority"), [(0, 0), (-100, -100), (100, 100), ("7", 7), (3.0, 3), ("-2", -2)]
)
def test_priority_is_an_integer_however_it_is_written(name: str, value: Any, priority: int) -> None:
    made = parsed(name, priority=value)
    assert made.request.priority == priority
    assert "priority" not in made.ignored


@each_parser
@pytest.mark.parametrize("value", [-101, 101, 0.5, "high", True, [], {}])
def test_a_bad_priority_is_refused_with_its_range(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match="'priority' must be an integer from -100 to 100") as e:
        parsed(name, priority=value)
    assert e.value.param == "priority"


@each_parser
@pytest.mark.parametrize(("value", "wants"), [(True, True), (1, True), ("true", True), (0, False)])
def test_progress_is_asked_for_as_in_llama_server(name: str, value: Any, wants: bool) -> None:
    made = parsed(name, return_progress=value)
    assert made.request.wants_progress is wants
    assert "return_progress" not in made.ignored


def test_whole_openai_answers_have_no_progress() -> None:
    assert not parsed("chat", stream=False, return_progress=True).request.wants_progress


@each_parser
def test_a_bad_wish_for_progress_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="'return_progress' must be true or false"):
        parsed(name, return_progress="often")


def test_each_dialect_says_in_its_own_body_that_this_is_for_the_administrator() -> None:
    refusal = AdminRequired("Not you.", param="priority")
    assert refusal.status == 403
    told = openai_error(refusal)["error"]
    assert (told["type"], told["code"]) == ("permission_error", "admin_required")
    assert kobold_error(refusal) == {"detail": {"msg": "Not you.", "type": "unauthorized"}}


# -- bytes ------------------------------------------------------------------------------------


def written() -> bytes:
    parts: list[bytes] = []
    for name, make in FORMATTERS.items():
        formatter = make()
        parts.append(f"=== {name}\n".encode())
        parts += [formatter.progress(progress) for progress in NEWS]
    return b"".join(parts)


def test_bytes_are_golden() -> None:
    assert written() == GOLDEN.read_bytes()


async def test_kobolds_check_tells_it_as_long_as_there_is_no_text() -> None:
    call = Call({"genkey": "K"}, {}, {}, CALLER)
    silent = await check_generation(FakeBackend(), call)
    assert silent == {"results": [{"text": "so far"}]}
    waiting = await check_generation(FakeBackend(told=NEWS[1]), call)
    assert waiting["results"][0]["queue"] == {"status": "queued", "position": 1, "eta_s": 2.5}


if __name__ == "__main__":
    GOLDEN.write_bytes(written())
