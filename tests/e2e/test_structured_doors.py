"""Forms, demanded calls and the promise of the same text, at every door and both ways.

One table row is a field with what must come of it; each row is sent as a real request to each
dialect that has the field, streamed and whole.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from e2e.asking import (
    CHATS,
    ENDED,
    FLAGS,
    TEXTS,
    ask,
    check_form,
    hear,
    refused,
    same,
    server,
    talking,
)
from e2e.client import ServerProcess, serving
from e2e.doors import DOORS

__all__ = ["server"]
pytestmark = [pytest.mark.engine, pytest.mark.model, pytest.mark.soak]

# Forms. -----------------------------------------------------------------------------------------

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "é🙂"]}, "n": {"type": "integer", "minimum": 1}},
    "required": ["a", "n"],
    "additionalProperties": False,
}
_NAMED = {"type": "json_schema", "name": "s", "schema": SCHEMA}
_OPENAI = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
_OPEN = {"type": "object"}
#: field, value, a check of the answer, and the doors that know it; () for all of them.
FORMS: tuple[tuple[str, Any, Any, tuple[str, ...]], ...] = (
    ("response_format", _OPENAI, SCHEMA, ("openai-chat", "openai-completions", "kobold", "llama")),
    ("response_format", {"type": "json_object"}, _OPEN, ("openai-chat", "openai-completions")),
    ("text", {"format": _NAMED}, SCHEMA, ("openai-responses",)),
    ("text", {"format": {"type": "json_object"}}, _OPEN, ("openai-responses",)),
    ("output_config", {"format": _NAMED}, SCHEMA, ("anthropic",)),
    ("format", SCHEMA, SCHEMA, ("ollama-chat", "ollama-generate")),
    ("format", "json", _OPEN, ("ollama-chat", "ollama-generate")),
    ("json_schema", SCHEMA, SCHEMA, ()),
    ("guided_json", json.dumps(SCHEMA), SCHEMA, ()),
    ("grammar", json.dumps(SCHEMA), SCHEMA, ()),
    ("grammar", 'root ::= "red" | "green"', {"red", "green"}, ()),
    ("grammar_string", 'root ::= "red" | "green"', {"red", "green"}, ()),
    ("guided_grammar", 'start: A\nA: "red" | "green"', {"red", "green"}, ()),
    ("guided_regex", "(red|green)", {"red", "green"}, ()),
    ("guided_choice", ["red", "green"], {"red", "green"}, ()),
    ("structured_outputs", {"choice": ["red", "green"]}, {"red", "green"}, ()),
)


@pytest.mark.parametrize("kind", DOORS)
def test_every_form_holds(server: ServerProcess, kind: str) -> None:
    for field, value, want, doors in FORMS:
        if doors and kind not in doors:
            continue
        # An open object may go on for ever at temperature 2.
        heat = 0 if want is _OPEN else 2
        for said in ask(server, kind, 60, temperature=heat, seed=1, **{field: value}):
            if isinstance(want, set):
                assert (said.text in want, said.end in ENDED) == (True, True), (field, said)
            else:
                check_form(said, want)


@pytest.mark.parametrize("kind", DOORS)
def test_what_cannot_be_followed_is_refused_with_the_place(
    server: ServerProcess, kind: str
) -> None:
    for field, value, message in (
        ("grammar", "root ::= foo", "foo"),
        ("guided_regex", "[", "unclosed"),
        ("json_schema", {"properties": {"a": {"not": {}}}}, "#/properties/a"),
    ):
        assert message in refused(server, kind, **{field: value})
    message = refused(server, kind, grammar='root ::= "a"', guided_regex="a")
    assert "each set a form" in message


# Tools. -----------------------------------------------------------------------------------------

ARGUMENTS = {
    "type": "object",
    "properties": {"title": {"type": "string", "maxLength": 6}, "n": {"enum": [1, 22]}},
    "required": ["title", "n"],
    "additionalProperties": False,
}


def functions(kind: str) -> list[dict[str, Any]]:
    names = ("book", "find")
    if kind == "anthropic":
        return [{"name": name, "input_schema": ARGUMENTS} for name in names]
    inner = [{"name": name, "parameters": ARGUMENTS, "strict": True} for name in names]
    if kind == "openai-responses":
        return [{"type": "function", **one} for one in inner]
    return [{"type": "function", "function": one} for one in inner]


#: door -> choice -> the calls that may come; None for any or none
CHOICES: dict[str, list[tuple[Any, set[str] | None]]] = {
    "openai-chat": [
        ("required", {"book", "find"}),
        ({"type": "function", "function": {"name": "find"}}, {"find"}),
        ("auto", None),
        ("none", set()),
    ],
    "openai-responses": [
        ("required", {"book", "find"}),
        ({"type": "function", "name": "find"}, {"find"}),
        ("auto", None),
        ("none", set()),
    ],
    "anthropic": [
        ({"type": "any"}, {"book", "find"}),
        ({"type": "tool", "name": "find"}, {"find"}),
        ({"type": "auto"}, None),
        ({"type": "none"}, set()),
    ],
}


@pytest.mark.parametrize("kind", CHOICES)
def test_a_call_that_is_demanded_comes_and_is_valid(server: ServerProcess, kind: str) -> None:
    for choice, names in CHOICES[kind]:
        more: dict[str, Any] = {
            "tools": functions(kind),
            "tool_choice": choice,
            "temperature": 2,
            "seed": 5,
        }
        is_same = isinstance(choice, dict) and names == {"find"}
        how = same if is_same else ask
        n = 40 if names else 8
        told = how(server, kind, n, "Book a room", **more, deterministic=is_same)
        for said in told if isinstance(told, tuple) else (told,):
            if names:
                assert said.end in ENDED
                assert {name for name, _ in said.calls} <= names
                assert len(said.calls) >= 1
            assert names is None or bool(said.calls) is bool(names)
            for _, arguments in said.calls:
                jsonschema.validate(json.loads(arguments), ARGUMENTS)
    assert "tool_choice" in refused(
        server, kind, tools=functions(kind), tool_choice={"type": "function", "name": "zip"}
    )


# Repeating. -------------------------------------------------------------------------------------


def test_the_same_text_at_every_door_beside_others_and_after_a_restart(
    server: ServerProcess, starter: Path, tmp_path: Path
) -> None:
    story = "The fisherman said to his wife that the strange fish had spoken to him. " * 2
    keep: dict[str, Any] = {
        "deterministic": True,
        "temperature": 1.5,
        "top_k": 50,
        "top_p": 0.99,
        "min_p": 0.0,
    }
    keep |= {"top_p": 0.99, "repetition_penalty": 1.1, "repeat_last_n": 64, "seed": 4}
    keep |= {"samplers": ["penalties", "top_k", "top_p", "temperature"]}
    alone = {kind: same(server, kind, 6, story, **keep).text for kind in DOORS}
    for kinds in (TEXTS, CHATS):
        assert len({alone[kind] for kind in kinds}) == 1
    with talking(server, ["llama", "kobold", "openai-chat"], story) as others:
        for kind in list(DOORS)[::3]:
            hear(others)
            reply = DOORS[kind].post(server.url, story, 6, is_streamed=True, **keep)
            assert reply.said.text == alone[kind]
        hear(others)
    with serving(tmp_path / "again.log", str(starter), *FLAGS) as again:
        for kind in list(DOORS)[1::3]:
            reply = DOORS[kind].post(again.url, story, 6, is_streamed=False, **keep)
            assert reply.said.text == alone[kind]


@pytest.mark.parametrize("kind", DOORS)
def test_a_seed_repeats_itself(server: ServerProcess, kind: str) -> None:
    hot: dict[str, Any] = {
        "temperature": 1.6,
        "top_k": 9,
        "top_p": 1,
        "min_p": 0,
        "repetition_penalty": 1,
    }
    ask(server, kind, 1, **hot)  # from here on the prompt is known
    said = [ask(server, kind, 6, **hot, **{name: "9"}) for name in ("seed", "sampler_seed")]
    assert len({one.text for both in said for one in both}) == 1
    free = [one.text for _ in range(3) for one in ask(server, kind, 6, **hot, seed=-1)]
    assert len(set(free)) > 1
