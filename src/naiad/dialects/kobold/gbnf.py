"""JSON schemas as GBNF, llama.cpp's form of grammars, for clients that want to send that.

What GBNF cannot say in a reasonable size is refused, never left out: a grammar that allows more
than its schema would be a lie. (naiad itself takes schemas as they are, and holds all of them.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from naiad.errors import InvalidRequest, Unsupported

MAX_RULES = 2000
MAX_DEPTH = 64

_BASE = {
    "ws": "[ \\t\\n]{0,20}",
    "char": '[^"\\\\\\x00-\\x1F\\x7F] | "\\\\" (["\\\\/bfnrt] | "u" [0-9a-fA-F]{4})',
    "string": '"\\"" char* "\\""',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,15})',
    "number": 'integer ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "value": "object | array | string | number | boolean | null",
    "object": '"{" ws (pair ("," ws pair)*)? "}"',
    "pair": 'string ws ":" ws value ws',
    "array": '"[" ws (value ws ("," ws value ws)*)? "]"',
}
_NEEDS = {
    "string": ("char",),
    "number": ("integer",),
    "value": ("object", "array", "string", "number", "boolean", "null"),
    "object": ("pair", "ws"),
    "pair": ("string", "value", "ws"),
    "array": ("value", "ws"),
}
_ANNOTATIONS = frozenset(
    {"$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default"}
    | {"examples", "deprecated", "readOnly", "writeOnly", "format", "strict"}
)
_COMMON = frozenset({"type", "enum", "const", "$ref", "anyOf", "oneOf"})
_OF_TYPE: Mapping[str, frozenset[str]] = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength"}),
}


def to_gbnf(schema: Any) -> str:
    """The rules of a schema, one a line, beginning with `root`.

    Raises InvalidRequest for what is no schema, Unsupported for what cannot be said.
    """
    return _Writer(schema).text()


class _Writer:
    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._rules: dict[str, str] = {}
        self._refs: dict[str, str] = {}  # reference -> its rule

    def text(self) -> str:
        root = self._rule(self._schema, 0)
        return "\n".join(
            f"{name} ::= {body}" for name, body in {"root": root, **self._rules}.items()
        )

    def _named(self, body: str) -> str:
        """A new rule."""
        name = f"r{len(self._rules)}"
        self._set(name, body)
        return name

    def _set(self, name: str, body: str) -> None:
        if len(self._rules) >= MAX_RULES:
            raise Unsupported(f"The schema takes more than {MAX_RULES} rules.", param="schema")
        self._rules[name] = body

    def _base(self, name: str) -> str:
        if name not in self._rules:
            self._set(name, _BASE[name])
            for other in _NEEDS.get(name, ()):
                self._base(other)
        return name

    def _rule(self, schema: Any, depth: int) -> str:
        """What stands in a rule's place for a value that follows the schema."""
        if depth > MAX_DEPTH:
            raise Unsupported(f"The schema is deeper than {MAX_DEPTH} levels.", param="schema")
        if schema is True:
            return self._base("value")
        if not isinstance(schema, dict):
            raise InvalidRequest("'schema' must be a JSON schema: an object.", param="schema")
        kinds = _kinds(schema)
        _check(schema, kinds)
        if "$ref" in schema:
            return self._reference(schema["$ref"], depth)
        if "const" in schema:
            return _literal(schema["const"])
        for word in ("enum", "anyOf", "oneOf"):
            if word in schema:
                of: Callable[[Any], str] = (
                    _literal if word == "enum" else lambda one: self._rule(one, depth + 1)
                )
                return _either([of(one) for one in _listed(schema, word)])
        return _either([self._kind(kind, schema, depth) for kind in kinds])

    def _reference(self, ref: Any, depth: int) -> str:
        if not isinstance(ref, str) or not ref.startswith("#"):
            raise Unsupported("Only references within the schema ('#/...') work.", param="schema")
        if ref not in self._refs:
            self._refs[ref] = name = self._named("")  # known before it is written: it may recur
            self._rules[name] = self._rule(self._found(ref), depth + 1)
        return self._refs[ref]

    def _found(self, ref: str) -> Any:
        found = self._schema
        for part in ref.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            found = found.get(key) if isinstance(found, dict) else None
        if found is None:
            raise InvalidRequest(
                f"'schema' refers to {ref[:64]!a}, which is missing.", param="schema"
            )
        return found

    def _kind(self, kind: str, schema: Mapping[str, Any], depth: int) -> str:
        if kind == "object" and ("properties" in schema or schema.get("required")):
            return self._object(schema, depth)
        if kind == "object":
            return self._map(schema.get("additionalProperties", True), depth)
        if kind == "array":
            return self._array(schema, depth)
        if kind == "string" and ("minLength" in schema or "maxLength" in schema):
            self._base("char")
            return f'"\\"" char{_times(schema, "minLength", "maxLength")} "\\""'
        return self._base(kind)

    def _object(self, schema: Mapping[str, Any], depth: int) -> str:
        """Properties in their order; what is not required may be missing."""
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise InvalidRequest("'schema' has properties that are no object.", param="schema")
        if any(not isinstance(name, str) for name in required):
            raise InvalidRequest("'schema' has a 'required' that is no name.", param="schema")
        if schema.get("additionalProperties") not in (None, False) or set(required) - set(
            properties
        ):
            raise Unsupported("Properties beyond those named cannot be said.", param="schema")
        ws = self._base("ws")
        # Two chains of rules: the rest of the object with nothing before it, and with something.
        first, further = '"}"', '"}"'
        for name in reversed(properties):
            value = self._rule(properties[name], depth + 1)
            pair = f'{_literal(name)} {ws} ":" {ws} {self._single(value)} {ws} '
            skipped = (first, further)
            here = pair + further
            first, further = here, f'"," {ws} {here}'
            if name not in required:
                first, further = f"{first} | {skipped[0]}", f"{further} | {skipped[1]}"
            first, further = self._named(first), self._named(further)
        return f'"{{" {ws} {first}'

    def _map(self, values: Any, depth: int) -> str:
        if values is True:
            return self._base("object")
        ws = self._base("ws")
        if values is False:
            return f'"{{" {ws} "}}"'
        value = self._single(self._rule(values, depth + 1))
        pair = self._named(f'{self._base("string")} {ws} ":" {ws} {value} {ws}')
        return f'"{{" {ws} ({pair} ("," {ws} {pair})*)? "}}"'

    def _array(self, schema: Mapping[str, Any], depth: int) -> str:
        ws = self._base("ws")
        item = f"{self._single(self._rule(schema.get('items', True), depth + 1))} {ws}"
        least, most = _bounds(schema, "minItems", "maxItems")
        if most == 0:
            return f'"[" {ws} "]"'
        more = f"{{{max(0, least - 1)},{'' if most is None else most - 1}}}"
        items = f'{item} ("," {ws} {item}){more}'
        return f'"[" {ws} {items if least else f"({items})?"} "]"'

    def _single(self, body: str) -> str:
        """A name for what may stand inside a longer rule."""
        return body if body.isalnum() else self._named(body)


