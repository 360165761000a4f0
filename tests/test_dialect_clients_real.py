"""The `ollama` and `anthropic` packages against the server with a real model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anthropic
import ollama
import pytest

from e2e.client import ServerProcess, serving
from patience import PATIENCE_S

pytestmark = [pytest.mark.engine, pytest.mark.model, pytest.mark.soak]

HI: list[Any] = [{"role": "user", "content": "Name three colours."}]
TOOL: Any = {
    "name": "get_weather",
    "description": "Tells the weather.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 8}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
GREEDY = {"temperature": 0}
#: Texts that are compared: the same question twice meets another cache and other guesses, so that
#: sums differ by rounding, and a small model may then choose another word.
SAME = {"temperature": 0, "deterministic": True}
BILLING = "x-anthropic-billing-header: cc_version=2.1.197.{}; cc_entrypoint=cli;"


@pytest.fixture(scope="module")
def server(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("clients") / "server.log"
    with serving(log, str(starter), "--ctx", "2048") as running:
        yield running


@pytest.fixture
def theirs(server: ServerProcess) -> Iterator[ollama.Client]:
    made = ollama.Client(host=server.url, timeout=PATIENCE_S)
    yield made
    made._client.close()


@pytest.fixture
def claude(server: ServerProcess) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="x", max_retries=0) as made:
        yield made


def test_ollamas_streams_equal_whole_answers(theirs: ollama.Client) -> None:
    model = theirs.list().models[0].model or ""
    options = {**SAME, "num_predict": 12, "repeat_penalty": 1}
    for _ in range(3):
        told = theirs.chat(model, HI, options=options)
        chunks = list(theirs.chat(model, HI, options=options, stream=True))
        text = "".join(chunk.message.content or "" for chunk in chunks)
        assert text == told.message.content != ""
        assert chunks[-1].eval_count == told.eval_count == 12
        assert (told.done_reason, chunks[-1].done_reason) == ("length", "length")
        assert (told.prompt_eval_duration or 0) > 0
        assert (told.eval_duration or 0) > 0


def test_ollamas_format_is_held(theirs: ollama.Client) -> None:
    schema: Any = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    schema["additionalProperties"] = False
    told = theirs.chat(theirs.list().models[0].model or "", HI, format=schema)
    assert told.message.content is not None
    assert told.message.content.replace(" ", "") in {'{"n":1}', '{"n":2}'}


def _similarity(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_ollamas_embeddings_tell_texts_apart(theirs: ollama.Client) -> None:
    model = theirs.list().models[0].model or ""
    told = theirs.embed(model, ["A cat sleeps.", "A kitten naps.", "Taxes are due in May."])
    cat, kitten, taxes = told.embeddings
    assert sum(x * x for x in cat) == pytest.approx(1)
    assert _similarity(cat, kitten) > _similarity(cat, taxes)
    assert theirs.embeddings(model, "A cat sleeps.").embedding == pytest.approx(list(cat))
    assert (told.total_duration or 0) > 0
    too_long = "word " * 2500
    assert theirs.embed(model, too_long).prompt_eval_count == 2048
    with pytest.raises(ollama.ResponseError, match="2048") as caught:
        theirs.embed(model, too_long, truncate=False)
    assert caught.value.status_code == 400


def test_ollamas_logprobs_are_of_the_tokens_that_were_said(theirs: ollama.Client) -> None:
    options = {"temperature": 0, "num_predict": 8, "repeat_penalty": 1}
    model = theirs.list().models[0].model or ""
    told = theirs.chat(model, HI, options=options, logprobs=True, top_logprobs=3)
    assert told.logprobs is not None
    assert "".join(one.token for one in told.logprobs) == told.message.content
    for one in told.logprobs:
        assert one.top_logprobs is not None
        assert (one.token, one.logprob) == (one.top_logprobs[0].token, one.top_logprobs[0].logprob)


def test_anthropics_streams_equal_whole_answers(claude: anthropic.Anthropic) -> None:
    ask: Any = {"model": "m", "max_tokens": 12, "messages": HI, "extra_body": SAME}
    told: Any = claude.messages.create(**ask)
    with claude.messages.stream(**ask) as stream:
        text = "".join(stream.text_stream)
        final: Any = stream.get_final_message()
    assert text == told.content[0].text == final.content[0].text != ""
    assert final.stop_reason == told.stop_reason == "max_tokens"
    counted = claude.messages.count_tokens(model="m", messages=HI)
    usage = final.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == counted.input_tokens


def test_a_second_turn_reuses_the_first_whatever_the_billing_line_says(
    claude: anthropic.Anthropic,
) -> None:
    rules = " ".join(f"Rule {i}: be kind." for i in range(40))
    usages = []
    for code in ("123", "ffc"):
        system: Any = [{"type": "text", "text": BILLING.format(code)}]
        system.append({"type": "text", "text": rules})
        told = claude.messages.create(model="m", max_tokens=4, system=system, messages=HI)
        usages.append(told.usage)
    n_prompt = usages[0].input_tokens + (usages[0].cache_read_input_tokens or 0)
    assert (usages[1].cache_read_input_tokens or 0) > 0.9 * n_prompt


def test_a_forced_call_has_arguments_by_the_schema(claude: anthropic.Anthropic) -> None:
    told: Any = claude.messages.create(
        model="m",
        max_tokens=60,
        extra_body=GREEDY,
        messages=[{"role": "user", "content": "How is the weather in Paris?"}],
        tools=[TOOL],
        tool_choice={"type": "any"},
    )
    (call,) = told.content
    assert (call.type, call.name, told.stop_reason) == ("tool_use", "get_weather", "tool_use")
    assert isinstance(call.input["city"], str)
