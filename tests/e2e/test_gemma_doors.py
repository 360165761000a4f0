"""The same doors before a model of another kind: 262,144 tokens, words that begin with a mark for a
blank, and bytes as tokens for what is no word."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import sampling_reference as plain
from e2e.asking import CHATS, ENDED, FLAGS, PROMPT, TEXTS, ask, check_form, refused, same
from e2e.client import ServerProcess, serving
from e2e.doors import DOORS
from e2e.test_sampling_doors import ASKING, likely, likely_at
from e2e.test_structured_doors import ARGUMENTS, CHOICES, SCHEMA, functions
from naiad.types import SamplingParams

pytestmark = [pytest.mark.engine, pytest.mark.model, pytest.mark.soak]

#: Texts of bytes, of blanks and of a word that is one token behind a blank only.
ODD = ["🜁 é", "  two", "Thaïs\t\n"]
GREEDY: dict[str, Any] = {"temperature": 0, "repetition_penalty": 1}


@pytest.fixture(scope="module")
def server(gemma: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("gemma") / "server.log"
    with serving(log, str(gemma), *FLAGS) as server:
        yield server


@pytest.mark.parametrize("kind", DOORS)
def test_forms_hold(server: ServerProcess, kind: str) -> None:
    for said in ask(server, kind, 60, temperature=2, seed=1, json_schema=SCHEMA):
        check_form(said, SCHEMA)
    for said in ask(server, kind, 40, temperature=2, seed=2, guided_choice=ODD):
        assert (said.text in ODD, said.end in ENDED) == (True, True), said


@pytest.mark.parametrize("text", ODD)
def test_each_odd_text_is_said_byte_for_byte(server: ServerProcess, text: str) -> None:
    for kind in ("openai-chat", "llama"):
        assert same(server, kind, 40, guided_choice=[text], **GREEDY).text == text


@pytest.mark.parametrize("kind", CHOICES)
def test_a_demanded_call_comes_and_is_valid(server: ServerProcess, kind: str) -> None:
    choice = CHOICES[kind][0][0]
    more = {"tools": functions(kind), "tool_choice": choice, "temperature": 2, "seed": 5}
    for said in ask(server, kind, 60, "Book a room", **more):
        assert said.end in ENDED
        assert said.calls
        for name, arguments in said.calls:
            assert name in {"book", "find"}
            jsonschema.validate(json.loads(arguments), ARGUMENTS)


def test_logprobs_are_the_same_at_every_door(server: ServerProcess) -> None:
    for kinds in (set(TEXTS), set(CHATS) & set(ASKING)):
        first, *others = (likely_at(server, kind) for kind in sorted(kinds))
        assert len(first) in (20, 21)
        assert 0 < sum(map(math.exp, first.values())) < 1
        for other in others:
            assert {name: other.get(name, 0) for name in first} == pytest.approx(first, abs=2e-3)


def test_a_character_of_bytes_has_a_logprob_for_each_of_them(server: ServerProcess) -> None:
    """Also for those of one that a limit cuts."""
    body = {**DOORS["openai-chat"].make("x", 40, {"logprobs": True, **GREEDY})}
    body |= {"guided_choice": ["🜁"]}
    _, told = server.post("/v1/chat/completions", body)
    entries = told["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(one["bytes"]) for one in entries) == "🜁".encode()
    assert len(entries) > 1
    for n in range(1, len(entries)):
        _, cut = server.post("/v1/chat/completions", body | {"max_tokens": n})
        [choice] = cut["choices"]
        assert (choice["message"]["content"] or "", choice["finish_reason"]) == ("", "length")
        assert [one["bytes"] for one in choice["logprobs"]["content"]] == [
            one["bytes"] for one in entries[:n]
        ]
        assert cut["usage"]["completion_tokens"] == n


def test_the_order_of_stages_is_the_one_that_was_asked_for(server: ServerProcess) -> None:
    neutral: dict[str, Any] = {"temperature": 1, "top_k": 20, "top_p": 1, "min_p": 0}
    common = {**ASKING["llama"], **neutral, "repetition_penalty": 1, "seed": 1}

    def tops(**fields: Any) -> dict[str, float]:
        reply = DOORS["llama"].post(server.url, PROMPT, 4, is_streamed=False, **common | fields)
        assert reply.status == 200, reply.body
        return likely(reply, "llama")

    before = tops(samplers=["top_k"])
    names = list(before)
    hot: dict[str, Any] = {"temperature": 3.0, "min_p": 0.2}
    found = []
    for order in (["top_k", "temperature", "min_p"], ["top_k", "min_p", "temperature"]):
        case = plain.Case(SamplingParams(top_k=20, **hot), [])
        left = plain.run({i: before[name] for i, name in enumerate(names)}, case, order)
        want = {names[i]: math.log(share) for i, share in plain.softmax(left).items() if share}
        found.append(tops(**hot, samplers=order, post_sampling_probs=True))
        assert found[-1] == pytest.approx(want, abs=2e-3), order
    assert len(found[0]) > len(found[1])
    for kind in DOORS:
        greedy = same(server, kind, 4, **GREEDY).text
        for given in ({"samplers": ["top_k", "temperature"]}, {"sampler_order": [0, 5]}):
            for said in ask(server, kind, 4, temperature=50, top_k=1, seed=2, **given):
                assert said.text == greedy, (kind, given)
        assert "samplers" in refused(server, kind, samplers=["nope"])


@pytest.mark.parametrize("kind", ["kobold", "openai-chat", "llama"])
def test_no_banned_phrase_comes(server: ServerProcess, kind: str) -> None:
    banned = ["e ", " THE", "You", "a"]
    for said in ask(server, kind, 16, temperature=0.5, seed=1, banned_strings=banned):
        assert len(said.text) > 3
        assert not [phrase for phrase in banned if phrase.lower() in said.text.lower()]