def _kinds(schema: Mapping[str, Any]) -> list[str]:
    """The types that a value may have."""
    named = schema.get("type")
    if named is None:
        named = next((kind for kind, words in _OF_TYPE.items() if words & schema.keys()), "value")
    kinds = named if isinstance(named, list) else [named]
    if not kinds or any(not isinstance(kind, str) or kind not in _BASE for kind in kinds):
        raise InvalidRequest("'schema' has a 'type' that JSON does not have.", param="schema")
    return kinds


def _check(schema: Mapping[str, Any], kinds: Sequence[str]) -> None:
    known = _COMMON.union(*(_OF_TYPE.get(kind, frozenset()) for kind in kinds))
    foreign = sorted(set(schema) - known - _ANNOTATIONS)
    if foreign:
        raise Unsupported(
            f"The schema's {foreign[0][:64]!a} cannot be written as GBNF here. Send the schema "
            "itself as 'grammar' or 'json_schema': there all of it holds.",
            param="schema",
        )


def _listed(schema: Mapping[str, Any], word: str) -> list[Any]:
    found = schema[word]
    if not isinstance(found, list) or not found:
        raise InvalidRequest(
            f"'schema' has an '{word}' that is no list of choices.", param="schema"
        )
    return found


def _either(ways: Sequence[str]) -> str:
    return ways[0] if len(ways) == 1 else " | ".join(f"({way})" for way in ways)


def _literal(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _times(schema: Mapping[str, Any], low: str, high: str) -> str:
    least, most = _bounds(schema, low, high)
    return f"{{{least},{'' if most is None else most}}}"


def _bounds(schema: Mapping[str, Any], low: str, high: str) -> tuple[int, int | None]:
    least, most = schema.get(low, 0), schema.get(high)
    numbers = [one for one in (least, most) if one is not None]
    if any(type(one) is not int or not 0 <= one <= 100_000 for one in numbers):
        raise InvalidRequest(f"'schema' has a '{low}' or '{high}' out of range.", param="schema")
    if most is not None and most < least:
        raise InvalidRequest(f"'schema' has a '{high}' below its '{low}'.", param="schema")
    return least, most
