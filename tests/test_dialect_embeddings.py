"""Embeddings: what is read, what is refused, and why nothing is reranked."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dialect_cases import CALLER, MODEL, FakeBackend
from dialect_server import house
from fakes import silent
from http_client import connected, http
from naiad.dialects.base import Call
from naiad.dialects.fields import Fields
from naiad.dialects.openai.embeddings import embed, read_inputs, rerank, shortened
from naiad.errors import InvalidRequest, Unsupported
from naiad.types import ModelInfo
from patience import PATIENCE_S


@pytest.mark.soak
async def test_a_client_that_hangs_up_waits_for_nothing() -> None:
    async with house(silent) as running:
        running.engine.gate.clear()
        port = int(running.url.rpartition(":")[2])
        async with connected(port) as wire:
            await wire.send(http("/v1/embeddings", b'{"input": ["a", "b"]}'))
            wire.reset()
        async with asyncio.timeout(PATIENCE_S), connected(port) as wire:
            await wire.send(http("/v1/models"))
            assert (await wire.answer())[0] == 200


def test_a_vector_of_nothing_stays_one() -> None:
    assert shortened(b"\0" * 16, 2) == b"\0" * 8


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "'input' is missing"),
        ({"input": ""}, "'input' is empty"),
        ({"input": []}, "1 to 2048 inputs, not 0"),
        ({"input": ["a"] * 2049}, "1 to 2048 inputs, not 2049"),
        ({"input": ["a", ""]}, r"'input\[1\]' is empty"),
        ({"input": [[]]}, r"'input\[0\]' is empty"),
        ({"input": 5}, "a string, a list of strings or token ids, not a number"),
        ({"input": [1, "a"]}, "must hold token ids from 0 to 999"),
        ({"input": [[1000]]}, "must hold token ids from 0 to 999"),
        ({"input": [None]}, "a string or a list of token ids, not null"),
        ({"input": ["\ud800"]}, "lone surrogate"),
        ({"input": "a", "encoding_format": "int8"}, "'encoding_format' must be float or base64"),
        ({"input": "a", "dimensions": 0}, "'dimensions' must be an integer"),
    ],
)
async def test_bad_inputs_are_refused_by_name(body: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        await embed(FakeBackend(), Call(body, {}, {}, CALLER))


def test_other_spellings_are_read() -> None:
    assert read_inputs(Fields({"content": ["a", [1]]}), MODEL) == ["a", (1,)]


@pytest.mark.parametrize(
    ("pooling", "words"),
    [("", "its file names none"), ("mean", "its file says 'mean'"), ("rank", "by this version")],
)
async def test_reranking_is_refused_with_the_reason(pooling: str, words: str) -> None:
    class Ranked(FakeBackend):
        @property
        def model(self) -> ModelInfo:
            return ModelInfo(name="r", pooling=pooling)

    with pytest.raises(Unsupported, match=words):
        await rerank(Ranked(), Call({}, {}, {}, CALLER))
