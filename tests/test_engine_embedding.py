"""Embeddings in the worker: answered from a thread of its own, computed in a context of its own."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp as lib
import numpy as np
import numpy.typing as npt
import pytest

from naiad.config import EngineConfig
from naiad.engine.accepting import deliberate
from naiad.engine.embedding import Embedding
from naiad.errors import EngineUnavailable, ModelFileError
from naiad.ipc.messages import CallFailed, Embed, Embedded
from naiad.native import embedder as embedder_module
from naiad.native.batch import Batch
from naiad.native.context import Context, ContextParams
from naiad.native.embedder import Embedder
from naiad.native.model import Model
from naiad.testing.scripted import ScriptedBackend
from patience import PATIENCE_S

Answers = queue.SimpleQueue[Embedded | CallFailed]


def failed(call: int, error: Exception) -> CallFailed:
    failure = deliberate(error)
    return CallFailed(1, call, failure.code, failure.message, failure.details)


def ask(backend: Any, *commands: Embed) -> list[Embedded | CallFailed]:
    answers: Answers = queue.SimpleQueue()
    embedding = Embedding(1, backend, answers.put, failed)
    for command in commands:
        embedding.put(command)
    found = [answers.get(timeout=PATIENCE_S) for _ in commands]
    embedding.close()
    embedding.close()
    return found


def test_texts_and_ids_are_answered_in_order() -> None:
    made = ScriptedBackend(EngineConfig())
    text, ids, empty, foreign = ask(
        lambda: made, Embed(1, "ab"), Embed(2, [97, 98]), Embed(3, ""), Embed(4, [10**6])
    )
    assert isinstance(text, Embedded)
    assert isinstance(ids, Embedded)
    assert (text.call, text.n_tokens, ids.call) == (1, 2, 2)
    assert text.vector == ids.vector
    assert np.linalg.norm(np.frombuffer(text.vector, "<f4")) == pytest.approx(1)
    assert isinstance(empty, CallFailed)
    assert (empty.call, empty.code) == (3, "invalid_request")
    assert isinstance(foreign, CallFailed)
    made.close_embedder()


def test_engines_without_and_engines_not_there_say_so() -> None:
    def missing() -> Any:
        raise EngineUnavailable("loading", retry_after=3)

    (none,) = ask(object, Embed(1, "a"))
    assert (none.code, none.message) == ("unsupported", "this engine makes no embeddings")  # type: ignore[union-attr]
    (loading,) = ask(missing, Embed(2, "a"))
    assert loading == CallFailed(1, 2, "engine_unavailable", "loading", {"retry_after": 3})


def test_a_front_that_is_gone_is_no_defect() -> None:
    def send(answer: object) -> None:
        raise OSError("gone")

    embedding = Embedding(1, lambda: ScriptedBackend(EngineConfig()), send, failed)
    embedding.put(Embed(1, "a"))
    embedding.close()


# -- the real model -------------------------------------------------------------------------------

PARAMS = ContextParams(n_ctx=512, n_seq_max=1, threads=2, n_batch=512, n_ubatch=512)


@pytest.fixture(scope="module")
def model(starter: Path) -> Iterator[Model]:
    made = Model(starter)
    yield made
    made.close()


def states(model: Model, tokens: list[int]) -> npt.NDArray[np.float32]:
    """The hidden states, all in one batch."""
    context = Context(
        model, ContextParams(n_ctx=512, n_seq_max=1, threads=2, n_batch=512, embeddings=True)
    )
    batch = Batch(512)
    batch.add(0, tokens, 0, n_logits=len(tokens))
    context.decode(batch)
    rows = [lib.llama_get_embeddings_ith(context.handle, i) for i in range(len(tokens))]
    found = np.stack([np.ctypeslib.as_array(row, (model.n_embd,)).copy() for row in rows])
    context.close()
    return found


@pytest.mark.engine
@pytest.mark.model
@pytest.mark.parametrize("pooling", ["", "mean", "cls", "last"])
def test_the_vector_is_the_pooled_hidden_states(model: Model, pooling: str) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 4
    tokens = model.vocab.encode(text, add_special=True, parse_special=False)
    found = states(model, tokens)
    right = {"cls": found[0], "last": found[-1]}.get(pooling, found.mean(axis=0))
    embedder = Embedder(model, PARAMS, pooling)
    embedder._n_chunk = 16  # so that the text takes several batches
    vector = embedder.embed(tokens)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-4)
    assert vector @ (right / np.linalg.norm(right)) == pytest.approx(1, abs=2e-3)
    again = embedder.embed(tokens)
    assert np.array_equal(vector, again), "a text before it left something behind"
    embedder.close()
    embedder.close()


@pytest.mark.engine
@pytest.mark.model
def test_like_texts_are_nearer_than_unlike_ones_and_long_ones_fit(model: Model) -> None:
    embedder = Embedder(model, PARAMS, "mean")

    def of(text: str) -> npt.NDArray[np.float32]:
        return embedder.embed(model.vocab.encode(text, add_special=True, parse_special=False))

    cat, kitten, tax = of("A cat sleeps."), of("A kitten is asleep."), of("Tax law of 1954")
    assert cat @ kitten > cat @ tax
    long = of("word " * 700)  # more than the first context holds
    assert long.shape == (model.n_embd,)
    embedder.close()


@pytest.mark.engine
@pytest.mark.model
def test_no_memory_is_a_reason(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> Context:
        raise ModelFileError("not enough memory")

    monkeypatch.setattr(embedder_module, "Context", no_room)
    with pytest.raises(EngineUnavailable, match="no memory to embed 3 tokens"):
        Embedder(model, PARAMS, "mean").embed([1, 2, 3])
