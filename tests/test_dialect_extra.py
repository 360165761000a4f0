"""A dialect is one source file and one line in the table: a throw-away one, and nothing else."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp

import extra_dialect
from fakes import FakeEngine, FakeStream, make_service
from http_client import ask
from naiad.config import Config
from naiad.dialects import registry
from naiad.dialects.base import Dialect
from naiad.errors import EngineFailed
from naiad.http.app import build_app
from naiad.types import FinishReason


def app_with(monkeypatch: pytest.MonkeyPatch, engine: FakeEngine) -> ASGIApp:
    """The real app, whose table has one line more."""
    return app_of(monkeypatch, engine, (*registry.DIALECTS, extra_dialect.DIALECT))


def app_of(
    monkeypatch: pytest.MonkeyPatch, engine: FakeEngine, dialects: tuple[Dialect, ...]
) -> ASGIApp:
    monkeypatch.setattr(registry, "DIALECTS", dialects)
    config = Config(api_key="key")
    return build_app(make_service(engine, config), config, registry.DIALECTS)


KEY = [("host", "localhost:5001"), ("x-api-key", "key")]


async def test_it_streams_and_answers_whole_and_refuses_in_its_own_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = app_with(monkeypatch, FakeEngine())

    async def telegraph(**body: Any) -> Any:
        return await ask(app, "POST", "/telegram", body, KEY)

    streamed = await telegraph(message="hi", piecemeal=True)
    assert streamed.headers["content-type"] == "application/x-ndjson"
    assert streamed.pieces == [
        b'{"paid_for":2}\n',
        b'{"words":"HI"}\n',
        b'{"words":"STOP","why":"stop"}\n',
    ]
    assert (await telegraph(message="hi")).value == {"words": "HI STOP"}
    for body, status, words in (
        ({}, 400, "'message' is missing."),
        ({"message": "hi", "at_most": 0}, 400, "an integer from 1 to 100"),
    ):
        refused = await telegraph(**body)
        assert refused.status == status
        assert words in refused.value["returned_to_sender"]
    assert (await ask(app, "GET", "/telegram/none", None, KEY)).value.keys() == {
        "returned_to_sender"
    }
    assert (await ask(app, "POST", "/telegram", {"message": "hi"})).status == 401
    assert (await ask(app, "GET", "/telegram/price?message=hi")).value == {"pence": 2}


async def test_its_streams_fail_like_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(stream: FakeStream) -> None:
        stream.put("he")
        stream.end(FinishReason.ERROR, EngineFailed("The engine died."))

    app = app_with(monkeypatch, FakeEngine(failing))
    answer = await ask(app, "POST", "/telegram", {"message": "hi", "piecemeal": True}, KEY)
    assert answer.pieces[-1] == b'{"returned_to_sender":"The engine died."}\n'
    whole = await ask(app, "POST", "/telegram", {"message": "hi"}, KEY)
    assert (whole.status, whole.value) == (500, {"returned_to_sender": "The engine died."})


async def test_it_is_in_the_reference_without_another_word(monkeypatch: pytest.MonkeyPatch) -> None:
    app = app_of(monkeypatch, FakeEngine(), (extra_dialect.DIALECT,))
    told = (await ask(app, "GET", "/openapi.json")).value["paths"]["/telegram"]["post"]
    body = told["requestBody"]["content"]["application/json"]["schema"]
    assert (told["summary"], body["required"]) == ("An answer by wire", ["message"])
    at_most = {"type": "integer", "minimum": 1, "maximum": 100}
    assert at_most.items() <= body["properties"]["at_most"].items()


def test_it_needs_no_other_room_than_dialects_may_use() -> None:
    tree = ast.parse(Path(extra_dialect.__file__).read_text(encoding="utf-8"))
    modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    rooms = {module.split(".")[1] for module in modules if module.startswith("naiad.")}
    assert rooms == {"dialects", "errors", "types"}
