"""Draft models in the real engine: the exact models guess for each other."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from naiad.config import EngineConfig
from naiad.engine.base import CoreJob
from naiad.engine.llama import LlamaBackend, load
from naiad.engine.solo import CoreWithSolo
from naiad.errors import ConfigError, ModelFileError
from naiad.testing.lookback import lookback_text
from naiad.types import SamplingParams

pytestmark = [pytest.mark.engine, pytest.mark.soak]

PROMPT = "".join(chr(0x4E00 + i * i * 7 % 3000) for i in range(90))


def open_backend(model: Path, **changes: Any) -> LlamaBackend:
    settings: dict[str, Any] = {"parallel": 3, "ctx": 512, "threads": 1, "disk_cache": False}
    config = EngineConfig(model=str(model), check_integrity=True, **settings | changes)
    backend = load(config)(lambda _: None)
    assert isinstance(backend, LlamaBackend)
    return backend


def slow_down(backend: LlamaBackend) -> None:
    """A step of the model takes a second, as it is reckoned, whatever the clock says."""
    cost = backend.core._cost
    cost._decode_s = 1.0
    cost.saw_decode = lambda *_: None  # type: ignore[method-assign]
    cost.step_s = lambda n_rows, depth: 1.0 + 0.01 * n_rows  # type: ignore[method-assign]


def answers(backend: LlamaBackend, params: SamplingParams, n: int = 300) -> list[str]:
    """Of three streams side by side; the first goes on past the context."""
    slow_down(backend)
    data: dict[int, bytes] = {}
    for uid in (1, 2, 3):
        ids = backend.tokenizer.encode(PROMPT[uid:], add_special=True, parse_special=True)
        length = 600 if uid == 1 else n
        job = CoreJob(uid, tuple(ids), length, params, shift_at_limit=uid == 1)
        backend.core.add(job)
    while backend.core.has_work():
        for item in backend.core.step():
            data[item.uid] = data.get(item.uid, b"") + item.data
    return [data[uid].decode() for uid in (1, 2, 3)]


def close(backend: LlamaBackend) -> None:
    backend.core.close()
    backend.model.close()


@pytest.mark.parametrize("second", ["lookback", "watermark"])
def test_right_or_wrong_it_changes_no_token(
    second: str, lookback: Path, request: pytest.FixtureRequest
) -> None:
    backend = open_backend(lookback, draft_model=str(request.getfixturevalue(second)))
    drafting = backend.core._drafting
    assert drafting is not None
    assert drafting._model is not None
    expected = [lookback_text(PROMPT[uid:], 600 if uid == 1 else 300) for uid in (1, 2, 3)]
    assert answers(backend, SamplingParams(temperature=0, ignore_eos=True)) == expected
    assert (drafting._model._share > 0.6) == (second == "lookback")
    close(backend)


class NoGuess:
    """Stands in for the n-grams, which would soon know the text by heart."""

    def n_worth(self, *given: object) -> tuple[int, float]:
        return 0, float(given[2])  # type: ignore[arg-type]


def test_a_model_slower_than_the_target_is_guessed_for(lookback: Path) -> None:
    """Half a second of each step may go to the prompt: 250 tokens at two milliseconds each."""
    backend = open_backend(lookback, draft_model=str(lookback), ctx=1024)
    drafting = backend.core._drafting
    assert drafting is not None and drafting._model is not None
    slow_down(backend)
    drafting._drafter = lambda _: NoGuess()  # type: ignore[assignment,method-assign,return-value]
    intake = drafting._model._model.cost
    intake.saw_prefill = lambda *_, **__: None  # type: ignore[method-assign]
    prompt = PROMPT * 7
    ids = tuple(backend.tokenizer.encode(prompt, add_special=True, parse_special=True))
    assert len(ids) > 600
    backend.core.add(CoreJob(1, ids, 120, SamplingParams(temperature=0, ignore_eos=True)))
    data, n_steps = b"", 0
    while backend.core.has_work():
        news = backend.core.step()
        data += b"".join(item.data for item in news)
        n_steps += any(item.tokens for item in news)
    assert data.decode() == lookback_text(prompt, 120)
    assert n_steps < 30
    close(backend)


def test_drawn_answers_are_the_same_with_and_without(lookback: Path) -> None:
    """Sixty logits wide, so that draws fall on many tokens."""
    params = SamplingParams(temperature=9.0, seed=5, top_k=40, ignore_eos=True)
    found = []
    for changes in ({}, {"draft_model": str(lookback)}):
        backend = open_backend(lookback, **changes)
        found.append(answers(backend, params, 100)[1:])
        close(backend)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("second", "changes", "why"),
    [
        pytest.param(
            "starter",
            {},
            "another vocabulary than .*: 49152 tokens instead of 4096",
            marks=pytest.mark.model,
        ),
        ("recurrent", {}, "cannot guess: it must generate text and be able to take it back"),
        ("lookback", {"drafts": False}, "of no use while drafts are switched off"),
    ],
)
def test_what_cannot_guess_is_refused_in_plain_words(
    second: str,
    changes: dict[str, Any],
    why: str,
    lookback: Path,
    request: pytest.FixtureRequest,
) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        open_backend(lookback, draft_model=str(request.getfixturevalue(second)), **changes)
    assert refused.value.param == "draft_model"


def test_for_models_that_take_nothing_back_it_is_refused(recurrent: Path, lookback: Path) -> None:
    with pytest.raises(ConfigError, match="cannot take a guess back"):
        open_backend(recurrent, draft_model=str(lookback))


def test_a_file_that_is_no_model_is_refused(lookback: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(b"GGUF nonsense")
    with pytest.raises(ModelFileError, match=r"cannot load small\.gguf"):
        open_backend(lookback, draft_model=str(path))


def test_beside_a_request_that_runs_alone_all_share_the_processors(lookback: Path) -> None:
    backend = open_backend(lookback, draft_model=str(lookback), threads=2, lane=True)
    core = backend.core
    assert isinstance(core, CoreWithSolo)
    assert core._drafting is not None and core._drafting._model is not None
    assert core._lane is not None
    executors: list[Any] = [core._executor, core._drafting._model._model._executor]
    ids = tuple(backend.tokenizer.encode(PROMPT, add_special=True, parse_special=True))
    greedy = SamplingParams(temperature=0, ignore_eos=True)
    core.add(CoreJob(1, ids, 60, greedy, is_deterministic=True))
    for uid in (2, 3):
        core.add(CoreJob(uid, ids[uid:], 60, greedy))
    core.step()
    assert [one._n_threads for one in executors] == [1, 1]
    assert core._lane._n_most_threads == 1
    news = threading.Event()
    core.set_waker(news.set)
    while core.has_work() or core._solo.is_running:
        core.step()
        if not core.has_work():
            news.wait(60)
            news.clear()
    core.step()
    assert [one._n_threads for one in executors] == [2, 2]
    assert core._lane._n_most_threads == 2
    close(backend)


def test_comparing_vocabularies_keeps_neither_in_memory(lookback: Path) -> None:
    backend = open_backend(lookback, draft_model=str(lookback))
    core = backend.core
    assert core._drafting is not None and core._drafting._model is not None
    second: Any = core._drafting._model._model._executor
    for vocab in (backend.tokenizer, second._context.model.vocab):
        assert sum(len(kept) for kept in vocab._pieces) < 10  # of the end of a text and the like
    while backend.prepare():
        pass
    assert sum(len(kept) for kept in backend.tokenizer._pieces) < 10
    close(backend)
