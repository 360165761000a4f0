"""Paths with too many slashes: the route meant answers, behind the same door."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import ASGIApp

from fakes import FakeEngine, make_service
from http_client import LOCAL, ask
from naiad.config import Config
from naiad.dialects.base import Access
from naiad.dialects.registry import DIALECTS, for_path
from naiad.errors import MethodNotAllowed
from naiad.http.app import build_app
from naiad.http.pages import PAGES
from naiad.http.paths import meant_by, plain_path
from naiad.http.reference import reference_pages

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
KEY = "sk-canary-123"

#: As base URLs with a slash too many, or without the one they need, make them.
SLOPPY = ["/{}", "{}/", "//{}", "{}//", "/{}/"]
each_sloppy = pytest.mark.parametrize("form", SLOPPY)


def app_with(**fields: Any) -> ASGIApp:
    config = Config(**fields)
    return build_app(make_service(FakeEngine(), config), config)


@each_sloppy
async def test_the_route_meant_answers(form: str) -> None:
    app = app_with()
    for method, path, body in (
        ("GET", "/v1/models", None),
        ("POST", "/v1/chat/completions", CHAT),
        ("POST", "/v1/messages", CHAT),
        ("POST", "/api/chat", {**CHAT, "stream": False}),
        ("POST", "/api/v1/generate", {"prompt": "hi"}),
        ("POST", "/tokenize", {"content": "hi"}),
    ):
        answer = await ask(app, method, form.format(path), body)
        assert answer.status == 200, (path, answer.body)


async def test_slashes_inside_and_around_a_models_name() -> None:
    app = app_with()
    name = (await ask(app, "GET", "/v1//models")).value["data"][0]["id"]
    assert (await ask(app, "GET", f"/v1//models//{name}/")).value["id"] == name
    assert (await ask(app, "GET", "/v1/models/")).value["object"] == "list"


async def test_nothing_but_slashes_is_the_front_page() -> None:
    assert (await ask(app_with(), "GET", "///")).body == (await ask(app_with(), "GET", "/")).body


@each_sloppy
async def test_the_key_is_asked_for_on_every_route_all_the_same(form: str) -> None:
    app = app_with(api_key=KEY, admin_key="sk-admin-456")
    for op in (op for dialect in DIALECTS for op in dialect.operations):
        if op.access is not Access.PUBLIC:
            answer = await ask(app, op.method, form.format(op.path), {})
            assert answer.status == 401, op.path
        if op.access is Access.ADMIN:
            keyed = [*LOCAL, ("x-api-key", KEY)]
            assert (await ask(app, op.method, form.format(op.path), {}, keyed)).status == 403


@each_sloppy
@pytest.mark.parametrize(
    "headers",
    [
        [("host", "evil.com")],
        [*LOCAL, ("origin", "https://evil.com")],
        [*LOCAL, ("sec-fetch-site", "cross-site")],
        [*LOCAL, ("origin", "http://localhost:5001"), ("content-type", "text/plain")],
    ],
)
async def test_the_guard_sees_them_first(form: str, headers: list[tuple[str, str]]) -> None:
    path = form.format("/v1/messages")
    refused = await ask(app_with(), "POST", path, CHAT, headers)
    assert refused.status == 403
    assert refused.value["error"]["type"] == "permission_error"  # Anthropic's, as of its own path


def _methods() -> dict[str, set[str]]:
    """Each path of the dialects' tables, with the methods that it answers."""
    table: dict[str, set[str]] = {}
    for dialect in DIALECTS:
        for op in dialect.operations:
            table.setdefault(re.sub(r"\{[^}]*\}", "x", op.path), set()).add(op.method)
    for path in (*PAGES, *reference_pages(DIALECTS)):
        table.setdefault(path, set()).add("GET")
    return {path: ways | {"HEAD"} if "GET" in ways else ways for path, ways in table.items()}


async def test_every_path_answers_its_methods_and_refuses_the_others_in_its_dialect() -> None:
    app = app_with(api_key=KEY)  # what asks for it has been found, and does nothing
    for path, methods in _methods().items():
        allowed = ", ".join(sorted(methods))
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"):
            answer = await ask(app, method, path, None)
            where = (method, path)
            assert (answer.status == 405) == (method not in methods), where
            if method in methods:
                assert answer.status in (200, 401), where
                continue
            assert answer.headers["allow"] == allowed, where
            told = for_path(path).error_body(MethodNotAllowed("x", allow=allowed))
            assert answer.value.keys() >= told.keys(), where
            assert f"answers {allowed} only" in answer.body.decode(), where


async def test_wrong_methods_and_bad_bodies_are_told_in_the_routes_dialect() -> None:
    wrong = await ask(app_with(), "DELETE", "//api//chat/")
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST")
    assert isinstance(wrong.value["error"], str)
    bad = await ask(app_with(), "POST", "//v1/messages/", {})
    assert (bad.status, bad.value["type"]) == (400, "error")


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/api/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/api/tags", "/api/tags"),
        ("/some/base/path/v1/models", "/v1/models"),
        ("/nothing/of/the/kind", None),
        ("/v1", None),
        ("/x", None),
        ("/a/b/c/d/e/v1/models", None),
    ],
)
async def test_a_base_too_long_is_told_what_is_there(asked: str, meant: str | None) -> None:
    answer = await ask(app_with(), "POST", asked, {})
    assert answer.status == 404
    hint = f"; {meant} is a path of this server" if meant else ""
    told = answer.value["error"]  # a text where the path meant is Ollama's
    message = told if isinstance(told, str) else told["message"]
    assert message == f"There is nothing at this path{hint}."


@given(st.text(alphabet="/a.%", max_size=12))
def test_a_plain_path_is_plain_and_keeps_its_segments(path: str) -> None:
    plain = plain_path(path)
    assert plain_path(plain) == plain
    assert [one for one in plain.split("/") if one] == [one for one in path.split("/") if one]
    assert "//" not in plain
    assert plain == "/" or not plain.endswith("/")


def test_nothing_is_meant_by_a_route_itself_or_by_nothing() -> None:
    assert meant_by("/v1/models", {"/v1/models"}) is None
    assert meant_by("", {"/"}) is None
