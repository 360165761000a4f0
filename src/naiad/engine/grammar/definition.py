"""From a request's grammar to llguidance's own form, and the limits that it is held to."""

from __future__ import annotations

import json
import re

from llguidance import LLMatcher, LLParserLimits, grammar_from

from naiad.engine.grammar.lines import in_callers_text
from naiad.errors import InvalidRequest

#: Bytes of a grammar's text. Tool lists of large agents reach 60 KiB; time and work, which bound
#: the harm a text can do, have limits of their own.
MAX_BYTES = 256 * 1024
#: Objects and lists inside each other in a schema; the deepest seen in use have about 20.
MAX_DEPTH = 64
#: Characters of llguidance's complaint that are passed on.
_SHOWN = 400
#: llguidance would read them as draft 4, and overlook what they forbid.
_OLD_DRAFT = re.compile("json-schema\\.org/draft-0[0-3]/")

#: JSON is written without white space: fewer tokens, most of them forced, and no model can go on
#: with blanks for ever. A schema may say otherwise in its "x-guidance".
_JSON = {"item_separator": ",", "key_separator": ":", "whitespace_flexible": False}


def limits() -> LLParserLimits:
    """What compiling a grammar, and each step of following it, may use.

    Fuel counts the nodes of regular expressions that are built: 50,000 a millisecond at first,
    14,000 later. verbose_errors would put the text so far into messages.
    """
    return LLParserLimits(
        initial_lexer_fuel=2_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=50_000,
        max_grammar_size=500_000,
        verbose_errors=False,
    )


def define(kind: str, text: str) -> str:
    """The grammar as llguidance reads it. Raises InvalidRequest.

    kind: json_schema, regex, lark or gbnf.
    """
    size = len(text.encode())
    if size > MAX_BYTES:
        raise InvalidRequest(f"the grammar has {size} bytes; at most {MAX_BYTES} are allowed")
    try:
        if kind == "json_schema":
            _check_schema(text)
            return LLMatcher.grammar_from_json_schema(text, defaults=_JSON)  # type: ignore[arg-type]
        return grammar_from(kind, text)  # type: ignore[arg-type]
    except (ValueError, RecursionError) as error:
        raise refusal(in_callers_text(kind, text, str(error))) from None


def _check_schema(text: str) -> None:
    _check_depth(text)
    schema = json.loads(text)
    if not isinstance(schema, dict):
        raise ValueError("a schema must be a JSON object")
    draft = schema.get("$schema")
    if isinstance(draft, str) and _OLD_DRAFT.search(draft):
        raise ValueError(f'"$schema" names {draft[:80]}: drafts before 4 have other keywords')


def _check_depth(text: str) -> None:
    """Counts brackets outside of strings, so that no parser has to descend."""
    depth, is_text, chars = 0, False, iter(text)
    for char in chars:
        if is_text:
            if char == "\\":
                next(chars, None)
            is_text = char != '"'
        elif char in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
        else:
            depth -= char in "]}"
            is_text = char == '"'


def refusal(reason: str) -> InvalidRequest:
    """The error for a grammar that cannot be compiled: what llguidance says, with the place."""
    reason = reason.replace("<non-verbose/>", "").strip()
    reason = "no text can match it" if reason.startswith("NoExtension") else reason
    short = reason if len(reason) <= _SHOWN else reason[:_SHOWN] + "..."
    return InvalidRequest(f"the grammar cannot be compiled: {short}")
