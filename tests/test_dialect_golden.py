"""Every dialect, streamed and whole, in every scenario: the exact bytes.

`python tests/test_dialect_golden.py` writes the files anew; read the difference before keeping it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dialect_cases import SCENARIOS, stream, whole
from naiad.dialects.base import Formatter
from naiad.dialects.framing import to_json
from naiad.dialects.kobold.formatter import KoboldFormatter
from naiad.dialects.openai.formatter import ChatFormatter, Head, TextFormatter
from naiad.types import FinishReason

GOLDEN = Path(__file__).parent / "golden"
HEAD = Head(model="tiny.Q4_1", id="cmpl-1", created=1700000000)

FORMATTERS: dict[str, Callable[[], Formatter]] = {
    "openai-chat": lambda: ChatFormatter(HEAD),
    "openai-chat-usage": lambda: ChatFormatter(HEAD, include_usage=True),
    "openai-text": lambda: TextFormatter(HEAD),
    "openai-text-usage": lambda: TextFormatter(HEAD, include_usage=True),
    "kobold": KoboldFormatter,
}


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


@pytest.mark.parametrize("name", FORMATTERS)
def test_heartbeats_are_comments(name: str) -> None:
    assert FORMATTERS[name]().heartbeat() == b": ping\n\n"


if __name__ == "__main__":
    for each in FORMATTERS:
        (GOLDEN / f"{each}.txt").write_bytes(written(each))
