"""Logprobs as KoboldCpp, llama-server and Ollama tell them: bytes, fields and what is kept.

`python tests/test_dialect_logprobs.py` writes the golden file anew; read the difference first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dialect_cases import MODEL, USAGE
from fakes import ALICE
from naiad.dialects.base import Formatter, Parsed
from naiad.dialects.framing import to_json
from naiad.dialects.kobold.formatter import KoboldFormatter
from naiad.dialects.kobold.requests import parse_whole
from naiad.dialects.llama.formatter import LlamaFormatter, Probs
from naiad.dialects.llama.requests import parse_completion
from naiad.dialects.ollama.formatter import ChatFormatter, GenerateFormatter
from naiad.dialects.ollama.requests import parse_chat
from naiad.dialects.openai.requests import parse_completion as parse_text_completion
from naiad.errors import InvalidRequest
from naiad.service.recent import RecentLogprobs
from naiad.types import Caller, Completion, Finished, FinishReason, Likely, TextDelta, TokenLogprob

GOLDEN = Path(__file__).parent / "golden" / "logprobs.txt"
AT = "2026-01-02T03:04:05Z"
HI: list[Any] = [{"role": "user", "content": "Hi"}]

#: "é" in two tokens, then one that was impossible.
TOLD = (
    TokenLogprob(5, b"Hi", -0.25, (Likely(5, b"Hi", -0.25), Likely(2, b"</s>", -1.5))),
    TokenLogprob(6, b"\xc3", -2.0, (Likely(9, b"\xff", -0.5), Likely(6, b"\xc3", -2.0))),
    TokenLogprob(7, b"\xa9!", -math.inf, (Likely(2, b"</s>", -0.5), Likely(8, b"?", -0.75))),
)
FORMATTERS: dict[str, Callable[[], Formatter]] = {
    "kobold": KoboldFormatter,
    "llama": lambda: LlamaFormatter("tiny.Q4_1", probs=Probs.BEFORE),
    "llama, after the samplers": lambda: LlamaFormatter("tiny.Q4_1", probs=Probs.AFTER),
    "ollama chat": lambda: ChatFormatter("tiny:latest", AT, lambda: 0),
    "ollama generate": lambda: GenerateFormatter("tiny:latest", AT, lambda: 0),
}


def written() -> bytes:
    """Two events and the end, and the whole answer, of each."""
    finished = Finished(FinishReason.STOP, USAGE)
    parts: list[bytes] = []
    for name, make in FORMATTERS.items():
        streamed, whole = make(), make()
        parts.append(f"=== {name}, streamed\n".encode())
        parts.append(streamed.delta(TextDelta("Hi", 1, TOLD[:1])))
        parts.append(streamed.delta(TextDelta("é!", 2, TOLD[1:])))
        parts.append(streamed.close(finished))
        parts.append(f"=== {name}, whole\n".encode())
        completion = Completion("Hié!", finished, logprobs=TOLD)
        parts.append(to_json(whole.whole(completion)) + b"\n\n")
    return b"".join(parts)


def test_bytes_are_golden() -> None:
    assert written() == GOLDEN.read_bytes()


def asked(parsed: Any) -> tuple[int, bool]:
    assert isinstance(parsed, Parsed)
    assert parsed.ignored == ()
    return parsed.request.sampling.n_logprobs, parsed.request.sampling.logprobs_after


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (-1, False)),
        ({"n_probs": 0}, (-1, False)),
        ({"n_probs": 3}, (3, False)),
        ({"n_probs": 3, "post_sampling_probs": True}, (3, True)),
        ({"n_probs": 0, "post_sampling_probs": True}, (-1, False)),
        ({"logprobs": 2}, (2, False)),
    ],
)
def test_llamas_fields(fields: dict[str, Any], expected: tuple[int, bool]) -> None:
    assert asked(parse_completion({"prompt": "x", **fields}, MODEL)) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (-1, False)),
        ({"n_probs": 0}, (-1, False)),
        ({"n_probs": 3}, (3, False)),
        ({"n_probs": 3, "post_sampling_probs": True}, (3, True)),
        ({"logprobs": 0}, (0, False)),
        ({"logprobs": 0, "n_probs": 3}, (0, False)),
        ({"logprobs": None, "n_probs": 3}, (3, False)),
    ],
)
def test_fields_of_openais_completions(fields: dict[str, Any], expected: tuple[int, bool]) -> None:
    assert asked(parse_text_completion({"prompt": "x", **fields}, MODEL)) == expected


def test_kobolds_and_ollamas_fields() -> None:
    assert asked(parse_whole({"prompt": "x", "logprobs": True}, MODEL)) == (10, False)
    assert asked(parse_whole({"prompt": "x", "logprobs": 4}, MODEL)) == (4, False)
    assert asked(parse_whole({"prompt": "x", "logprobs": False}, MODEL)) == (-1, False)
    wish = {"messages": HI, "logprobs": True}
    assert asked(parse_chat(wish, MODEL)) == (0, False)
    assert asked(parse_chat({**wish, "top_logprobs": 20}, MODEL)) == (20, False)


@pytest.mark.parametrize(
    ("parse", "fields", "words"),
    [
        (parse_completion, {"n_probs": 21}, "'n_probs' must be an integer from 0 to 20"),
        (parse_completion, {"n_probs": -1}, "'n_probs' must be an integer from 0 to 20"),
        (parse_whole, {"logprobs": "many"}, "'logprobs' must be an integer from 0 to 20"),
        (parse_chat, {"top_logprobs": 3}, "'logprobs', which must then be true"),
        (parse_chat, {"logprobs": True, "top_logprobs": 21}, "'top_logprobs' must be an integer"),
    ],
)
def test_ranges_are_told(parse: Any, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        parse({"prompt": "x", "messages": HI, **fields}, MODEL)


def test_what_is_remembered_is_bounded_and_the_callers_own() -> None:
    recent = RecentLogprobs(most_tokens=6)
    for place in range(5):
        recent.begin(ALICE, str(place)).extend(TOLD[:1])
    assert [len(recent.find(ALICE, str(place))) for place in range(5)] == [0, 1, 1, 1, 1]
    recent.begin(ALICE, None).extend(TOLD)
    assert recent.find(ALICE, None) == TOLD
    assert recent.find(Caller("bob"), None) == recent.find(ALICE, "9") == ()
    assert recent.begin(ALICE, None) == []
    assert recent.find(ALICE, None) == ()


def test_answers_without_logprobs_are_bounded_too() -> None:
    recent = RecentLogprobs(most_tokens=6)
    for place in range(100):
        recent.begin(ALICE, str(place))
    assert len(recent._answers) == 7
    recent.begin(ALICE, "99", is_told=False).extend(TOLD)
    assert recent.find(ALICE, "99") == ()
    assert len(recent._answers) == 6


if __name__ == "__main__":
    GOLDEN.write_bytes(written())
