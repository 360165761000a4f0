"""Keys: every route, every way to get past them."""

from __future__ import annotations

import logging

import pytest
from starlette.routing import Route, Router

from fakes import FAKE, FakeEngine, make_service
from http_client import LOCAL, ask, fake_app
from naiad.config import Config
from naiad.dialects.base import Access
from naiad.dialects.registry import DIALECTS
from naiad.errors import AdminRequired, ConfigError, NaiadError, Unauthorized
from naiad.http.app import MethodSwitch, build_app
from naiad.http.auth import Door
from naiad.http.origin import OriginGuard
from naiad.http.paths import PlainPaths
from naiad.http.static import STATIC

KEY = "sk-canary-123"
GOOD = [
    ("authorization", f"Bearer {KEY}"),
    ("authorization", f"bearer  {KEY} "),
    ("x-api-key", KEY),
    ("api-key", KEY),
]
BAD = [
    None,
    ("authorization", ""),
    ("authorization", "Bearer"),
    ("authorization", "Bearer "),
    ("authorization", "Bearer wrong"),
    ("authorization", KEY),
    ("authorization", f"Basic {KEY}"),
    ("authorization", f"Bearer {KEY[:-1]}"),
    ("authorization", f"Bearer {KEY}0"),
    ("authorization", f"Bearer {KEY.upper()}"),
    ("x-api-key", ""),
    ("x-api-key", "ü"),
    ("api-key", "*"),
    ("cookie", f"key={KEY}"),
    ("x-forwarded-for", "127.0.0.1"),
    ("x-original-url", "/health"),
]


def scope(*headers: tuple[str, str], peer: str = "127.0.0.1") -> dict[str, object]:
    raw = [(name.encode(), value.encode()) for name, value in headers]
    return {"headers": raw, "client": (peer, 1)}


@pytest.mark.parametrize("header", GOOD)
async def test_the_key_is_taken_in_each_usual_header(header: tuple[str, str]) -> None:
    app = fake_app(FakeEngine(), api_key=KEY)
    answer = await ask(app, "POST", "/fake/count", {}, [*LOCAL, header])
    assert answer.status == 200


