"""Every dialect, streamed and whole, in every scenario: the exact bytes.

`python tests/test_dialect_golden.py` writes the files anew; read the difference before keeping it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from dialect_cases import SCENARIOS, USAGE, stream, whole
from naiad.chat.output import CallEvent
from naiad.dialects.anthropic.formatter import MessageFormatter
from naiad.dialects.base import Formatter
from naiad.dialects.framing import to_json
from naiad.dialects.kobold.formatter import BasicFormatter, KoboldFormatter
from naiad.dialects.llama.formatter import LlamaFormatter
from naiad.dialects.ollama.formatter import ChatFormatter as OllamaChat
from naiad.dialects.ollama.formatter import GenerateFormatter
from naiad.dialects.openai.formatter import ChatFormatter, Head, TextFormatter
from naiad.dialects.openai.responses.formatter import ResponsesFormatter
from naiad.types import (
    Completion,
    Finished,
    FinishReason,
    Likely,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)

GOLDEN = Path(__file__).parent / "golden"
CREATED_AT = "2026-01-02T03:04:05Z"
HEAD = Head(model="tiny.Q4_1", id="cmpl-1", created=1700000000)

FORMATTERS: dict[str, Callable[[], Formatter]] = {
    "openai-chat": lambda: ChatFormatter(HEAD),
    "openai-chat-usage": lambda: ChatFormatter(HEAD, include_usage=True),
    "openai-text": lambda: TextFormatter(HEAD),
    "openai-text-usage": lambda: TextFormatter(HEAD, include_usage=True),
    "kobold": KoboldFormatter,
    "kobold-basic": BasicFormatter,
    "llama": lambda: LlamaFormatter(
        "tiny.Q4_1", prompt="Hi", settings={"top_k": 40, "n_predict": -1}, n_ctx=10
    ),
    "llama-silent": lambda: LlamaFormatter("tiny.Q4_1", is_silent=True),
    "llama-some-fields": lambda: LlamaFormatter(
        "tiny.Q4_1", settings={"top_k": 40}, only=("content", "generation_settings/top_k", "x/y")
    ),
    "ollama-chat": lambda: OllamaChat("tiny:latest", CREATED_AT, lambda: 0),
    "ollama-generate": lambda: GenerateFormatter("tiny:latest", CREATED_AT, lambda: 0),
    "anthropic": lambda: MessageFormatter("tiny", "msg_1"),
}
#: Reasoning, text around two calls, the second cut off.
CHANNELS: tuple[CallEvent, ...] = (
    ReasoningDelta("Let me", 2),
    ReasoningDelta(" see.\u2028", 1),
    TextDelta("One", 1),
    TextDelta(" moment.", 1),
    ToolCallDelta(0, "1a", "weather", "", is_first=True),
    ToolCallDelta(0, "1a", "weather", '{"city": '),
    ToolCallDelta(0, "1a", "weather", '"Köln"}'),
    ToolCallDelta(0, "1a", "weather", "", is_last=True),
    ToolCallDelta(1, "2b", "add", '{"a"', is_first=True),
    ToolCallDelta(1, "2b", "add", "", is_last=True),
)
CALLS = (ToolCall("1a", "weather", '{"city": "Köln"}'), ToolCall("2b", "add", '{"a"'))


def written(name: str) -> bytes:
    """All scenarios of one formatter."""
    parts: list[bytes] = []
    for scenario, (pieces, finished) in SCENARIOS.items():
        parts.append(f"=== {scenario}, streamed\n".encode())
        parts.append(stream(FORMATTERS[name](), pieces, finished))
        if finished.reason is not FinishReason.ERROR:  # such a one is an error body instead
            parts.append(f"=== {scenario}, whole\n".encode())
            parts.append(to_json(whole(FORMATTERS[name](), pieces, finished)) + b"\n\n")
    return b"".join(parts)


@pytest.mark.parametrize("name", FORMATTERS)
def test_bytes_are_golden(name: str) -> None:
    assert written(name) == (GOLDEN / f"{name}.txt").read_bytes()


def channelled() -> bytes:
    """Reasoning and tool calls in every dialect that has them."""
    finished = Finished(FinishReason.STOP, USAGE, n_tool_calls=2)
    parts: list[bytes] = []
    for name in ("openai-chat", "ollama-chat", "ollama-generate", "anthropic"):
        formatter = FORMATTERS[name]()
        parts.append(f"=== {name}, streamed\n".encode())
        parts.append(formatter.open(Started(7)))
        parts += [_told(formatter, event) for event in CHANNELS]
        parts.append(formatter.close(finished))
        parts.append(f"=== {name}, whole\n".encode())
        whole = Completion("One moment.", finished, "Let me see.\u2028", CALLS)
        parts.append(to_json(FORMATTERS[name]().whole(whole)) + b"\n\n")
    return b"".join(parts)


def _told(formatter: Formatter, event: CallEvent) -> bytes:
    if isinstance(event, ReasoningDelta):
        return formatter.reasoning(event)
    return formatter.delta(event) if isinstance(event, TextDelta) else formatter.tool_call(event)


def test_reasoning_and_calls_are_golden() -> None:
    assert channelled() == (GOLDEN / "channels.txt").read_bytes()


#: "é" in two tokens, then one that might have been the end.
LOGPROBS = (
    TokenLogprob(5, b"Hi", -0.25, (Likely(5, b"Hi", -0.25), Likely(2, b"</s>", -1.5))),
    TokenLogprob(6, b"\xc3", -2.0, (Likely(9, b"\xff", -0.5), Likely(6, b"\xc3", -2.0))),
    TokenLogprob(7, b"\xa9!", -math.inf, (Likely(2, b"</s>", -0.5), Likely(8, b"?", -0.75))),
)


def with_logprobs() -> bytes:
    """Two choices, each with logprobs, in both forms."""
    finished = Finished(FinishReason.STOP, USAGE)
    deltas = [TextDelta("Hi", 1, LOGPROBS[:1]), TextDelta("é!", 2, LOGPROBS[1:])]
    parts: list[bytes] = []
    for form in (ChatFormatter, TextFormatter):
        made = form(HEAD, include_usage=True, has_logprobs=True, n_per_prompt=2)
        parts.append(f"=== {form.__name__}, streamed\n".encode())
        for part in (made.part(0), made.part(1)):
            parts.append(part.open(Started(7, echo="Say: " if form is TextFormatter else "")))
            parts += [part.delta(delta) for delta in deltas]
            parts.append(part.close(finished))
        parts.append(made.close_all([finished, finished]))
        parts.append(f"=== {form.__name__}, whole\n".encode())
        one = Completion("Hié!", finished, logprobs=LOGPROBS)
        parts.append(to_json(made.whole_all([one, one])) + b"\n\n")
    return b"".join(parts)


def responses() -> bytes:
    """Every scenario, and all channels, as the Responses API tells them."""
    where = "naiad.dialects.openai.responses.formatter"
    shown = {"background": False, "store": True, "tools": []}
    parts: list[bytes] = []
    ends = {name: (tuple(map(_text, pieces)), end) for name, (pieces, end) in SCENARIOS.items()}
    ends["channels"] = (CHANNELS, Finished(FinishReason.STOP, USAGE, n_tool_calls=2))
    with (
        mock.patch(f"{where}.secrets.token_hex", lambda n: "0" * n),
        mock.patch(f"{where}.time.time", lambda: 1700000000),
    ):
        for name, (deltas, finished) in ends.items():
            made = ResponsesFormatter("tiny.Q4_1", shown)
            parts += [f"=== {name}\n".encode(), made.open(Started(7))]
            parts += [_told(made, delta) for delta in deltas]
            parts.append(made.close(finished))
        completion = Completion("One moment.", finished, "Let me see.\u2028", CALLS, n_reasoning=3)
        whole = ResponsesFormatter("tiny.Q4_1", shown).whole(completion)
    return b"".join([*parts, b"=== channels, whole\n", to_json(whole), b"\n"])


def _text(piece: str) -> CallEvent:
    return TextDelta(piece, 1)


def test_responses_are_golden() -> None:
    assert responses() == (GOLDEN / "openai-responses.txt").read_bytes()


def test_choices_and_logprobs_are_golden() -> None:
    assert with_logprobs() == (GOLDEN / "openai-choices.txt").read_bytes()


@pytest.mark.parametrize("name", FORMATTERS)
def test_heartbeats_are_what_clients_skip(name: str) -> None:
    beat = FORMATTERS[name]().heartbeat()
    if name.startswith("ollama"):  # a blank line would break its clients
        value = json.loads(beat)
        assert (beat.count(b"\n"), value["done"]) == (1, False)
        assert value.get("response", "") == value.get("message", {}).get("content", "") == ""
    else:
        assert beat in {b": ping\n\n", b'event: ping\ndata: {"type":"ping"}\n\n'}


if __name__ == "__main__":
    for each in FORMATTERS:
        (GOLDEN / f"{each}.txt").write_bytes(written(each))
    (GOLDEN / "channels.txt").write_bytes(channelled())
    (GOLDEN / "openai-choices.txt").write_bytes(with_logprobs())
    (GOLDEN / "openai-responses.txt").write_bytes(responses())
