"""What an answer must follow and must not say, as each server spells it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from dialect_cases import MODEL
from naiad.dialects.anthropic.requests import parse_messages
from naiad.dialects.base import Parsed
from naiad.dialects.fields import Fields
from naiad.dialects.grammars import read_grammar
from naiad.dialects.kobold.requests import parse_whole
from naiad.dialects.ollama.requests import parse_chat as parse_ollama
from naiad.dialects.openai.requests import parse_chat
from naiad.dialects.openai.responses.requests import read_body
from naiad.dialects.phrases import MAX_CHARS, MAX_PHRASES, read_phrases
from naiad.dialects.sampling import read_sampling
from naiad.errors import InvalidRequest, Unsupported
from naiad.types import Grammar, SamplingParams

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TEXT = json.dumps(SCHEMA, separators=(",", ":"))
OBJECT = '{"type":"object"}'
GBNF = 'root ::= "yes" | "no"'


def grammar(**body: Any) -> Grammar | None:
    return read_grammar(Fields(body))


@pytest.mark.parametrize(
    ("body", "kind", "text", "field"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema", OBJECT, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            "json_schema",
            TEXT,
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "json_schema",
            OBJECT,
            "response_format",
        ),
        (
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            "json_schema",
            TEXT,
            "response_format.schema",
        ),
        ({"json_schema": SCHEMA}, "json_schema", TEXT, "json_schema"),
        ({"json_schema": TEXT}, "json_schema", TEXT, "json_schema"),
        ({"grammar": GBNF}, "gbnf", GBNF, "grammar"),
        ({"grammar": TEXT}, "json_schema", TEXT, "grammar"),
        ({"grammar_string": GBNF, "grammar": ""}, "gbnf", GBNF, "grammar_string"),
        ({"guided_json": SCHEMA}, "json_schema", TEXT, "guided_json"),
        ({"guided_regex": "a+"}, "regex", "a+", "guided_regex"),
        ({"guided_grammar": GBNF}, "gbnf", GBNF, "guided_grammar"),
        ({"guided_choice": ["a", 'b"']}, "lark", 'start: "a" | "b\\""', "guided_choice"),
        ({"structured_outputs": {"json": SCHEMA}}, "json_schema", TEXT, "structured_outputs.json"),
        ({"structured_outputs": {"regex": "a"}}, "regex", "a", "structured_outputs.regex"),
        (
            {"structured_outputs": {"json_object": True}},
            "json_schema",
            OBJECT,
            "structured_outputs.json_object",
        ),
    ],
)
def test_every_spelling(body: dict[str, Any], kind: str, text: str, field: str) -> None:
    assert grammar(**body) == Grammar(kind, text, field=field)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"response_format": {"type": "text"}},
        {"response_format": {}},
        {"response_format": None},
        {"grammar": " "},
        {"json_schema": ""},
        {"guided_choice": []},
        {"guided_regex": ""},
        {"structured_outputs": {}},
        {"grammar_lazy": False, "grammar_retain_state": False},
    ],
)
def test_none(body: dict[str, Any]) -> None:
    assert grammar(**body) is None


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({"grammar": GBNF, "json_schema": {}}, "'json_schema' and 'grammar' each", "grammar"),
        (
            {"response_format": {"type": "xml"}},
            "json_object or json_schema",
            "response_format.type",
        ),
        ({"response_format": {"type": "json_schema"}}, "is missing", "response_format.json_schema"),
        ({"response_format": "json"}, "an object", "response_format"),
        ({"json_schema": [1]}, "an object", "json_schema"),
        ({"json_schema": {"x": "\ud800"}}, "no valid Unicode", "json_schema"),
        ({"grammar": {}}, "a string", "grammar"),
        ({"guided_choice": ["a"] * 5000}, "at most 4096", "guided_choice"),
        ({"guided_regex": "a" * 300_000}, "at most 262144 characters", "guided_regex"),
        (
            {"structured_outputs": {"json": {}, "regex": "a"}},
            "one form for the answer",
            "structured_outputs",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_name(
    body: dict[str, Any], message: str, param: str
) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        grammar(**body)
    assert caught.value.param == param


def test_a_rule_is_no_hint_in_any_dialect() -> None:
    turns = {"messages": [{"role": "user", "content": "hi"}]}
    limited = {**turns, "max_tokens": 9}
    for parsed in (
        parse_ollama({**turns, "guided_regex": "a"}, MODEL),
        parse_ollama({**turns, "options": {"guided_regex": "a"}}, MODEL),
        parse_messages({**limited, "guided_regex": "a"}, MODEL),
    ):
        assert isinstance(parsed, Parsed)
        assert parsed.request.grammar is not None
        assert parsed.request.grammar.kind == "regex"
        assert parsed.ignored == ()
    with pytest.raises(InvalidRequest, match=r"'format' and 'options\.grammar' each") as caught:
        parse_ollama({**turns, "format": "json", "options": {"grammar": GBNF}}, MODEL)
    assert caught.value.param == "options.grammar"
    form = {"type": "json_schema", "schema": {}}
    with pytest.raises(InvalidRequest, match="each set a form"):
        parse_messages({**limited, "output_config": {"format": form}, "grammar": GBNF}, MODEL)
    with pytest.raises(InvalidRequest, match="each set a form"):
        read_body({"input": "hi", "text": {"format": form}, "grammar": GBNF}, MODEL)


def test_structural_tags_are_not_supported() -> None:
    with pytest.raises(Unsupported):
        grammar(structured_outputs={"structural_tag": {}})


def test_both_dialects_read_it() -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}], "json_schema": SCHEMA}
    assert parse_chat(chat, MODEL).request.grammar == Grammar(
        "json_schema", TEXT, field="json_schema"
    )
    parsed = parse_whole({"prompt": "hi", "grammar": GBNF, "grammar_retain_state": False}, MODEL)
    assert parsed.request.grammar == Grammar("gbnf", GBNF, field="grammar")
    assert parsed.ignored == ()


# -- phrases ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "phrases", "ids"),
    [
        ({}, (), ()),
        ({"banned_strings": ["a", "b c", "a", ""]}, ("a", "b c"), ()),
        ({"banned_phrases": ["x"], "banned_strings": ["a"]}, ("a", "x"), ()),
        ({"banned_tokens": ["a", 5]}, ("a",), (5,)),
        ({"banned_tokens": "5, 6"}, (), (5, 6)),
        ({"banned_tokens": "[5,6]"}, (), (5, 6)),
        ({"banned_tokens": ""}, (), ()),
        ({"banned_strings": "a\nb"}, ("a", "b"), ()),
        ({"banned_strings": '["a", "[b"]'}, ("a", "[b"), ()),
        ({"banned_strings": "[b"}, ("[b",), ()),
    ],
)
def test_phrases_and_ids(
    body: dict[str, Any], phrases: tuple[str, ...], ids: tuple[int, ...]
) -> None:
    assert read_phrases(Fields(body), MODEL) == (phrases, ids)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["x" * 257], "at most 256 characters"),
        ([f"{i}x" for i in range(MAX_PHRASES + 1)], f"at most {MAX_PHRASES} phrases"),
        ([f"{i:03}" + "x" * 250 for i in range(MAX_CHARS // 250)], f"{MAX_CHARS} characters"),
        ([10**9], "made of texts and token ids from 0 to"),
        ({}, "a list"),
    ],
)
def test_phrases_out_of_range(value: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        read_phrases(Fields({"banned_strings": value}), MODEL)
    assert caught.value.param == "banned_strings"


def test_phrases_are_part_of_sampling_and_ids_are_bans() -> None:
    body = {"banned_tokens": ["a", 5], "logit_bias": {"5": 3, "6": 1}}
    found = read_sampling(Fields(body), MODEL, SamplingParams())
    assert found.banned_phrases == ("a",)
    assert dict(found.logit_bias) == {5: -math.inf, 6: 1.0}
