"""Grammars that are bombs: refused, or compiled within limits, and nobody dies of one."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator

import pytest

from naiad.engine.grammar.helper import try_out
from naiad.engine.grammar.vetting import Vetting, stand_back
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
    made = Vetting(cpu_s=1.0, timeout_s=20.0)  # this machine may do other things as well
    yield made
    made.close()


@pytest.mark.soak
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_compiled_or_refused_in_time(vetting: Vetting, name: str) -> None:
    kind, text = BOMBS[name]
    vetting.vet("regex", "warm")
    before = spent_by_children()
    with contextlib.suppress(InvalidRequest):
        vetting.vet(kind, text)
    assert spent_by_children() - before < 3  # its second, and starting the next one
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


def spent_by_children() -> float:
    """Seconds of the processor that helpers which ended have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.soak
def test_one_that_uses_up_its_seconds_is_given_up_and_the_next_gets_another() -> None:
    vetting = Vetting(cpu_s=0.2, timeout_s=60.0)
    for _ in range(2):
        with pytest.raises(InvalidRequest, match=r"longer than 0\.2 s"):
            vetting.vet("regex", "((a{1000}){1000}){1000}")
    assert vetting.vet("regex", "a{1,3}")
    vetting.close()


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="another system's scheduler")
def test_one_that_takes_long_has_only_what_others_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = json.dumps({"error": None, "definition": "x"})
    vetting = helper_that(f"time.sleep(0.15); print({answer!r}, flush=True)")
    stood_back: list[int] = []
    monkeypatch.setattr("naiad.engine.grammar.vetting.stand_back", stood_back.append)
    for n in (1, 2):
        assert vetting.vet("regex", "a") == "x"
        assert len(set(stood_back)) == n, "the second has a helper of its own"


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="another system's scheduler")
def test_standing_back_is_left_to_the_scheduler() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        before = os.sched_getscheduler(child.pid)
        stand_back(child.pid)
        assert os.getpriority(os.PRIO_PROCESS, child.pid) == 19
        assert os.sched_getscheduler(child.pid) in (os.SCHED_IDLE, before)
        child.kill()
    stand_back(child.pid)


def helper_that(act: str) -> Vetting:
    script = f"import sys, time; print(flush=True)\nfor line in sys.stdin: {act}"
    return Vetting(timeout_s=0.3, command=(sys.executable, "-c", script))


def test_one_that_takes_too_long_is_given_up() -> None:
    vetting = helper_that("time.sleep(60)")
    for _ in range(2):
        with pytest.raises(InvalidRequest, match=r"longer than 0\.3 s"):
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
