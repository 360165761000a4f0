"""Grammars that are bombs: refused, or compiled within limits, and nobody dies of one."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from llguidance import LLTokenizer

from naiad.engine.grammar import helper
from naiad.engine.grammar import vetting as vetting_module
from naiad.engine.grammar.helper import stand_back, try_out
from naiad.engine.grammar.place import Schema, place_of
from naiad.engine.grammar.vetting import Vetting
from naiad.errors import InternalError, InvalidRequest
from patience import PATIENCE_S

#: Newer Pythons warn of threads, which the real helper has none of.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

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
    made = Vetting(cpu_s=1.0, timeout_s=60.0)  # this machine may do other things as well
    yield made
    made.close()


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_compiled_or_refused_in_time(vetting: Vetting, name: str) -> None:
    kind, text = BOMBS[name]
    try:
        assert vetting.vet(kind, text).cpu_s < 1.1
    except InvalidRequest as refused:
        assert "grammar" in refused.message
    assert vetting.vet("regex", "a{1,3}").cpu_s < 1.1


def test_a_schema_of_an_agent_is_compiled() -> None:
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
    vetting = Vetting(cpu_s=1.0, timeout_s=PATIENCE_S)
    vetted = vetting.vet("json_schema", text)
    vetting.close()
    assert json.loads(vetted.definition)
    assert 0 < vetted.cpu_s < 1


def in_child(kind: str, text: str, **limits: float) -> dict[str, Any]:
    job = {"kind": kind, "text": text, "cpu_s": 10.0, "timeout_s": 60.0, **limits}
    return helper.in_a_child(job, LLTokenizer("byte"))


def test_one_that_uses_up_its_seconds_is_given_up() -> None:
    reply = in_child("regex", "((a{1000}){1000}){1000}", cpu_s=0.2)
    assert reply["error"] == "the grammar took longer than 0.2 s to compile and was given up"
    assert 0.1 < reply["cpu_s"] < 0.5


def test_one_that_takes_too_long_in_all_is_given_up() -> None:
    reply = in_child("regex", "((a{1000}){1000}){1000}", timeout_s=0.1)
    assert "longer than 0.1 s" in reply["error"]


def test_one_that_kills_its_child_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helper, "try_out", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    assert "too large or too deep" in in_child("regex", "a")["error"]
    monkeypatch.setattr(helper, "try_out", lambda *_: 1 / 0)
    assert "too large or too deep" in in_child("regex", "a")["error"]


def test_one_that_kills_its_child_amid_its_reply_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cut(job: Any, vocabulary: Any, sink: int) -> NoReturn:
        os.write(sink, b'{"error": "it is wrong"}\n'[: job["n_said"]])
        os._exit(1)

    monkeypatch.setattr(helper, "_be_the_child", cut)
    assert "too large or too deep" in in_child("regex", "a", n_said=12)["error"]
    assert in_child("regex", "a", n_said=100)["error"] == "it is wrong"


def test_the_reason_counts_when_the_search_for_the_place_takes_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def until_said(source: int, child: int, timeout_s: float, said: bytearray) -> None:
        while b"\n" not in said:
            said += os.read(source, 1 << 16)
        raise TimeoutError

    monkeypatch.setattr(helper, "_listen", until_said)
    monkeypatch.setattr(helper, "locate", lambda *_: threading.Event().wait())
    reply = in_child("json_schema", '{"type": "strin"}')
    assert reply["error"].startswith("the grammar cannot be compiled: ")


def test_a_place_with_a_long_name_is_cut(vetting: Vetting) -> None:
    schema = {"properties": {"n" * 5000: {"type": "strin"}}}
    with pytest.raises(InvalidRequest) as refused:
        vetting.vet("json_schema", json.dumps(schema))
    assert len(refused.value.message) < 1000


REFUSED_SCHEMAS: dict[str, Any] = {
    "#/properties/a/items": {"properties": {"b": {}, "a": {"items": {"contains": {}}}}},
    "#/$defs/x/properties/a~1b": {
        "$defs": {"x": {"properties": {"a/b": {"type": "string", "format": "iri"}}}},
        "properties": {"y": {"$ref": "#/$defs/x"}},
    },
    "#/anyOf/1": {"anyOf": [{"type": "string"}, {"type": "string", "pattern": "(a"}]},
    "#/properties/q/prefixItems/0": {"properties": {"q": {"prefixItems": [{"minLength": 2.5}]}}},
    "#/properties/q": {"properties": {"q": {"$ref": "#/nowhere/0"}, "r": True}},
    "#/properties/r": {"properties": {"q": {"$ref": "#"}, "r": {"type": "strin"}}},
    "#": {"type": "object", "properties": 5},
}


@pytest.mark.parametrize("place", REFUSED_SCHEMAS)
def test_a_schema_that_is_refused_is_told_where(vetting: Vetting, place: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        vetting.vet("json_schema", json.dumps(REFUSED_SCHEMAS[place]))
    assert refused.value.message.startswith(f"the grammar cannot be compiled: at {place}: ")


def test_looking_for_the_place_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []

    def always(schema: Any) -> str:
        tried.append(schema)
        return "it is wrong"

    circle = {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}}
    assert place_of(circle, always, lambda: False) == "#/$defs/a/anyOf/0"
    assert len(tried) == 3
    wide: Schema = {"properties": {str(i): {} for i in range(1000)}}
    assert place_of(wide, lambda schema: str(schema == wide), lambda: False) == "#"
    assert place_of(wide, always, lambda: True) == "#"


def test_drafts_with_other_keywords_are_refused() -> None:
    old = {"$schema": "http://json-schema.org/draft-03/schema#", "disallow": "string"}
    reply = try_out("json_schema", json.dumps(old), LLTokenizer("byte"))
    assert "drafts before 4" in reply["error"]


def test_without_room_for_a_child_the_helper_lives_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "fork", refuse)
    assert "no process free" in in_child("regex", "a")["error"]


def test_the_child_ends_with_its_helper(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    source = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
    script = f"""import os, time; kept = open({str(alive)!r}, "w")
