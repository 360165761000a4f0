"""Grammars that are bombs: refused, or compiled within limits, and nobody dies of one."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator

import pytest

from naiad.engine.grammar.helper import try_out
from naiad.engine.grammar.vetting import Vetting
from naiad.errors import InternalError, InvalidRequest

BOMBS = {
    "nested groups of gbnf": ("gbnf", "root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000),
    "nested groups of lark": ("lark", "start: " + "(" * 30_000 + '"a"' + ")" * 30_000),
    "nested groups of a regex": ("regex", "(" * 60_000 + "a" + ")" * 60_000),
    "repetitions": ("gbnf", 'root ::= "a"{1,100000000}'),
    "repetitions of repetitions": ("lark", 'start: (("a"{1000}){1000}){1000}'),
    "repetitions in a regex": ("regex", "((a{1000}){1000}){1000}"),
    "a rule of itself": ("gbnf", "root ::= root"),
    "rules in a circle": ("gbnf", 'root ::= a\na ::= b\nb ::= a | "x"'),
    "left and right recursion": ("gbnf", 'root ::= root root | "a" | ""'),
    "a catastrophic regex": ("regex", "(a|a)*(a*)*(a|b|ab)*c{50,90}(.*a.{20})"),
    "many states": ("regex", "(.*a.{18}b.*c.{18}){5}"),
    "a deep schema": ("json_schema", '{"properties":{"a":' * 500 + "{}" + "}}" * 500),
    "a reference to itself": ("json_schema", '{"$ref": "#"}'),
    "references in a circle": (
        "json_schema",
        '{"$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}',
    ),
    "many properties": (
        "json_schema",
        json.dumps({"type": "object", "properties": {f"p{i}": {} for i in range(4000)}}),
    ),
    "patterns that all hold": (
        "json_schema",
        json.dumps(
            {"allOf": [{"type": "string", "pattern": f".*{c}.*"} for c in "abcdefghijklmnop"]}
        ),
    ),
    "ten megabytes": ("json_schema", json.dumps({"enum": ["x" * 10_000_000]})),
}


@pytest.fixture(scope="module")
def vetting() -> Iterator[Vetting]:
    made = Vetting(timeout_s=2.0)
    yield made
    made.close()


@pytest.mark.soak
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_compiled_or_refused_in_time(vetting: Vetting, name: str) -> None:
    kind, text = BOMBS[name]
    vetting.vet("regex", "warm")
    began = time.monotonic()
    try:
        vetting.vet(kind, text)
    except InvalidRequest as error:
        assert error.message
    assert time.monotonic() - began < 10  # its 2 s, on a machine that does other things as well
    assert vetting.vet("regex", "a{1,3}")


@pytest.mark.soak
def test_a_schema_of_an_agent_is_compiled(vetting: Vetting) -> None:
    """A tool list as agents send them: 120 functions, 60 KiB."""
    tool = {
        "type": "object",
        "properties": {
            "path": {"type": "string", "description": "where to look for it, " * 10},
            "limit": {"type": "integer", "minimum": 1, "maximum": 2000},
            "mode": {"enum": ["read", "write", "append"]},
            "filters": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["path"],
        "additionalProperties": False,
    }
    tools = [
        {
            "type": "object",
            "properties": {"name": {"const": f"tool_{i}"}, "arguments": tool},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for i in range(120)
    ]
    text = json.dumps({"anyOf": tools})
    assert len(text) > 60_000
    assert json.loads(vetting.vet("json_schema", text))


def helper_that(act: str) -> Vetting:
    script = f"import sys, time; print(flush=True)\nfor line in sys.stdin: {act}"
    return Vetting(timeout_s=0.2, command=(sys.executable, "-c", script))


def test_one_that_takes_too_long_is_given_up() -> None:
    vetting = helper_that("time.sleep(60)")
    for _ in range(2):
        with pytest.raises(InvalidRequest, match=r"longer than 0\.2 s"):
            vetting.vet("regex", "a")


def test_one_that_kills_the_helper_is_refused_and_the_next_gets_another() -> None:
    vetting = helper_that("sys.exit(1)")
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="too large or too deep"):
            vetting.vet("regex", "a")
    vetting.close()
    vetting.close()


def test_without_a_helper_it_is_our_fault() -> None:
    with pytest.raises(InternalError, match="cannot be started"):
        Vetting(command=(sys.executable, "-c", "")).vet("regex", "a")


def test_the_helper_answers_with_the_definition_or_the_reason() -> None:
    from llguidance import LLTokenizer

    vocabulary = LLTokenizer("byte")
    assert try_out("regex", "a+", vocabulary)["error"] is None
    assert "unclosed group" in try_out("regex", "(a", vocabulary)["error"]
    assert "cannot be compiled" in try_out("gbnf", "root ::= root", vocabulary)["error"]
