"""The reference: docs/api.md is what the dialects say now, and says it truly."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from fakes import FAKE, FakeEngine
from http_client import LOCAL, ask, fake_app
from naiad.dialects.base import Access, Backend, Call, Operation, Parsed
from naiad.dialects.fields import Fields, boolean, integer, text
from naiad.dialects.ollama.requests import parse_chat
from naiad.dialects.reference import Chapter, Route, chapters
from naiad.dialects.reference.html import as_html
from naiad.dialects.reference.markdown import as_markdown
from naiad.dialects.reference.openapi import as_openapi, schema_of
from naiad.dialects.reference.probing import FieldFacts, facts_of
from naiad.dialects.registry import DIALECTS
from naiad.errors import InvalidRequest, Unsupported
from naiad.http.static import POLICY
from naiad.types import GenerateRequest, ModelInfo, TextPrompt

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def told() -> tuple[Chapter, ...]:
    return chapters(DIALECTS)


def route(told: tuple[Chapter, ...], path: str, method: str = "POST") -> Route:
    return next(
        one
        for chapter in told
        for one in chapter.routes
        if (one.path, one.method) == (path, method)
    )


def fields(one: Route) -> dict[str, FieldFacts]:
    return {field.name: field for field in one.fields}


def test_the_page_is_not_stale(told: tuple[Chapter, ...]) -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert page == as_markdown(told), "write it anew: python -m naiad.dialects.reference"


def test_every_route_is_told(told: tuple[Chapter, ...]) -> None:
    routes = [one for chapter in told for one in chapter.routes]
    operations = [operation for dialect in DIALECTS for operation in dialect.operations]
    declared = {(one.method, one.path.replace(":path}", "}")) for one in operations}
    assert {(one.method, one.path) for one in routes} == declared
    assert [one.path for one in routes if not one.summary and not one.same_as] == []


def test_ranges_and_defaults_are_those_that_are_enforced(told: tuple[Chapter, ...]) -> None:
    chat = fields(route(told, "/api/chat"))
    assert (chat["options.top_k"].accepts, chat["options.top_k"].default) == (
        "an integer from -1 to 2147483647",
        40,
    )
    assert chat["options.top_p"].default == 0.9
    assert fields(route(told, "/v1/chat/completions"))["top_p"].default == 0.95
    assert (chat["stream"].accepts, chat["stream"].default) == ("true or false", True)
    assert chat["messages[].role"].is_needed
    assert not chat["options.num_gpu"].has_effect
    assert "templates in Go" in chat["template"].refusal
    assert chat["keep_alive"].accepts.startswith("a number of seconds or a duration")


def read_body(body: Mapping[str, Any], _model: ModelInfo) -> Parsed:
    """POST /x. Does a thing."""
    found = Fields(body)
    found.find("idle", "other")
    if found.find("images")[1]:
        raise Unsupported("'images' is not supported: no eyes.", param="images")
    prompt = found.need(text, "prompt", "text")
    limit = found.get(integer(1, 9), "limit", "max")
    inner = Fields(found.get(lambda _name, value: dict(value), "inner") or {}, "inner.")
    inner.get(boolean, "deep")
    return Parsed(GenerateRequest(TextPrompt(prompt), max_tokens=limit), None)  # type: ignore[arg-type]


async def ask_first(_backend: Backend, call: Call) -> Any:
    """Asks its body, then an engine."""
    Fields(call.body).need(integer(0), "n")
    return await _backend.tokenize("x")


def test_what_a_route_reads_is_found_by_asking_it() -> None:
    example = {"prompt": "x", "limit": 2}
    found = facts_of(Operation("POST", "/x", Access.USER, parse=read_body, example=example))
    assert [one.name for one in found] == ["idle", "other", "images", "prompt", "limit", "inner"]
    idle, _, images, prompt, limit, inner = found
    assert (idle.has_effect, images.refusal) == (False, "'images' is not supported: no eyes.")
    assert (prompt.is_needed, prompt.accepts, prompt.names) == (
        True,
        "a string",
        ("prompt", "text"),
    )
    assert (limit.accepts, inner.accepts) == ("an integer from 1 to 9", "")


def test_queries_are_asked_as_far_as_they_go_without_an_engine() -> None:
    asked = facts_of(Operation("POST", "/x", Access.USER, handle=ask_first))
    assert [(one.name, one.accepts, one.is_needed) for one in asked] == [
        ("n", "an integer of at least 0", True)
    ]
    assert facts_of(Operation("GET", "/x", Access.USER, handle=ask_first)) == ()


def pieces_of(schemas: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each field's schema once, however many routes have it, and the bodies without their fields.

    A schema is sound when its pieces are; to check the same piece again and again is slow.
    """
    found: dict[str, dict[str, Any]] = {}
    todo = list(schemas)
    while todo:
        schema = todo.pop()
        todo += schema.get("properties", {}).values()
        alone = {key: value for key, value in schema.items() if key != "properties"}
        found[json.dumps(alone, sort_keys=True)] = alone
    return list(found.values())


def test_openapi_is_sound_and_its_schemas_agree_with_the_parsers(
    told: tuple[Chapter, ...],
) -> None:
    document = as_openapi(told)
    assert document["openapi"] == "3.1.0"
    operations = [op for path in document["paths"].values() for op in path.values()]
    ids = [op["operationId"] for op in operations]
    assert len(ids) == len(set(ids))
    assert all(op["responses"]["200"] for op in operations)
    assert document["paths"]["/v1/models/{model_id}"]["get"]["parameters"][0]["name"] == "model_id"
    assert document["paths"]["/api/version"]["get"]["security"] == []
    bodies = [op["requestBody"]["content"] for op in operations if "requestBody" in op]
    assert bodies
    for schema in pieces_of(content["application/json"]["schema"] for content in bodies):
        jsonschema.Draft202012Validator.check_schema(schema)
    schema = schema_of(route(told, "/api/chat").fields)
    model = ModelInfo(name="m")
    for options, is_good in (({"top_k": 5}, True), ({"top_k": -2}, False), ({"top_p": 1.5}, False)):
        body = {"messages": [{"role": "user", "content": "Hi"}], "options": options}
        assert jsonschema.Draft202012Validator(schema).is_valid(body) is is_good
        if is_good:
            parse_chat(body, model)
        else:
            with pytest.raises(InvalidRequest):
                parse_chat(body, model)


def test_the_page_escapes_what_it_shows() -> None:
    odd = Route(
        "POST", "/<x>", "user", "Says `<b>`", True, (FieldFacts("", ("<f>",), accepts="&"),)
    )
    page = as_html([Chapter("odd", "<Odd>", (odd,), {"code": (400, "<kind>")})])
    assert "<x>" not in page
    assert all(f"&lt;{word}&gt;" in page for word in ("x", "b", "f", "Odd", "kind"))


async def test_a_server_shows_its_own_dialects_and_nothing_from_elsewhere() -> None:
    app = fake_app(FakeEngine(), api_key="secret")
    page = await ask(app, "GET", "/docs")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.headers["content-security-policy"] == POLICY
    shown = page.body.decode()
    assert all(operation.path.replace(":path}", "}") in shown for operation in FAKE.operations)
    assert not any(word in shown for word in ("<script", "<style", "style=", "http://", "https://"))
    document = (await ask(app, "GET", "/openapi.json")).value
    assert "/fake/generate" in document["paths"]
    again = [*LOCAL, ("if-none-match", page.headers["etag"])]
    assert (await ask(app, "GET", "/docs", headers=again)).status == 304
