"""Embeddings over the whole server, by the `openai` package."""

from __future__ import annotations

import base64
import struct
from typing import Any

import httpx
import openai
import pytest

from dialect_server import house
from fakes import silent


async def test_texts_and_tokens_as_floats_and_as_bytes() -> None:
    async with house(silent) as running:
        create: Any = running.sdk().embeddings.create
        told = await create(model="text-embedding-3-small", input=["ab", "abcde"])
        assert [one.index for one in told.data] == [0, 1]
        assert (told.usage.prompt_tokens, told.usage.total_tokens) == (7, 7)
        plain = await create(model="m", input=["ab", "abcde"], encoding_format="float")
        for one, other in zip(told.data, plain.data, strict=True):
            assert one.embedding == pytest.approx(other.embedding)
            assert sum(x * x for x in other.embedding) == pytest.approx(1)
        raw = await create(model="m", input="ab", encoding_format="base64")
        data = base64.b64decode(raw.data[0].embedding)
        assert struct.unpack("<4f", data) == pytest.approx(tuple(plain.data[0].embedding))
        ids = await create(model="m", input=[[1, 2], [3, 4, 5, 6, 7]])
        assert [one.embedding for one in ids.data] == [one.embedding for one in told.data]
        assert len((await create(model="m", input=[1, 2])).data) == 1
        assert running.engine.streams == {}


async def test_fewer_dimensions_have_length_one_again() -> None:
    async with house(silent) as running:
        create: Any = running.sdk().embeddings.create
        (one,) = (await create(model="m", input="ab", dimensions=2)).data
        assert one.embedding == pytest.approx([0.6, 0.8])
        with pytest.raises(openai.BadRequestError, match="too long") as caught:
            await create(model="m", input=["fine", "refuse"])
        assert (caught.value.param, caught.value.code) == ("input", "context_length_exceeded")
        assert caught.value.body["n_ctx"] == 4  # type: ignore[index]
        with pytest.raises(openai.BadRequestError, match="cannot rank documents"):
            await running.sdk().post(
                "/rerank", body={"query": "a", "documents": ["b"]}, cast_to=httpx.Response
            )
