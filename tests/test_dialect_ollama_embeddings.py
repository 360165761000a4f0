"""Embeddings for clients of Ollama and KoboldCpp: by the `ollama` package, and bodies by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import ollama
import pytest

from dialect_cases import CALLER, FakeBackend
from dialect_server import House, house
from fakes import FakeEngine, make_service, silent
from naiad.client.base import EngineState
from naiad.config import Config
from naiad.dialects.base import Call
from naiad.dialects.kobold.queries import show_version
from naiad.dialects.ollama.embeddings import embed, embed_one
from naiad.errors import ContextExceeded, InvalidRequest, ModelNotFound
from naiad.service.embedding import embed_all
from naiad.types import Caller, EmbeddedText
from patience import PATIENCE_S

M = "tiny.Q4_1:latest"
ADMIN = Caller("root", is_admin=True)


@pytest.fixture
async def running() -> AsyncIterator[House]:
    async with house(silent) as made:
        yield made


@pytest.fixture
async def client(running: House) -> AsyncIterator[ollama.AsyncClient]:
    made = ollama.AsyncClient(host=running.url, timeout=PATIENCE_S)
    yield made
    await made._client.aclose()


async def test_one_text_and_several(client: ollama.AsyncClient) -> None:
    told = await client.embed(M, ["ab", "abcde"], options={"num_ctx": 64}, keep_alive="5m")
    alone = await client.embed(M, "ab")
    assert told.embeddings[0] == alone.embeddings[0]
    assert [sum(x * x for x in one) for one in told.embeddings] == pytest.approx([1, 1])
    assert (told.model, told.prompt_eval_count, alone.prompt_eval_count) == (M, 7, 2)
    assert (told.total_duration or 0) > (told.load_duration or 0) >= 0
    assert (await client.embeddings(M, "ab")).embedding == alone.embeddings[0]
    (short,) = (await client.embed(M, "ab", dimensions=2)).embeddings
    assert short == pytest.approx([0.6, 0.8])
    whole = (await client.embed(M, "ab")).embeddings
    for ignored in (0, 9999):
        assert (await client.embed(M, "ab", dimensions=ignored)).embeddings == whole


async def test_without_a_text_the_model_is_loaded(
    running: House, client: ollama.AsyncClient
) -> None:
    running.engine.unload()
    assert (await client.embed(M, "", keep_alive="5m")).embeddings == []
    assert running.engine.state is EngineState.READY
    assert (await client.embed(M, [])).embeddings == []
    assert (await client.embeddings(M, "")).embedding == []


async def test_what_is_too_long_is_cut_or_refused_as_asked(
    running: House, client: ollama.AsyncClient
) -> None:
    cut = await client.embed(M, ["fine", "refuse"])  # a text of 6 tokens where 4 fit
    assert cut.prompt_eval_count == 8
    async with httpx.AsyncClient(base_url=running.url) as http:
        told = await http.post("/api/embed", json={"input": ["fine", "refuse"]})
    assert told.json()["dropped_tokens"] == 2
    for asking in (client.embed(M, "refuse", truncate=False), client.embeddings(M, "refuse")):
        with pytest.raises(ollama.ResponseError, match="too long") as caught:
            await asking
        assert caught.value.status_code == 400
    service = make_service(FakeEngine(), Config(strict_model=True))
    with pytest.raises(ModelNotFound, match="'other' does not exist here"):
        await embed(service, Call({"model": "other:latest", "input": "a"}, {}, {}, CALLER))


async def test_kobold_has_openais_shape_and_cuts(running: House) -> None:
    async with httpx.AsyncClient(base_url=running.url) as http:
        path = "/api/extra/embeddings"
        told = (await http.post(path, json={"input": ["ab", "refuse"]})).json()
        assert [len(one["embedding"]) for one in told["data"]] == [4, 4]
        assert (told["usage"]["prompt_tokens"], told["dropped_tokens"]) == (6, 2)
        refused = await http.post(path, json={"input": "refuse", "truncate": False})
        assert refused.status_code == 400
        assert refused.json() == {"detail": {"msg": "too long", "type": "bad_input"}}
        assert (await http.get("/api/extra/version")).json()["embeddings"] is True
    assert (await show_version(FakeBackend(), Call({}, {}, {}, CALLER)))["vision"] is False


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"input": 5}, "'input' must be a string or a list of strings, not a number"),
        ({"input": {"a": 1}}, "not an object"),
        ({"input": ["a", 5]}, r"'input\[1\]' must be a string, not a number"),
        ({"input": ["a"] * 2049}, "at most 2048 texts, not 2049"),
        ({"input": "\ud800"}, "lone surrogate"),
        ({"input": "a", "dimensions": -1}, "'dimensions' must be an integer of at least 0"),
        ({"input": ["a", ""]}, r"'input\[1\]' is empty"),
        ({"input": "a", "truncate": "yes"}, "'truncate' must be true or false"),
        ({"input": "a", "options": []}, "'options' must be an object"),
        ({"input": "a", "keep_alive": "soon"}, "'keep_alive' must be a number of seconds"),
        ({"input": "a", "model": 5}, "'model' must be a string"),
    ],
)
async def test_bad_bodies_are_refused_by_name(body: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        await embed(FakeBackend(), Call(body, {}, {}, CALLER))


async def test_a_prompt_is_one_text() -> None:
    with pytest.raises(InvalidRequest, match="'prompt' must be a string, not a list"):
        await embed_one(FakeBackend(), Call({"prompt": ["a"]}, {}, {}, CALLER))


class Ending(FakeEngine):
    """Its texts begin with token 1 and end with 2, as those of BERT; eight fit."""

    async def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        assert not parse_special
        return [1, *text.encode(), 2] if add_special else list(text.encode())

    async def embed(self, prompt: str | tuple[int, ...]) -> EmbeddedText:
        if isinstance(prompt, str):
            prompt = tuple(await self.tokenize(prompt, parse_special=False))
        if len(prompt) > 8:
            raise ContextExceeded("too long", n_prompt_tokens=len(prompt), n_ctx=8)
        return EmbeddedText(bytes(prompt), len(prompt))


async def test_the_last_token_stays_when_a_text_is_cut() -> None:
    fits, cut, ids = await embed_all(
        Ending(), ["abcdef", "abcdefgh", tuple(range(9))], truncate=True
    )
    assert (fits.vector, fits.n_dropped) == (b"\1abcdef\2", 0)
    assert (cut.vector, cut.n_dropped) == (b"\1abcdef\2", 2)
    assert (ids.vector, ids.n_dropped) == (bytes(range(8)), 1)
    with pytest.raises(ContextExceeded):
        await embed_all(Ending(), ["abcdefgh"], truncate=False)


async def test_how_long_the_model_stays_is_the_administrators_wish() -> None:
    engine = FakeEngine()
    service = make_service(engine)
    await service.embed(["a"], keep_alive_s=0, caller=CALLER)
    assert engine.n_unloads == 0
    await service.embed(["a"], keep_alive_s=0, caller=ADMIN)
    assert engine.n_unloads == 1
