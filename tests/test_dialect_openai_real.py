"""The `openai` package against the server with a real model: what only a model can show."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from e2e.client import ServerProcess, serving

pytestmark = [pytest.mark.engine, pytest.mark.model, pytest.mark.soak]

HI: list[Any] = [{"role": "user", "content": "Name three colours."}]


@pytest.fixture(scope="module")
def server(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("openai")
    kept = str(folder / "responses.db")
    log = folder / "server.log"
    with serving(log, str(starter), "--ctx", "2048", "--responses-file", kept) as running:
        yield running


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as made:
        yield made


def test_greedy_tokens_are_the_likeliest_and_the_rest_adds_up(client: Any) -> None:
    asked: dict[str, Any] = {"model": "m", "messages": HI, "temperature": 0, "max_tokens": 12}
    wanted = {"logprobs": True, "top_logprobs": 20}
    choice = client.chat.completions.create(**asked, **wanted).choices[0]
    check(choice.message.content, choice.logprobs.content)
    text, entries = "", list[Any]()
    for chunk in client.chat.completions.create(**asked, **wanted, stream=True):
        text += chunk.choices[0].delta.content or ""
        entries += chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else []
    check(text, entries)


def check(text: str, entries: list[Any]) -> None:
    assert len(entries) > 8
    assert b"".join(bytes(one.bytes) for one in entries).decode() == text
    for one in entries:
        assert one.token == one.top_logprobs[0].token
        assert one.logprob == one.top_logprobs[0].logprob
        assert sum(math.exp(other.logprob) for other in one.top_logprobs) <= 1 + 1e-4


def test_choices_share_their_prompt_and_differ(client: Any) -> None:
    told = client.chat.completions.create(
        model="m", messages=HI, n=4, seed=3, temperature=1.5, max_tokens=12
    )
    texts = [choice.message.content for choice in told.choices]
    assert len(set(texts)) == 4
    assert told.usage.completion_tokens > 12
    pair = client.completions.create(model="m", prompt=["One, two,", "Red, green,"], max_tokens=4)
    assert [choice.index for choice in pair.choices] == [0, 1]
    with pytest.raises(openai.BadRequestError, match="no tokens for filling in"):
        client.completions.create(model="m", prompt="a", suffix="b")


def test_structured_answers_have_logprobs_for_forced_tokens_too(client: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    told = client.chat.completions.create(
        model="m", messages=HI, response_format=form, logprobs=True, temperature=0
    )
    text = told.choices[0].message.content
    joined = b"".join(bytes(one.bytes) for one in told.choices[0].logprobs.content)
    assert joined.decode() == text
    assert isinstance(json.loads(text)["ok"], bool)


def test_embeddings_leave_a_chat_alone(client: Any) -> None:
    chat: dict[str, Any] = {"model": "m", "messages": HI, "temperature": 0, "max_tokens": 8}
    client.chat.completions.create(**chat)
    found = client.embeddings.create(
        model="m", input=["A cat sleeps.", "A kitten is asleep.", "Tax law of 1954"]
    )
    cat, kitten, tax = (one.embedding for one in found.data)
    assert math.hypot(*cat) == pytest.approx(1, abs=1e-3)
    assert math.dist(cat, kitten) < math.dist(cat, tax)
    again = client.chat.completions.create(**chat)
    assert again.usage.prompt_tokens_details.cached_tokens > 0
    with pytest.raises(openai.BadRequestError, match="2048") as caught:
        client.embeddings.create(model="m", input="word " * 3000)
    assert caught.value.code == "context_length_exceeded"


def test_a_conversation_of_responses(client: Any) -> None:
    with client.responses.stream(model="m", input="Say hello.", max_output_tokens=16) as stream:
        kinds = [event.type for event in stream]
        first = stream.get_final_response() if kinds[-1] == "response.completed" else None
    assert kinds[0] == "response.created"
    whole = client.responses.create(model="m", input="Say hello.", max_output_tokens=16)
    assert whole.status in {"completed", "incomplete"}
    if first is not None:
        assert first.output_text
    second = client.responses.create(
        model="m", input="Again.", previous_response_id=whole.id, max_output_tokens=4
    )
    assert second.usage.input_tokens > whole.usage.input_tokens
    assert second.usage.input_tokens_details.cached_tokens > 0
    assert client.responses.retrieve(second.id).output_text == second.output_text


def test_the_model_is_described(client: Any) -> None:
    (listed,) = client.models.list().data
    shown = client.models.retrieve(listed.id).to_dict()
    assert shown["meta"]["n_ctx"] == 2048
    assert shown["meta"]["quantization"]
    assert shown["meta"]["n_params"] > 1e6
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")
