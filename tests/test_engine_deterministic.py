"""A deterministic request on real models: the same tokens, whatever runs, and after a restart."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from naiad.config import EngineConfig
from naiad.engine.base import CoreJob
from naiad.engine.llama import LlamaBackend, load
from naiad.errors import EngineUnavailable, ModelFileError
from naiad.ipc.messages import StreamItem
from naiad.types import FinishReason, SamplingParams
from test_engine_structured import prompt, run

pytestmark = [pytest.mark.model, pytest.mark.soak]

STORY = "Once upon a time there was a fisherman who caught a strange fish in the river. " * 10


def new_backend(model: Path) -> LlamaBackend:
    config = EngineConfig(model=str(model), parallel=3, ctx=1024, threads=2, check_integrity=True)
    return cast(LlamaBackend, load(config)(lambda progress: None))


def close(backend: LlamaBackend) -> None:
    backend.core.close()
    backend.close_grammars()


def tokens(items: list[StreamItem]) -> list[int]:
    return [token for item in items for token in item.tokens]


@pytest.mark.parametrize("name", ["starter", "hybrid"])
def test_the_same_tokens_every_time(name: str, request: pytest.FixtureRequest) -> None:
    model: Path = request.getfixturevalue(name)
    said: list[list[int]] = []
    for _ in range(2):  # a restart in between
        backend = new_backend(model)
        ask = prompt(backend, STORY)[:300]
        warm = SamplingParams(temperature=1.5, seed=9, dry_multiplier=0.5, ignore_eos=True)
        one = CoreJob(1, ask, 40, warm, is_deterministic=True)
        said.append(tokens(run(backend, [one])[1]))
        others = [
            CoreJob(uid, ask[: 40 * uid], 30 + 9 * uid, SamplingParams(seed=uid, ignore_eos=True))
            for uid in range(2, 7)
        ]
        found = run(backend, [*others[:3], one, *others[3:]])
        said.append(tokens(found[1]))
        assert all(len(tokens(found[job.uid])) == job.max_tokens for job in others)
        close(backend)
    assert len(said[0]) == 40
    assert said.count(said[0]) == 4


def test_one_that_no_memory_is_left_for_is_refused(
    starter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = new_backend(starter)
    monkeypatch.setattr("naiad.engine.apart._free_bytes", lambda: 1 << 20)
    one = CoreJob(1, prompt(backend, STORY), 40, SamplingParams(), is_deterministic=True)
    with pytest.raises(EngineUnavailable, match="1 MiB is free"):
        backend.check_room(one)
    backend.check_room(CoreJob(2, one.prompt, 40, SamplingParams()))
    close(backend)


def test_a_context_that_cannot_be_made_ends_the_stream(
    starter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = new_backend(starter)

    def fail(*_: object) -> None:
        raise ModelFileError("not enough memory")

    monkeypatch.setattr("naiad.engine.apart.Context", fail)
    one = CoreJob(1, prompt(backend, "x"), 4, SamplingParams(), is_deterministic=True)
    [item] = run(backend, [one])[1]
    assert item.finish is FinishReason.ERROR
    assert item.error is not None
    assert item.error[0] == "engine_unavailable"
    close(backend)
