"""The reference of the API, made from the dialects themselves: what they declare, and what they do.

A route's fields are those that it asks its body for. What a field accepts is what its own refusal
of a senseless value says, so that ranges in the reference cannot differ from those that are
enforced. `python -m naiad.dialects.reference` writes docs/api.md anew.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from naiad.dialects.base import Dialect, Operation
from naiad.dialects.reference.meanings import MEANINGS, ROUTES, TITLES
from naiad.dialects.reference.probing import FieldFacts, facts_of
from naiad.errors import NaiadError


@dataclass(frozen=True, slots=True)
class Route:
    """One path and method. path: with {names}, without converters. fields: of its body."""

    method: str
    path: str
    access: str
    summary: str
    is_generation: bool
    fields: tuple[FieldFacts, ...]
    same_as: str | None = None  # the path of an earlier route that does exactly this


@dataclass(frozen=True, slots=True)
class Chapter:
    """One dialect. errors: code -> (status, kind), as this dialect answers each error."""

    name: str
    title: str
    routes: tuple[Route, ...]
    errors: dict[str, tuple[int, str]]


def chapters(dialects: Iterable[Dialect]) -> tuple[Chapter, ...]:
    """The reference of these dialects; takes some tenths of a second."""
    return tuple(_chapter(dialect) for dialect in dialects)


def meaning_of(field: FieldFacts) -> str:
    """What a field is for; "" for those that explain themselves or are nowhere explained."""
    return next((MEANINGS[name] for name in field.names if name in MEANINGS), "")


def _chapter(dialect: Dialect) -> Chapter:
    first: dict[object, str] = {}
    routes = []
    for operation in dialect.operations:
        does = (operation.method, operation.parse or operation.plan or operation.handle)
        same_as = first.setdefault(does, _plain(operation.path))
        is_first = same_as == _plain(operation.path)
        routes.append(_route(operation, None if is_first else same_as))
    title = TITLES.get(dialect.name, dialect.name)
    return Chapter(dialect.name, title, tuple(routes), _errors_of(dialect))


def _route(operation: Operation, same_as: str | None) -> Route:
    return Route(
        method=operation.method,
        path=_plain(operation.path),
        access=str(operation.access),
        summary=ROUTES.get(_plain(operation.path)) or _summary(operation),
        is_generation=operation.handle is None,
        fields=() if same_as else facts_of(operation),
        same_as=same_as,
    )


def _plain(path: str) -> str:
    return re.sub(r"{(\w+):\w+}", r"{\1}", path)


def _summary(operation: Operation) -> str:
    """The docstring's first paragraph, without the route that it may begin with."""
    told = inspect.getdoc(operation.parse or operation.plan or operation.handle) or ""
    first = " ".join(told.partition("\n\n")[0].split())
    found = re.match(r"(GET|POST|PUT|DELETE) (/\S*?)[.:]( |$)", first)
    rest = (first[found.end() :] if found else first).strip().removesuffix(".")
    return rest[:1].upper() + rest[1:]


def _errors_of(dialect: Dialect) -> dict[str, tuple[int, str]]:
    made = [kind("...") for kind in all_errors()]
    return {
        error.code: (dialect.error_status(error), _kind_in(dialect.error_body(error)))
        for error in made
    }


def all_errors() -> Sequence[type[NaiadError]]:
    """Every deliberate error, by status and code."""
    found = {kind.code: kind for kind in _kinds(NaiadError)}
    return sorted(found.values(), key=lambda kind: (kind.status, kind.code))


def _kinds(kind: type[NaiadError]) -> list[type[NaiadError]]:
    own = [sub for sub in kind.__subclasses__() if sub.__module__ == NaiadError.__module__]
    return [kind, *(found for sub in own for found in _kinds(sub))]


def _kind_in(body: object) -> str:
    """The word under `type` in an error body; "" where the dialect has none."""
    if not isinstance(body, dict):
        return ""
    inner = next((value for value in body.values() if isinstance(value, dict)), body)
    return str(inner.get("type", ""))
