"""Two hundred answers of the real model with banned phrases, others beside them, over HTTP."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.client import Answer, ServerProcess, serving, stream
from e2e.test_real_model import journalled
from naiad.config import EngineConfig
from naiad.engine.llama import load

pytestmark = [pytest.mark.engine, pytest.mark.model, pytest.mark.soak]

N_BANNED, N_FREE, N_TOKENS, N_IN_FLIGHT = 200, 25, 10, 32
#: What such stories are full of; beginnings and ends inside of words and tokens, in any case.
PHRASES = (" THE ", "there was", "Once", "e w", "ing a", " Little", "he", ", and", "N a ", "as")


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("phrases") / "journal.jsonl"


@pytest.fixture(scope="module")
def server(starter: Path, journal: Path) -> Iterator[ServerProcess]:
    # One thread: several wait at barriers for one that a busy machine has put off.
    flags = ("--parallel", "16", "--ctx", "512", "--threads", "1", "--no-disk-cache")
    log = journal.with_name("server.log")
    with serving(log, str(starter), *flags, env={"NAIAD_JOURNAL": str(journal)}) as server:
        yield server


def phrases_of(i: int) -> list[str]:
    return random.Random(i).sample(PHRASES, 3)


def found_in(text: str, phrases: list[str]) -> list[str]:
    """By a rule of its own: what the engine takes for the same letter is what is tested."""
    return [phrase for phrase in phrases if phrase.lower() in text.lower()]


async def test_no_banned_phrase_comes_and_the_others_get_what_was_chosen_for_them(
    server: ServerProcess, journal: Path, starter: Path
) -> None:
    gate = asyncio.Semaphore(N_IN_FLIGHT)
    prompts = [f"{i * 7919}. Once upon a time" for i in range(N_BANNED + N_FREE)]

    async def one(i: int) -> Answer:
        banned: dict[str, Any] = {"banned_strings": phrases_of(i)} if i < N_BANNED else {}
        dialect = ("openai", "kobold")[i % 2]
        async with gate:
            return await stream(
                server, dialect, prompts[i], N_TOKENS, seed=i, temperature=1.0, top_k=0, **banned
            )

    order = random.Random(1).sample(range(len(prompts)), len(prompts))
    answers = dict(zip(order, await asyncio.gather(*map(one, order)), strict=True))
    backend = load(EngineConfig(model=str(starter), parallel=1, ctx=256))(lambda _: None)
    said = journalled(journal, backend)
    backend.core.close()
    for i, answer in answers.items():
        assert (answer.status, answer.errors, len(answer.terminals)) == (200, [], 1)
        assert answer.text == said[prompts[i]].decode("utf-8", "replace")
        assert i >= N_BANNED or found_in(answer.text, phrases_of(i)) == []
    free = [answers[i].text for i in range(N_BANNED, len(prompts))]
    assert sum(bool(found_in(text, list(PHRASES))) for text in free) > N_FREE // 3
    assert sum(len(answers[i].text) for i in range(N_BANNED)) > N_BANNED * N_TOKENS
