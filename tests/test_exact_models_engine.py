"""The exact models in the real engine: right when it is used rightly, wrong when it is not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from naiad.native import library
from naiad.testing.exact_models import (
    FIRST_CHARACTER,
    N_CHARACTERS,
    character,
    exact_model,
    token_id,
)
from naiad.testing.lookback import lookback_text
from naiad.testing.watermark import watermark_text

pytestmark = pytest.mark.engine
llama = pytest.importorskip("llama_cpp")
N_BATCH = 1024


class Engine:
    """As little as it takes to decode tokens of several sequences greedily."""

    def __init__(self, path: Path) -> None:
        library.start()  # one process has one native log: it must stay naiad's
        model_params = llama.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self.model: Any = llama.llama_model_load_from_file(str(path).encode(), model_params)
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = 4096, N_BATCH, 4
        params.n_threads = params.n_threads_batch = 1
        params.kv_unified = True
        self.context: Any = llama.llama_init_from_model(self.model, params)
        self.memory: Any = llama.llama_get_memory(self.context)
        self.batch: Any = llama.llama_batch_init(N_BATCH, 0, 1)

    def decode(self, tokens: list[int], start: int, sequence: int) -> int:
        """Decode tokens at start, start + 1, ... and return the likeliest next one."""
        for i, token in enumerate(tokens):
            self.batch.token[i], self.batch.pos[i] = token, start + i
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, sequence
            self.batch.logits[i] = i == len(tokens) - 1
        self.batch.n_tokens = len(tokens)
        assert llama.llama_decode(self.context, self.batch) == 0
        logits = llama.llama_get_logits_ith(self.context, len(tokens) - 1)
        return max(range(FIRST_CHARACTER + N_CHARACTERS), key=lambda token: logits[token])

    def answer(self, text: str, n: int, *, start: int = 0, sequence: int = 0) -> str:
        """n greedy characters after a text whose first character stands at position start."""
        fresh, position, out = [token_id(c) for c in text], start, ""
        for _ in range(n):
            token = self.decode(fresh, position, sequence)
            position, fresh = position + len(fresh), [token]
            out += character(token - FIRST_CHARACTER)
        return out

    def copy(self, source: int, target: int) -> None:
        llama.llama_memory_seq_cp(self.memory, source, target, -1, -1)

    def remove(self, sequence: int, start: int, end: int) -> None:
        assert llama.llama_memory_seq_rm(self.memory, sequence, start, end)

    def close(self) -> None:
        llama.llama_batch_free(self.batch)
        llama.llama_free(self.context)
        llama.llama_model_free(self.model)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exact")


@pytest.fixture
def watermark(directory: Path) -> Iterator[Engine]:
    engine = Engine(exact_model("watermark", directory))
    yield engine
    engine.close()


@pytest.fixture
def lookback(directory: Path) -> Iterator[Engine]:
    engine = Engine(exact_model("lookback", directory))
    yield engine
    engine.close()


def text_of(seed: int, n: int) -> str:
    rng = random.Random(seed)
    return "".join(character(rng.randrange(N_CHARACTERS)) for _ in range(n))


def test_characters_are_single_tokens(watermark: Engine) -> None:
    vocab, text = llama.llama_model_get_vocab(watermark.model), text_of(1, 20).encode()
    ids = (llama.llama_token * 64)()
    n = llama.llama_tokenize(vocab, text, len(text), ids, 64, True, True)
    assert [*ids[:n]] == [1, *(token_id(c) for c in text.decode())]


@pytest.mark.parametrize("start", [0, 2000, N_CHARACTERS - 3])
def test_the_watermark_counts_on(watermark: Engine, start: int) -> None:
    assert watermark.answer(character(start), 6) == watermark_text(start, 6)


def test_the_watermark_cannot_see_a_foreign_prefix(watermark: Engine) -> None:
    watermark.answer(text_of(1, 50), 1)
    assert watermark.answer(character(9), 4, start=50) == watermark_text(9, 4)


@pytest.mark.parametrize("n_prompt", [41, 60, 300])
def test_lookback_reads_forty_places_back(lookback: Engine, n_prompt: int) -> None:
    prompt = text_of(n_prompt, n_prompt)
    assert lookback.answer(prompt, 45) == lookback_text(prompt, 45)


def test_lookback_at_four_hundred_places(directory: Path) -> None:
    engine, prompt = Engine(exact_model("lookback-400", directory)), text_of(4, 700)
    assert engine.answer(prompt, 20) == lookback_text(prompt, 20, back=400)
    engine.close()


def test_lookback_is_exact_through_a_copied_prefix(lookback: Engine) -> None:
    prefix, tail = text_of(2, 90), text_of(3, 5)
    lookback.answer(prefix, 1)
    lookback.copy(0, 1)
    assert lookback.answer(tail, 45, start=90, sequence=1) == lookback_text(prefix + tail, 45)


def test_lookback_shows_a_foreign_prefix(lookback: Engine) -> None:
    mine, foreign, tail = text_of(5, 90), text_of(6, 90), text_of(7, 5)
    lookback.answer(foreign, 1)
    lookback.copy(0, 1)
    got = lookback.answer(tail, 10, start=90, sequence=1)
    assert got != lookback_text(mine + tail, 10)
    assert got == lookback_text(foreign + tail, 10)


def test_lookback_shows_a_hole(lookback: Engine) -> None:
    prefix, tail = text_of(8, 90), text_of(9, 5)
    lookback.answer(prefix, 1)
    lookback.remove(0, 55, 57)
    assert lookback.answer(tail, 10, start=90) != lookback_text(prefix + tail, 10)


def test_lookback_shows_a_copy_onto_a_dirty_sequence(lookback: Engine) -> None:
    prefix, tail = text_of(10, 90), text_of(11, 5)
    lookback.answer(prefix, 1)
    lookback.answer(text_of(12, 90), 1, sequence=1)
    lookback.copy(0, 1)
    assert lookback.answer(tail, 10, start=90, sequence=1) != lookback_text(prefix + tail, 10)
