"""The real model through real clients, compared with the worker's own journal."""

from __future__ import annotations

import asyncio
import codecs
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from e2e.client import ServerProcess, serving, stream
from naiad.config import EngineConfig
from naiad.engine.base import CoreJob
from naiad.engine.llama import LlamaBackend, load
from naiad.ipc.messages import StreamItem
from naiad.types import SamplingParams
from patience import PATIENCE_S

pytestmark = [pytest.mark.engine, pytest.mark.model, pytest.mark.soak]


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("journal") / "journal.jsonl"


@pytest.fixture(scope="module")
def server(starter: Path, journal: Path) -> Iterator[ServerProcess]:
    with serving(
        journal.with_name("server.log"),
        str(starter),
        "--parallel",
        "16",
        "--ctx",
        "2048",
        env={"NAIAD_JOURNAL": str(journal)},
    ) as server:
        yield server


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


MESSAGES: list[Any] = [{"role": "user", "content": "Name three colours."}]


def test_openai_chat_streamed_and_whole_say_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model="gpt-3.5-turbo", messages=MESSAGES, max_tokens=24, temperature=0, seed=1
    )
    chunks = list(
        client.chat.completions.create(
            model="gpt-3.5-turbo",
            messages=MESSAGES,
            max_tokens=24,
            temperature=0,
            seed=1,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert whole.choices[0].message.content
    assert whole.usage is not None
    assert text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in {"stop", "length"}
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.prompt_tokens == whole.usage.prompt_tokens
    assert len({c.id for c in chunks}) == 1


def test_openai_completion_and_models(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id
    answer = client.completions.create(
        model=model.id, prompt="The capital of France is", max_tokens=8, temperature=0
    )
    assert "Paris" in answer.choices[0].text
    assert answer.choices[0].finish_reason in {"length", "stop"}


def test_openai_errors_are_the_sdks_own_types(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="m", prompt="word " * 3000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="m", messages=MESSAGES, temperature=-3)


def test_seeds_repeat_and_differ(client: openai.OpenAI) -> None:
    def say(seed: int) -> str:
        answer = client.completions.create(
            model="m", prompt="Once upon a time", max_tokens=16, temperature=1.5, seed=seed
        )
        return answer.choices[0].text

    assert len({say(seed) for seed in range(4)}) > 1


def test_stop_strings_are_cut_out(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="m", prompt="Count: 1, 2, 3, 4,", max_tokens=40, temperature=0, stop=[" 7", "7"]
    )
    assert answer.choices[0].finish_reason == "stop"
    assert "7" not in answer.choices[0].text


async def test_what_clients_got_is_what_the_journal_says(
    server: ServerProcess, journal: Path, starter: Path
) -> None:
    """No batch invariance is needed: the worker wrote down what it chose, as it chose it."""
    prompts = [f"Story number {i * 7919}: in the year {1000 + i}" for i in range(40)]
    answers = await asyncio.gather(
        *(
            stream(
                server,
                ("openai", "kobold")[i % 2],
                prompt,
                24,
                seed=i,
                temperature=1.0,
                cut_after=7 if i % 5 == 0 else None,
            )
            for i, prompt in enumerate(prompts)
        )
    )
    refused = [(a.status, a.body, a.errors) for a in answers if a.status != 200 or a.errors]
    assert refused == []
    backend = load(EngineConfig(model=str(starter), parallel=1, ctx=256))(lambda _: None)
    said = journalled(journal, backend)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        # Not final: of a character that the limit cut in two, no half is shown.
        text = codecs.getincrementaldecoder("utf-8")("replace").decode(said[prompt])
        assert text.startswith(answer.text) if i % 5 == 0 else text == answer.text
    backend.core.close()


def journalled(path: Path, backend: Any) -> dict[str, bytes]:
    """prompt -> the bytes of every token that was chosen for it."""
    prompts: dict[int, str] = {}
    said: dict[str, bytes] = {}
    for line in path.read_bytes().splitlines():
        entry = msgspec.json.decode(line)
        if "prompt" in entry:
            text = backend.tokenizer.decode(entry["prompt"], special=True).decode()
            prompts[entry["uid"]] = text
            said[text] = b""
        else:
            said[prompts[entry["uid"]]] += backend.tokenizer.decode(entry["tokens"], special=False)
    return said


def test_gemma_sliding_window_reuse_is_right(gemma: Path) -> None:
    """Greedy answers with and without reuse agree where the model is sure of itself."""
    backend = load(EngineConfig(model=str(gemma), parallel=2, ctx=2048, check_integrity=True))(
        lambda _: None
    )
    assert isinstance(backend, LlamaBackend)
    assert backend.model.n_swa == 512
    is_due = threading.Event()
    backend.core.set_waker(is_due.set)
    text = "The numbers go on and on: " + ", ".join(str(i) for i in range(1, 260)) + ","
    ids = backend.tokenizer.encode(text, add_special=True, parse_special=True)
    assert len(ids) > 2 * backend.model.n_swa

    def run(uid: int, prompt: list[int]) -> tuple[str, int]:
        job = CoreJob(uid, tuple(prompt), 9, SamplingParams(temperature=0))
        backend.core.add(job)
        items: list[StreamItem] = []
        is_due.set()
        while not items or items[-1].finish is None:
            is_due.wait(PATIENCE_S)  # the lane says when it is done
            is_due.clear()
            while backend.core.has_work():
                items += backend.core.step()
        return b"".join(i.data for i in items).decode(), items[0].n_cached

    first, n_first = run(1, ids)
    while backend.core.idle_slice():
        pass
    again, n_again = run(2, ids)
    assert (n_first, n_again) == (0, len(ids) - 1)
    assert again == first
    shorter = ids[: len(ids) // 2]
    branched, n_branched = run(3, shorter)
    assert n_branched == len(shorter) - 1
    backend.core.close()
    assert "0" in branched or "1" in branched
