"""Where in a schema the trouble is: the innermost part that is refused for the same reason.

llguidance names what it does not like and not where it stands, so parts of the schema are compiled
by themselves, from the outside in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Schema = dict[str, Any]
#: Why a schema is refused; "" when it is not.
ReasonOf = Callable[[Schema], str]

_MAPS = ("properties", "patternProperties", "dependentSchemas")
_LISTS = ("prefixItems", "items", "anyOf", "oneOf", "allOf")
_ONES = ("items", "additionalProperties", "additionalItems", "unevaluatedItems", "not", "contains")
#: What a part of a schema may refer to, beside itself.
_SHARED = ("$schema", "$id", "id", "$defs", "definitions")
_MOST_TRIED = 200


def place_of(schema: Schema, reason_of: ReasonOf, is_over: Callable[[], bool]) -> str:
    """A JSON pointer like #/properties/age; "#" where no part of the schema is at fault alone.

    is_over: when to be content with what is found so far.
    """
    reason = reason_of(schema)
    shared = {name: schema[name] for name in _SHARED if name in schema}
    place, here, seen = "#", schema, {"#"}
    parts = _parts(schema, place, here)
    for _ in range(_MOST_TRIED):
        at, part = next(parts, ("", {}))
        if not at or is_over():
            break
        if at not in seen and reason_of({**shared, **part}) == reason:
            place, here = at, part
            parts = _parts(schema, place, here)
        seen.add(at)
    return place


def _parts(schema: Schema, place: str, here: Schema) -> Iterator[tuple[str, Schema]]:
    """The schemas that stand directly in this one, each with its place."""
    for name in _MAPS:
        inner = here.get(name)
        if isinstance(inner, dict):
            yield from _dicts(
                (f"{place}/{name}/{_escaped(key)}", one) for key, one in inner.items()
            )
    for name in _LISTS:
        inner = here.get(name)
        if isinstance(inner, list):
            yield from _dicts((f"{place}/{name}/{i}", one) for i, one in enumerate(inner))
    yield from _dicts((f"{place}/{name}", here.get(name)) for name in _ONES)
    target = here.get("$ref")
    if isinstance(target, str) and target.startswith("#/"):
        yield from _dicts([(target, _resolved(schema, target))])


def _dicts(found: Any) -> Iterator[tuple[str, Schema]]:
    return ((place, one) for place, one in found if isinstance(one, dict))


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _resolved(schema: Schema, pointer: str) -> object:
    here: Any = schema
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(here, dict):
            here = here.get(name)
        elif isinstance(here, list) and name.isdecimal() and int(name) < len(here):
            here = here[int(name)]
        else:
            return None
    return here
