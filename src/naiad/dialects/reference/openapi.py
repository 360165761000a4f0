"""The reference as an OpenAPI 3.1 document."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from naiad import __version__
from naiad.dialects.reference import Chapter, Route, meaning_of
from naiad.dialects.reference.probing import FieldFacts

_NUMBER = re.compile(r"an? (number|integer)(?: from (\S+) to (\S+)| of at least (\S+))?$")
_NAMED: dict[str, dict[str, Any]] = {
    "true or false": {"type": "boolean"},
    "a string": {"type": "string"},
    "a list": {"type": "array"},
    "an object": {"type": "object"},
    "a string or a list of strings": {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
    },
}
_ARRAY_STEP = re.compile(r"\[0\]")


def as_openapi(chapters: Iterable[Chapter]) -> dict[str, Any]:
    """The document, as a JSON value. Fields that are refused are left out."""
    told = tuple(chapters)
    paths: dict[str, dict[str, Any]] = {}
    for chapter in told:
        first = {(route.method, route.path): route for route in chapter.routes}
        for route in chapter.routes:
            whole = first[route.method, route.same_as] if route.same_as else route
            paths.setdefault(route.path, {})[route.method.lower()] = _operation(
                chapter, route, whole
            )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "naiad",
            "version": __version__,
            "description": "A local language model server.",
        },
        "tags": [{"name": chapter.name, "description": chapter.title} for chapter in told],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            }
        },
    }


def _operation(chapter: Chapter, route: Route, whole: Route) -> dict[str, Any]:
    words = re.sub(r"\W+", "_", route.path).strip("_")
    told: dict[str, Any] = {
        "tags": [chapter.name],
        "operationId": f"{chapter.name}_{route.method.lower()}_{words}",
        "summary": whole.summary,
        "security": [] if route.access == "public" else [{"bearer": []}, {"key": []}],
        "responses": _responses(chapter, is_stream=whole.is_generation),
    }
    names = re.findall(r"{(\w+)}", route.path)
    if names:
        told["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    if whole.fields:
        schema = schema_of(whole.fields)
        told["requestBody"] = {
            "required": bool(schema.get("required")),
            "content": {"application/json": {"schema": schema}},
        }
    return told


def _responses(chapter: Chapter, *, is_stream: bool) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {}}
    if is_stream:
        content["text/event-stream"] = {}
    by_status: dict[int, list[str]] = {}
    for code, (status, _) in chapter.errors.items():
        by_status.setdefault(status, []).append(code)
    errors = {str(status): {"description": ", ".join(codes)} for status, codes in by_status.items()}
    return {"200": {"description": "The answer.", "content": content}, **errors}


def schema_of(fields: Iterable[FieldFacts]) -> dict[str, Any]:
    """The schema of a body with these fields; each name of a field is a property."""
    root: dict[str, Any] = {"type": "object", "properties": {}}
    for one in fields:
        if one.refusal:
            continue
        home = _home(root, one.path)
        for place, name in enumerate(one.names):
            known = home["properties"].get(name, {})
            home["properties"][name] = {**_property(one, is_alias=place > 0), **known}
        if one.is_needed and len(one.names) == 1:
            home["required"] = [*home.get("required", []), one.names[0]]
    return root


def _home(root: dict[str, Any], path: str) -> dict[str, Any]:
    """The schema of the object in which a field stands, made if there is none yet."""
    here = root
    for step in filter(None, path.split(".")):
        name, *arrays = _ARRAY_STEP.split(step)
        here = here["properties"].setdefault(name, {})
        for _ in arrays:
            here["type"] = "array"
            here = here.setdefault("items", {})
        here["type"] = "object"
        here.setdefault("properties", {})
    return here


def _property(one: FieldFacts, *, is_alias: bool) -> dict[str, Any]:
    told = [meaning_of(one)]
    if is_alias:
        told = [f"Another name of {one.names[0]}."]
    schema = _schema(one.accepts)
    if one.accepts and not schema:
        told.append(f"Must be {one.accepts}.")
    if not one.has_effect:
        told.append("Accepted without effect.")
    if one.default is not None:
        schema["default"] = one.default
    description = " ".join(filter(None, told))
    return {**schema, "description": description} if description else schema


def _schema(accepts: str) -> dict[str, Any]:
    found = _NUMBER.match(accepts)
    if found is None:
        return dict(_NAMED.get(accepts, {}))
    schema: dict[str, Any] = {"type": found[1]}
    for key, bound in (("minimum", found[2] or found[4]), ("maximum", found[3])):
        if bound is not None:
            schema[key] = float(bound) if "." in bound else int(bound)
    return schema