if os.fork(): print(flush=True)
time.sleep(60)"""
    vetting = Vetting(command=(sys.executable, "-c", script))
    vetting._warm()
    vetting.close()
    assert select.select([source], [], [], PATIENCE_S)[0]  # nobody has the other end any more
    os.close(source)


def test_only_one_that_takes_long_has_what_others_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    stood_back: list[int] = []
    monkeypatch.setattr(helper, "stand_back", stood_back.append)
    monkeypatch.setattr(helper, "QUICK_S", 60.0)
    assert in_child("regex", "a")["error"] is None
    assert stood_back == []
    monkeypatch.setattr(helper, "QUICK_S", 0.01)
    in_child("regex", "((a{1000}){1000}){1000}", cpu_s=0.1)
    assert len(stood_back) == 1


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="another system's scheduler")
def test_standing_back_is_left_to_the_scheduler() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        before = os.sched_getscheduler(child.pid)
        stand_back(child.pid)
        assert os.sched_getscheduler(child.pid) in (os.SCHED_IDLE, before)
        child.kill()
    stand_back(child.pid)


def helper_that(act: str) -> Vetting:
    script = f"import sys, time; print(flush=True)\nfor line in sys.stdin: {act}"
    return Vetting(timeout_s=0.1, command=(sys.executable, "-c", script))


@pytest.mark.parametrize("act", ["time.sleep(60)", "sys.exit(1)"])
def test_a_helper_that_does_not_answer_is_our_fault_and_is_replaced(
    act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vetting_module, "_SLACK_S", 0.2)
    vetting = helper_that(act)
    for _ in range(2):
        with pytest.raises(InternalError, match="does not answer"):
            vetting.vet("regex", "a")
    vetting.close()
    vetting.close()


def test_without_a_helper_it_is_our_fault() -> None:
    with pytest.raises(InternalError, match="cannot be started"):
        Vetting(command=(sys.executable, "-c", "")).vet("regex", "a")


def test_the_helper_answers_with_the_definition_or_the_reason() -> None:
    vocabulary = LLTokenizer("byte")
    assert try_out("regex", "a+", vocabulary)["error"] is None
    assert "unclosed group" in try_out("regex", "(a", vocabulary)["error"]
    assert "cannot be compiled" in try_out("gbnf", "root ::= root", vocabulary)["error"]
