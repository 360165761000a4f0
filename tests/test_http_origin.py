"""The matrix of Host, Origin, fetch metadata and content type: who gets past the guard."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from fakes import FAKE, FakeEngine, make_service
from http_client import Answer, ask
from naiad.config import Config
from naiad.errors import ConfigError
from naiad.http.app import build_app
from naiad.http.origin import check_origins, host_rule, is_loopback, split_host

OUR = "localhost:5001"


async def send(
    *headers: tuple[str, str], method: str = "POST", path: str = "/fake/count", **fields: Any
) -> Answer:
    config = Config(**fields)
    app = build_app(make_service(FakeEngine(), config), config, [FAKE], lambda path: FAKE)
    return await ask(app, method, path, {}, list(headers))


HOSTS_ALLOWED = [
    "localhost",
    "localhost:5001",
    "LOCALHOST:5001",
    "LocalHost",
    "app.localhost",
    "a.b.localhost:80",
    "127.0.0.1",
    "127.0.0.1:5001",
    "127.255.255.254",
    "[::1]",
    "[::1]:5001",
    "[0:0:0:0:0:0:0:1]",
]

HOSTS_REFUSED = [
    "",
    " ",
    "127.evil.com",
    "127.0.0.1.evil.com",
    "127.0.0.1.nip.io",
    "localhost.evil.com",
    "evil.com",
    "evil.com:5001",
    "evillocalhost",
    "evil-localhost",
    ".localhost",
    "localhost.",
    "127.0.0.1.",
    "127.1",
    "0177.0.0.1",
    "0x7f.0.0.1",
    "2130706433",
    "0.0.0.0",
    "192.168.1.5",
    "::1",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[fe80::1]",
    "[::1",
    "localhost:",
    "localhost:http",
    "localhost:123456",
    "user@localhost",
    "localhost, evil.com",
    "localhost evil.com",
    "localhost/evil.com",
    "localhost#",
    "localhöst",
]


@pytest.mark.parametrize("host", HOSTS_ALLOWED)
async def test_loopback_hosts_are_allowed(host: str) -> None:
    assert (await send(("host", host))).status == 200


@pytest.mark.parametrize("host", HOSTS_REFUSED)
async def test_other_hosts_are_refused(host: str) -> None:
    answer = await send(("host", host))
    assert (answer.status, answer.value["fake"]["code"]) == (403, "forbidden")


async def test_no_host_and_two_hosts_are_refused() -> None:
    assert (await send()).status == 403
    assert (await send(("host", OUR), ("host", OUR))).status == 403
    assert (await send(("host", OUR), ("host", "evil.com"))).status == 403


@pytest.mark.parametrize("path", ["/", "/health", "/fake/open", "/nothing"])
async def test_no_path_is_outside_the_guard(path: str) -> None:
    assert (await send(("host", "evil.com"), method="GET", path=path)).status == 403


async def test_named_hosts_are_allowed_whatever_the_port() -> None:
    for host in ("box.lan", "BOX.lan:80"):
        assert (await send(("host", host), allow_host=("Box.lan:5001",))).status == 200
    assert (await send(("host", "x.box.lan"), allow_host=("box.lan",))).status == 403
    with pytest.raises(ConfigError, match="no host name"):
        host_rule("127.0.0.1", ["http://box"])


@pytest.mark.parametrize("bound", ["0.0.0.0", "::", "192.168.1.5", "box.lan"])
async def test_a_server_on_the_network_answers_to_addresses_and_its_own_names(bound: str) -> None:
    for host in ("192.168.1.5", "[fe80::1]:5001", socket.gethostname(), "localhost"):
        assert (await send(("host", host), host=bound, api_key=None)).status == 200
    for host in ("evil.com", "192.168.1.5.evil.com", "[::1", ""):
        assert (await send(("host", host), host=bound)).status == 403


JSON = ("content-type", "application/json")
BROWSER = [
    # headers, status
    ([("origin", "http://localhost:5001"), JSON], 200),
    ([("origin", "HTTP://LocalHost:5001"), JSON], 200),
    ([("origin", "https://localhost:5001"), JSON], 200),
    ([("origin", "http://localhost:3000"), JSON], 403),
    ([("origin", "http://localhost"), JSON], 403),
    ([("origin", "http://127.0.0.1:5001"), JSON], 403),
    ([("origin", "http://evil.com"), JSON], 403),
    ([("origin", "http://localhost:5001.evil.com"), JSON], 403),
    ([("origin", "http://localhost:5001@evil.com"), JSON], 403),
    ([("origin", "null"), JSON], 403),
    ([("origin", ""), JSON], 403),
    ([("origin", "file://"), JSON], 403),
    ([("origin", "localhost:5001"), JSON], 403),
    ([("origin", "app://localhost:5001"), JSON], 403),
    ([("sec-fetch-site", "same-origin"), JSON], 200),
    ([("sec-fetch-site", "none"), JSON], 200),
    ([("sec-fetch-site", "cross-site"), JSON], 403),
    ([("sec-fetch-site", "Cross-Site"), JSON], 403),
    ([("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site"), JSON], 403),
    ([("origin", "http://localhost:5001"), ("sec-fetch-site", "cross-site"), JSON], 403),
    ([("origin", "http://localhost:5001")], 403),
    ([("origin", "http://localhost:5001"), ("content-type", "text/plain")], 403),
    ([("sec-fetch-site", "same-origin"), ("content-type", "multipart/form-data")], 403),
    ([("sec-fetch-site", "none"), ("content-type", "application/x-www-form-urlencoded")], 403),
    ([("sec-fetch-site", "none"), ("content-type", "text/plain; application/json")], 403),
    ([("sec-fetch-site", "none"), ("content-type", "Application/JSON; charset=utf-8")], 200),
    ([("content-type", "text/plain")], 200),
    ([("content-type", "application/x-www-form-urlencoded")], 200),
    ([], 200),
]


@pytest.mark.parametrize(("headers", "status"), BROWSER)
async def test_what_browsers_send(headers: list[tuple[str, str]], status: int) -> None:
    answer = await send(("host", OUR), *headers)
    assert answer.status == status
    assert not any(name.startswith("access-control") for name in answer.headers)


async def test_reading_needs_no_content_type_but_the_right_origin() -> None:
    for headers, status in (
        ([("sec-fetch-site", "same-origin")], 200),
        ([("sec-fetch-site", "cross-site")], 403),
        ([("origin", "http://evil.com")], 403),
    ):
        answer = await send(("host", OUR), *headers, method="GET", path="/health")
        assert answer.status == status


async def test_default_ports_are_those_of_the_scheme() -> None:
    for host, origin, status in (
        ("localhost:80", "http://localhost", 200),
        ("localhost", "http://localhost:80", 200),
        ("localhost:443", "https://localhost", 200),
        ("localhost:80", "https://localhost", 403),
    ):
        assert (await send(("host", host), ("origin", origin), JSON)).status == status


ALLOWED: dict[str, Any] = {"allow_origin": ("https://chat.example", "app://obsidian.md")}


@pytest.mark.parametrize("origin", ["https://chat.example", "app://obsidian.md"])
async def test_a_named_origin_gets_cors_answers(origin: str) -> None:
    headers = [("host", OUR), ("origin", origin), ("sec-fetch-site", "cross-site"), JSON]
    answer = await send(*headers, **ALLOWED)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert answer.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in answer.headers
    failed = await send(*headers, path="/nothing", **ALLOWED)
    assert failed.status == 404
    assert failed.headers["access-control-allow-origin"] == origin, "errors can be read too"


async def test_naming_one_origin_opens_nothing_else() -> None:
    for origin in ("https://chat.example.evil.com", "http://chat.example", "null"):
        assert (await send(("host", OUR), ("origin", origin), JSON, **ALLOWED)).status == 403
    named = ("origin", "https://chat.example")
    assert (await send(("host", "evil.com"), named, JSON, **ALLOWED)).status == 403
    plain = ("content-type", "text/plain")
    assert (await send(("host", OUR), named, plain, **ALLOWED)).status == 403
    # without a body there is no type, and who is named would get a yes to any question
    assert (await send(("host", OUR), named, **ALLOWED)).status == 200


async def test_preflights() -> None:
    asks = [
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,x-stainless-os"),
    ]
    named = ("origin", "https://chat.example")
    answer = await send(("host", OUR), named, *asks, method="OPTIONS", **ALLOWED)
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == "https://chat.example"
    assert answer.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
    assert "POST" in answer.headers["access-control-allow-methods"]
    foreign = ("origin", "http://evil.com")
    for headers in ([foreign, *asks], [foreign]):
        refused = await send(("host", OUR), *headers, method="OPTIONS", **ALLOWED)
        assert refused.status == 403
        assert not any(name.startswith("access-control") for name in refused.headers)
    odd = ("access-control-request-headers", "a\r\nset-cookie: b")
    answer = await send(("host", OUR), named, asks[0], odd, method="OPTIONS", **ALLOWED)
    assert answer.headers["access-control-allow-headers"] == ""


@pytest.mark.parametrize(
    "origin", ["*", "null", "", "chat.example", "https://*.example", "a://b/c"]
)
def test_origins_are_named_exactly(origin: str) -> None:
    with pytest.raises(ConfigError, match="no origin"):
        check_origins([origin])


def test_parsing_of_hosts() -> None:
    assert split_host("Box:80") == ("box", "80")
    assert split_host("[::1]:80") == ("::1", "80")
    assert split_host("box:") is None
    assert is_loopback("127.0.0.1")
    assert not is_loopback("128.0.0.1")
