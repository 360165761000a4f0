"""Schemas as GBNF: the grammar takes what the schema takes, and nothing is left out silently."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from dialect_cases import CALLER, FakeBackend
from naiad.dialects.base import Call, Raw
from naiad.dialects.kobold.gbnf import MAX_RULES, to_gbnf
from naiad.dialects.kobold.queries import convert_schema
from naiad.engine.grammar.compiler import GrammarCompiler
from naiad.engine.grammar.definition import define
from naiad.engine.grammar.vetting import Vetted, Vetting
from naiad.errors import InvalidRequest, Unsupported
from naiad.types import Grammar


class ByteVocab:
    """One token a byte, and an end."""

    n_tokens = 257
    eog = frozenset({256})

    def piece(self, token: int, *, special: bool = False) -> bytes:
        return bytes([token]) if token < 256 else b"</s>" * special

    def fresh_piece(self, token: int, *, special: bool = False) -> bytes:
        return self.piece(token, special=special)

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return list(text.encode())


class NoVetting(Vetting):
    def vet(self, kind: str, text: str) -> Vetted:
        return Vetted(define(kind, text), 0.0)


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(ByteVocab(), NoVetting())


def takes(compiler: GrammarCompiler, schema: Any, text: str) -> bool:
    """Whether the grammar of a schema takes this text to its end."""
    follower = compiler.compile(Grammar("gbnf", to_gbnf(schema)))
    for byte in text.encode():
        if follower.is_complete or not follower.mask()[byte]:
            return False
        assert follower.accept(byte)
    return follower.is_complete or bool(follower.mask()[256])


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["a", 'b"', 3]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["age"],
    "additionalProperties": False,
}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "required": ["next"],
        }
    },
}
SCHEMAS: list[tuple[Any, list[Any]]] = [
    (
        PERSON,
        [
            {"age": 5},
            {"name": "Jö😀", "age": -5},
            {"name": "x", "age": 0, "tags": ["a"]},
            {"age": 1, "tags": ['b"', 3]},
            {"name": "x"},
            {"age": 1.5},
            {"age": "1"},
            {"name": "12345", "age": 1},
            {"age": 1, "tags": []},
            {"age": 1, "tags": ["a", "a", "a"]},
            {"age": 1, "tags": ["c"]},
            {"age": 1, "more": 1},
            {},
            [],
        ],
    ),
    (TREE, [{"next": None}, {"next": {"next": {"next": None}}}, {"next": {}}, {"next": 1}]),
    ({}, [None, True, 1, -0.5, "a\n", [], [1, [2]], {}, {"a": {"b": []}}]),
    ({"type": ["string", "null"]}, ["", None, 1, "null"]),
    ({"type": "object"}, [{}, {"a": 1}, []]),
    ({"type": "object", "additionalProperties": False}, [{}, {"a": 1}]),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, [{}, {"a": 1}, {"a": "1"}]),
    ({"type": "array", "items": {"type": "boolean"}}, [[], [True], [True, False], [1]]),
    ({"type": "array", "maxItems": 0}, [[], [1]]),
    ({"const": {"a": ["é\\"]}}, [{"a": ["é\\"]}, {"a": []}]),
    ({"minItems": 2}, [[1, 2], [1], [1, 2, 3]]),
    ({"type": "object", "properties": {}}, [{}, {"a": 1}]),
]


@pytest.mark.parametrize("schema, values", SCHEMAS, ids=range(len(SCHEMAS)))
def test_the_grammar_takes_what_the_schema_takes(
    compiler: GrammarCompiler, schema: Any, values: list[Any]
) -> None:
    # Objects with named properties are closed in GBNF, and without types a list is meant.
    closed = schema | {"additionalProperties": False} if "properties" in schema else schema
    closed = closed | {"type": "array"} if "minItems" in schema else closed
    for value in values:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        is_valid = jsonschema.Draft202012Validator(closed).is_valid(value)
        assert takes(compiler, schema, text) is is_valid, text


def test_white_space_is_allowed_and_bounded(compiler: GrammarCompiler) -> None:
    assert takes(compiler, PERSON, '{ "age" : 5 ,\n "tags": [ "a" , 3 ] }')
    assert not takes(compiler, PERSON, '{"age":' + " " * 21 + "5}")
    assert not takes(compiler, PERSON, '{"age":5} ')  # a model would go on with it


def test_properties_keep_their_order(compiler: GrammarCompiler) -> None:
    assert not takes(compiler, PERSON, '{"age":1,"name":"x"}')


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "a+"},
        {"type": "integer", "minimum": 0},
        {"allOf": [{}]},
        {"not": {}},
        {"type": "object", "patternProperties": {}},
        {"type": "object", "properties": {"a": {}}, "additionalProperties": True},
        {"type": "object", "required": ["a"]},
        {"$ref": "http://x/y"},
        {"type": "array", "prefixItems": []},
    ],
)
def test_what_cannot_be_said_is_refused(schema: Any) -> None:
    with pytest.raises(Unsupported):
        to_gbnf(schema)


@pytest.mark.parametrize(
    "schema",
    [
        5,
        None,
        False,
        {"type": "text"},
        {"type": []},
        {"type": [5]},
        {"enum": []},
        {"anyOf": {}},
        {"properties": []},
        {"properties": {}, "required": [{}]},
        {"$ref": "#/$defs/missing"},
        {"type": "array", "minItems": -1},
        {"type": "array", "minItems": 2, "maxItems": 1},
        {"type": "string", "maxLength": 10**9},
    ],
)
def test_what_is_no_schema_is_refused(schema: Any) -> None:
    with pytest.raises(InvalidRequest):
        to_gbnf(schema)


def test_sizes_are_bounded() -> None:
    wide: dict[str, Any] = {"properties": {f"p{n}": {} for n in range(MAX_RULES)}}
    with pytest.raises(Unsupported, match="more than 2000 rules"):
        to_gbnf(wide)
    deep: dict[str, Any] = {}
    for _ in range(100):
        deep = {"type": "array", "items": deep}
    with pytest.raises(Unsupported, match="deeper than 64"):
        to_gbnf(deep)


@pytest.mark.parametrize("body", [{"schema": PERSON}, PERSON])
async def test_the_question(body: dict[str, Any]) -> None:
    call = Call(body=body, query={}, path_params={}, caller=CALLER)
    assert await convert_schema(FakeBackend(), call) == {"result": to_gbnf(PERSON), "success": True}


async def test_a_refusal_says_why() -> None:
    call = Call(body={"schema": {"not": {}}}, query={}, path_params={}, caller=CALLER)
    answer = await convert_schema(FakeBackend(), call)
    assert isinstance(answer, Raw)
    told = json.loads(answer.data)
    assert (answer.status, told["result"], told["success"]) == (400, "", False)
    assert "'not' cannot be written as GBNF" in told["error"]
