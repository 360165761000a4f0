"""KoboldAI's and llama-server's answers over the whole app, in every scenario: the exact bytes.

`python tests/test_dialect_http_golden.py` writes the files anew; read the difference first.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes import FakeEngine, FakeRenderer, FakeStream
from http_client import Answer, ask
from naiad.config import Config
from naiad.errors import EngineFailed
from naiad.http.app import build_app
from naiad.service.service import Service
from naiad.types import FinishReason

GOLDEN = Path(__file__).parent / "golden"

#: name -> the bytes of its tokens, and how the engine ends it.
SCENARIOS: dict[str, tuple[list[bytes], FinishReason]] = {
    "stop": ([b"Hel", b"lo\nYo", b"u: more"], FinishReason.STOP),
    "length": ([b"Hello"], FinishReason.LENGTH),
    "abort": ([b"Hel"], FinishReason.CANCELLED),
    "error": ([b"Hel"], FinishReason.ERROR),
    "emoji": ([b"\xf0\x9f", b"\x98\x80", "你".encode(), b"\xf0"], FinishReason.STOP),
    "empty": ([], FinishReason.STOP),
}
BODY = {"prompt": "Once 😀", "seed": 7, "stop": ["\nYou:"], "max_tokens": 9}
#: dialect -> the path and body of a streamed answer, and of a whole one.
CALLS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "kobold": {
        "streamed": ("/api/extra/generate/stream", BODY),
        "whole": ("/api/v1/generate", BODY),
    },
    "llama": {
        "streamed": ("/completion", {**BODY, "stream": True}),
        "whole": ("/completion", BODY),
    },
}


def script(name: str) -> Callable[[FakeStream], None]:
    tokens, reason = SCENARIOS[name]

    def say(stream: FakeStream) -> None:
        for token in tokens:
            stream.put(token)
        failed = reason is FinishReason.ERROR
        stream.end(reason, EngineFailed("The engine died.") if failed else None)

    return say


async def answer(dialect: str, form: str, scenario: str) -> Answer:
    config = Config()
    app = build_app(Service(FakeEngine(script(scenario)), config, FakeRenderer()), config)
    path, body = CALLS[dialect][form]
    return await ask(app, "POST", path, body)


async def written(dialect: str) -> bytes:
    """All scenarios of one dialect."""
    parts: list[bytes] = []
    for scenario in SCENARIOS:
        for form in CALLS[dialect]:
            got = await answer(dialect, form, scenario)
            head = f"=== {scenario}, {form}: {got.status} {got.headers['content-type']}\n"
            parts += [head.encode(), got.body, b"\n\n"]
    # Times are never the same, and the settings have tests of their own.
    return re.sub(rb'"(timings|generation_settings)":\{[^}]*\}', rb'"\1":{}', b"".join(parts))


@pytest.mark.parametrize("dialect", CALLS)
async def test_bytes_are_golden(dialect: str) -> None:
    assert await written(dialect) == (GOLDEN / f"http-{dialect}.txt").read_bytes()


@pytest.mark.parametrize("scenario", ["stop", "length", "abort", "emoji", "empty"])
async def test_streamed_text_is_the_whole_text(scenario: str) -> None:
    texts = {
        (await answer("llama", "whole", scenario)).value["content"],
        (await answer("kobold", "whole", scenario)).value["results"][0]["text"],
    }
    for dialect, name in (("kobold", "token"), ("llama", "content")):
        body = (await answer(dialect, "streamed", scenario)).body.decode()
        texts.add("".join(re.findall(rf'"{name}":"(.*?)"', body)))
    assert len(texts) == 1


if __name__ == "__main__":
    for each in CALLS:
        (GOLDEN / f"http-{each}.txt").write_bytes(asyncio.run(written(each)))