@pytest.mark.parametrize("header", BAD)
async def test_every_route_of_every_dialect_refuses_bad_keys(
    header: tuple[str, str] | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    config = Config(api_key=KEY)
    app = build_app(make_service(FakeEngine(), config), config)
    headers = [*LOCAL, header] if header else LOCAL
    n_checked = 0
    for dialect in DIALECTS:
        for operation in dialect.operations:
            if operation.access is Access.PUBLIC:
                continue
            path = operation.path.replace("{", "").replace("}", "").replace(":path", "")
            answer = await ask(app, operation.method, path, {}, headers)
            assert answer.status == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
            told = answer.value
            if dialect.id_header is not None:  # such a dialect shows the request's id, too
                assert told.pop(dialect.id_header.replace("-", "_"))
            assert told == dialect.error_body(refusal()), path
            n_checked += 1
    assert n_checked > 10
    assert KEY not in caplog.text


def refusal() -> Unauthorized:
    with pytest.raises(Unauthorized) as refused:
        Door(KEY).admit(scope(), Access.USER)
    return refused.value


@pytest.mark.parametrize(
    "path", ["/fake/count?/health", "/fake/../health/../fake/count", "//fake/count", "/FAKE/count/"]
)
async def test_odd_paths_open_nothing(path: str) -> None:
    answer = await ask(fake_app(FakeEngine(), api_key=KEY), "POST", path, {})
    assert answer.status in {401, 404}


async def test_public_routes_need_no_key() -> None:
    app = fake_app(FakeEngine(), api_key=KEY)
    for path in ("/", "/health", "/livez", "/readyz", "/ping", "/fake/open"):
        answer = await ask(app, "GET", path)
        assert answer.status == 200
        assert KEY.encode() not in answer.body


async def test_the_key_is_checked_before_the_body_is_read() -> None:
    app = fake_app(FakeEngine(), api_key=KEY, max_body_bytes=10)
    assert (await ask(app, "POST", "/fake/generate", b"x" * 100)).status == 401


def test_admin_routes_need_the_key_too() -> None:
    with pytest.raises(Unauthorized):
        Door(KEY).admit(scope(), Access.ADMIN)


def test_callers_are_told_apart_by_key_and_host() -> None:
    door = Door(KEY)
    keyed = door.admit(scope(("x-api-key", KEY)), Access.USER)
    elsewhere = door.admit(scope(("x-api-key", KEY), peer="10.0.0.2"), Access.USER)
    unkeyed = door.admit(scope(), Access.PUBLIC)
    assert len({keyed.identity, elsewhere.identity, unkeyed.identity}) == 3
    assert keyed.namespace == elsewhere.namespace != unkeyed.namespace
    assert KEY not in keyed.identity + keyed.namespace
    assert (
        Door("other").admit(scope(("api-key", "other")), Access.USER).namespace != keyed.namespace
    )


def test_without_a_key_everyone_of_a_host_is_the_same_caller() -> None:
    door = Door(None)
    plain = door.admit(scope(), Access.USER)
    assert plain == door.admit(scope(("x-api-key", "anything")), Access.ADMIN)
    assert plain != door.admit(scope(peer="10.0.0.2"), Access.USER)
    assert door.admit({"headers": [], "client": None}, Access.USER).identity == "anyone@local"


@pytest.mark.parametrize("key", ["", "  "])
def test_an_empty_key_is_no_key_and_no_open_door(key: str) -> None:
    with pytest.raises(ConfigError):
        Door(key)
    with pytest.raises(ConfigError):
        Door(KEY, key)


ADMIN = "sk-admin-456"
ADMITTED = "admitted"

#: (api key, admin key, key shown, peer) -> (admin?, what user routes say, what admin routes say)
LEVELS: dict[
    tuple[str | None, str | None, str | None, str],
    tuple[bool, type[NaiadError] | str, type[NaiadError] | str],
] = {
    (KEY, ADMIN, ADMIN, "10.0.0.2"): (True, ADMITTED, ADMITTED),
    (KEY, ADMIN, KEY, "10.0.0.2"): (False, ADMITTED, AdminRequired),
    (KEY, ADMIN, KEY, "127.0.0.1"): (False, ADMITTED, AdminRequired),
    (KEY, ADMIN, "wrong", "127.0.0.1"): (False, Unauthorized, Unauthorized),
    (KEY, ADMIN, None, "127.0.0.1"): (False, Unauthorized, Unauthorized),
    (KEY, None, KEY, "127.0.0.1"): (False, ADMITTED, AdminRequired),
    (KEY, None, None, "127.0.0.1"): (False, Unauthorized, Unauthorized),
    (None, ADMIN, ADMIN, "127.0.0.1"): (True, ADMITTED, ADMITTED),
    (None, ADMIN, "anything", "127.0.0.1"): (False, ADMITTED, Unauthorized),
    (None, ADMIN, None, "127.0.0.1"): (False, ADMITTED, Unauthorized),
    (None, None, None, "127.0.0.1"): (True, ADMITTED, ADMITTED),
    (None, None, "anything", "::1"): (True, ADMITTED, ADMITTED),
    (None, None, None, "::ffff:127.0.0.1"): (True, ADMITTED, ADMITTED),
    (None, None, None, "10.0.0.2"): (False, ADMITTED, AdminRequired),
}


@pytest.mark.parametrize("case", LEVELS, ids=str)
def test_who_is_the_administrator(case: tuple[str | None, str | None, str | None, str]) -> None:
    api_key, admin_key, shown, peer = case
    is_admin, user, admin = LEVELS[case]
    door = Door(api_key, admin_key)
    asked = scope(*([("x-api-key", shown)] if shown else []), peer=peer)
    assert door.admit(asked, Access.PUBLIC).is_admin is is_admin
    for access, outcome in ((Access.USER, user), (Access.ADMIN, admin)):
        if isinstance(outcome, str):
            assert door.admit(asked, access).is_admin is is_admin
        else:
            with pytest.raises(outcome) as refused:
                door.admit(asked, access)
            assert type(refused.value) is outcome
            assert not any(key in refused.value.message for key in (KEY, ADMIN))


def test_the_administrators_key_may_stand_beside_another() -> None:
    both = scope(("authorization", f"Bearer {KEY}"), ("x-api-key", ADMIN))
    assert Door(KEY, ADMIN).admit(both, Access.ADMIN).is_admin


def test_the_administrator_is_a_caller_of_its_own() -> None:
    door = Door(KEY, ADMIN)
    user = door.admit(scope(("x-api-key", KEY)), Access.USER)
    admin = door.admit(scope(("x-api-key", ADMIN)), Access.USER)
    assert user.identity != admin.identity
    assert user.namespace != admin.namespace


@pytest.mark.parametrize(
    ("keys", "shown", "priority", "status"),
    [
        ({"api_key": KEY, "admin_key": ADMIN}, ADMIN, -100, 200),
        ({"api_key": KEY, "admin_key": ADMIN}, KEY, -1, 403),
        ({"api_key": KEY, "admin_key": ADMIN}, KEY, 0, 200),
        ({"api_key": KEY}, KEY, -1, 403),
        ({"admin_key": ADMIN}, None, -1, 403),
        ({"admin_key": ADMIN}, ADMIN, -1, 200),
        ({}, None, -1, 200),
    ],
)
async def test_priorities_below_0_are_the_administrators(
    keys: dict[str, str], shown: str | None, priority: int, status: int
) -> None:
    headers = [*LOCAL, *([("x-api-key", shown)] if shown else [])]
    body = {"prompt": "hi", "priority": priority}
    answer = await ask(fake_app(FakeEngine(), **keys), "POST", "/fake/generate", body, headers)
    assert answer.status == status
    if status == 403:
        told = answer.value["fake"]
        assert (told["code"], told["param"]) == ("admin_required", "priority")
        assert "from 0 to 100" in told["message"]


def test_the_real_route_table_starts_and_has_no_route_beside_it() -> None:
    config = Config()
    app = build_app(make_service(FakeEngine(), config), config)
    assert isinstance(app, PlainPaths)
    guard = app._app
    assert isinstance(guard, OriginGuard)
    router = guard._app
    assert isinstance(router, Router)
    declared = {operation.path for dialect in DIALECTS for operation in dialect.operations}
    routed = {route.path for route in router.routes if isinstance(route, Route)}
    files = {f"/ui/{name}" for name in STATIC if name != "index.html"}
    common = {"/", "/health", "/v1/health", "/livez", "/readyz", "/ping", "/docs", "/openapi.json"}
    assert routed == declared | files | common
    assert all(isinstance(r.app, MethodSwitch) for r in router.routes if isinstance(r, Route))
    assert FAKE not in DIALECTS
