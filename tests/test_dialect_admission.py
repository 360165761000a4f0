"""Who comes in, in every dialect: urgent requests with the admin key, others when there is room."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from starlette.types import ASGIApp

from dialect_server import MODEL
from fakes import FakeEngine, echo, make_service, request, silent
from http_client import LOCAL, Answer, ask
from naiad.config import Config
from naiad.dialects.registry import DIALECTS
from naiad.http.app import build_app
from naiad.service.service import Service
from naiad.types import Caller

KEY, ADMIN = "sk-user", "sk-admin"
#: Every way to begin an answer; a path's name tells its dialect.
ROUTES = {
    operation.path: dialect
    for dialect in DIALECTS
    for operation in dialect.operations
    if (operation.parse or operation.plan) and operation.method == "POST"
}
each_route = pytest.mark.parametrize("path", ROUTES)


def body_for(path: str, **fields: Any) -> dict[str, Any]:
    """What all of these routes take."""
    kind = {"input": "Hi"} if "responses" in path else {"prompt": "Hi"}
    if "chat" in path or "messages" in path:
        kind = {"messages": [{"role": "user", "content": "Hi"}]}  # type: ignore[dict-item]
    if "infill" in path:
        kind = {"input_prefix": "Hi", "input_suffix": "!"}
    return {**kind, "model": MODEL.name, "max_tokens": 9, **fields}


def server(engine: FakeEngine, **config: Any) -> tuple[ASGIApp, Service]:
    engine.model = msgspec.structs.replace(MODEL, infill=("<p>", "<s>", "<m>"))
    settings = Config(max_queue=0, **config)
    service = make_service(engine, settings)
    return build_app(service, settings), service


async def post(app: ASGIApp, path: str, key: str | None = None, **fields: Any) -> Answer:
    headers = [*LOCAL, *([("authorization", f"Bearer {key}")] if key else [])]
    return await ask(app, "POST", path, body_for(path, **fields), headers)


def test_these_are_all_the_routes_that_begin_an_answer() -> None:
    assert {dialect.name for dialect in ROUTES.values()} == {d.name for d in DIALECTS} - {"page"}
    assert len(ROUTES) >= 15


@each_route
async def test_a_priority_below_0_needs_the_admin_key(path: str) -> None:
    engine = FakeEngine(echo)
    app, _ = server(engine, api_key=KEY, admin_key=ADMIN)
    refused = await post(app, path, KEY, priority=-1)
    assert refused.status == 403
    assert "'priority' -1 is for the administrator" in refused.body.decode()
    assert "from 0 to 100" in refused.body.decode()
    assert not engine.streams
    for key, priority in ((KEY, 1), (ADMIN, -7)):
        assert (await post(app, path, key, priority=priority)).status == 200
        assert engine.streams[max(engine.streams)].job.priority == priority


@each_route
async def test_over_the_bound_there_is_an_immediate_refusal_with_retry_after(path: str) -> None:
    engine = FakeEngine(silent)
    app, service = server(engine)
    caller = Caller("somebody")
    async with (
        service.generate(request(), caller),
        service.generate(request(), caller),
        service.generate(request(), caller),
        service.generate(request(), caller),
    ):
        refused = await post(app, path)
        assert refused.status == (529 if ROUTES[path].name == "anthropic" else 503)
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert "busy" in refused.body.decode()
        assert len(engine.streams) == 4
