"""What an answer must follow, as several servers spell it.

One grammar per request: OpenAI's `response_format`, llama-server's `grammar` and `json_schema`,
KoboldCpp's `grammar` (GBNF, or a schema as JSON), text-generation-webui's `grammar_string`, and
vLLM's `guided_*` and `structured_outputs`. Compiling, and most refusing, is the engine's business.
"""

from __future__ import annotations

from typing import Any

import msgspec

from naiad.dialects.fields import Fields, array, bad, boolean, mapping, short_text, text
from naiad.errors import InvalidRequest, Unsupported
from naiad.types import Grammar

MAX_GRAMMAR_CHARS = 256 * 1024
MAX_CHOICES = 4096

_ANY_OBJECT = '{"type":"object"}'
_SOURCE = short_text(MAX_GRAMMAR_CHARS)


def read_grammar(fields: Fields) -> Grammar | None:
    """The request's grammar; None where it has none. Raises InvalidRequest, Unsupported."""
    found = [
        fields.get(_response_format, "response_format"),
        fields.get(_schema, "json_schema"),
        fields.get(_rules, "grammar"),
        fields.get(_rules, "grammar_string"),
        fields.get(_structured, "structured_outputs"),
        *_guided(fields, "guided_"),
    ]
    fields.find("grammar_lazy", "grammar_retain_state", "guided_decoding_backend")
    return only_one(*found)


def only_one(*found: Grammar | None) -> Grammar | None:
    """The one that is there, if any is. Raises InvalidRequest where there are several."""
    given = [grammar for grammar in found if grammar is not None]
    if len(given) > 1:
        raise InvalidRequest(
            f"'{given[0].field}' and '{given[1].field}' each set a form for the answer; "
            "send one of them.",
            param=given[1].field,
        )
    return given[0] if given else None


def _guided(fields: Fields, prefix: str) -> list[Grammar | None]:
    return [
        fields.get(_schema, prefix + "json"),
        fields.get(_expression, prefix + "regex"),
        fields.get(_choice, prefix + "choice"),
        fields.get(_rules, prefix + "grammar"),
    ]


def _structured(name: str, value: Any) -> Grammar | None:
    """vLLM's object with one of json, regex, choice, grammar, json_object."""
    fields = Fields(mapping(name, value), f"{name}.")
    found = [one for one in _guided(fields, "") if one is not None]
    if fields.get(boolean, "json_object"):
        found.append(Grammar("json_schema", _ANY_OBJECT, field=f"{name}.json_object"))
    if fields.find("structural_tag")[1] is not None:
        raise Unsupported(f"'{name}.structural_tag' is not supported.", param=name)
    if len(found) > 1:
        raise InvalidRequest(f"'{name}' may hold one form for the answer only.", param=name)
    return found[0] if found else None


def _response_format(name: str, value: Any) -> Grammar | None:
    """{"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "json_schema": {...}}.

    `strict` makes no difference: a schema holds, or is refused. `schema` beside either type is
    llama-server's and Together's way to give it.
    """
    fields = Fields(mapping(name, value), f"{name}.")
    kind = fields.get(text, "type") or "text"
    if kind == "text":
        return None
    if kind not in ("json_object", "json_schema"):
        raise bad(f"{name}.type", "text, json_object or json_schema", kind)
    beside = fields.get(_schema, "schema")
    if beside is not None or kind == "json_object":
        return beside or Grammar("json_schema", _ANY_OBJECT, field=name)
    inner = Fields(fields.need(mapping, "json_schema"), f"{name}.json_schema.")
    found = inner.get(_schema, "schema")
    if found is None:  # OpenAI's API takes a format without a schema as any object
        return Grammar("json_schema", _ANY_OBJECT, field=name)
    return found


def json_form(name: str, value: Any) -> Grammar | None:
    """A JSON schema, or "json" for any object; "" is none."""
    if value == "json":
        return Grammar("json_schema", _ANY_OBJECT, field=name)
    is_word = isinstance(value, str) and value.strip() and not value.lstrip().startswith("{")
    if is_word or not isinstance(value, str | dict):
        raise bad(name, '"json" or a JSON schema', value)
    return _schema(name, value)


def _schema(name: str, value: Any) -> Grammar | None:
    """A JSON schema: an object, or one as text."""
    if isinstance(value, str):
        source = _SOURCE(name, value)
        return Grammar("json_schema", source, field=name) if source.strip() else None
    try:
        source = msgspec.json.encode(mapping(name, value)).decode()
    except (ValueError, RecursionError):
        raise InvalidRequest(
            f"'{name}' holds text that is no valid Unicode, or is nested too deeply.", param=name
        ) from None
    return Grammar("json_schema", _SOURCE(name, source), field=name)


def _rules(name: str, value: Any) -> Grammar | None:
    """GBNF, or a JSON schema as text, which begins with a brace; "" is none."""
    source = _SOURCE(name, value)
    if not source.strip():
        return None
    kind = "json_schema" if source.lstrip().startswith("{") else "gbnf"
    return Grammar(kind, source, field=name)


def _expression(name: str, value: Any) -> Grammar | None:
    source = _SOURCE(name, value)
    return Grammar("regex", source, field=name) if source else None


def _choice(name: str, value: Any) -> Grammar | None:
    """One of some texts."""
    choices = [_SOURCE(name, one) for one in array(name, value)]
    if len(choices) > MAX_CHOICES:
        raise InvalidRequest(
            f"'{name}' may hold at most {MAX_CHOICES} choices, not {len(choices)}.", param=name
        )
    if not choices:
        return None
    rules = " | ".join(_quoted(one) for one in dict.fromkeys(choices))
    return Grammar("lark", _SOURCE(name, f"start: {rules}"), field=name)


def _quoted(choice: str) -> str:
    """As a string of a Lark grammar, which is JSON's."""
    return msgspec.json.encode(choice).decode()
