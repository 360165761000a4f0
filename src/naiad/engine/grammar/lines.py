"""Where in a regular expression or a GBNF grammar the trouble is, counted in what the caller wrote.

llguidance reads both as Lark, so a place it tells is one in a text that the caller has never seen,
and of an unknown rule in GBNF it tells the name only.
"""

from __future__ import annotations

import re

_CARET = re.compile(r"regex parse error:\n {4}(.*)\n {4}( *)\^+\nerror: ([^\n]*)")
#: What stands before and behind the reason: a place in the Lark grammar, and its line.
_AROUND = re.compile(r"^at \d+\(\d+\): |\n *\d+ \| start: /.*\Z", re.DOTALL)
_UNKNOWN = re.compile(r".*: Rule '([^']+)' not found")
#: Strings, sets of characters and comments, in which a name is no rule.
_NO_NAME = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|#.*')


def in_callers_text(kind: str, text: str, reason: str) -> str:
    """The reason with its place in the text; as it is where there is nothing to tell better.

    kind: as of naiad.engine.grammar.definition.define. Places count from 1.
    """
    if kind == "regex":
        return _in_regex(text, reason)
    if kind == "gbnf":
        return _in_gbnf(text, reason)
    return reason


def _in_regex(text: str, reason: str) -> str:
    found = _CARET.search(reason)
    if found is None:
        return _AROUND.sub("", reason)
    shown, before, why = found.groups()
    return f"at character {_place(text, shown, len(before)) + 1}: {why}"


def _place(text: str, shown: str, n_shown: int) -> int:
    """How many characters of the text are shown as these first ones: some are shown as two."""
    at = n = 0
    while at < n_shown and n < len(text):
        at += 1 if text[n] == shown[at] else 2
        n += 1
    return n


def _in_gbnf(text: str, reason: str) -> str:
    found = _UNKNOWN.match(reason)
    if found is None:
        return reason
    name = found.group(1)
    uses = re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])")
    lines = enumerate(text.split("\n"), start=1)
    number = next((n for n, line in lines if uses.search(_NO_NAME.sub("", line))), 1)
    return f"line {number}: the rule '{name}' is not defined"
