"""Refused grammars are told of by the place in what the caller wrote."""

from __future__ import annotations

import pytest

from naiad.engine.grammar.helper import try_out
from naiad.engine.grammar.lines import in_callers_text

llguidance = pytest.importorskip("llguidance")


@pytest.mark.parametrize(
    ("kind", "text", "want"),
    [
        ("regex", "a(b", "at character 2: unclosed group"),
        ("regex", "[", "at character 1: unclosed character class"),
        ("regex", "/a[", "at character 3: unclosed character class"),
        ("regex", "ab\n(c", "at character 4: unclosed group"),
        ("regex", "é\U0001f600/(", "at character 4: unclosed group"),
        ("regex", r"a\/b)", "at character 5: unopened group"),
        ("gbnf", "root ::= foo", "line 1: the rule 'foo' is not defined"),
        ("gbnf", 'root ::= "bar" x # bar\n\nx ::= [bar] y\ny ::= bar-s bar\nbar-s ::= "s"',
         "line 4: the rule 'bar' is not defined"),
    ],
)  # fmt: skip
def test_the_place_is_the_callers(kind: str, text: str, want: str) -> None:
    reply = try_out(kind, text, llguidance.LLTokenizer("byte"))
    assert reply["error"] == f"the grammar cannot be compiled: {want}"


def test_a_reason_without_a_caret_loses_what_the_caller_never_wrote() -> None:
    told = "at 1(8): this is not supported\n   1 | start: /a/\n              ^"
    assert in_callers_text("regex", "a", told) == "this is not supported"


@pytest.mark.parametrize("kind", ["lark", "json_schema", "gbnf"])
def test_other_reasons_stay_as_they_are(kind: str) -> None:
    assert in_callers_text(kind, "x", "at 2(3): unknown name") == "at 2(3): unknown name"


def test_the_helper_tells_it_too() -> None:
    reply = try_out("regex", r"(?=a)b", llguidance.LLTokenizer("byte"))
    assert "start:" not in reply["error"]
    assert "1(" not in reply["error"]
