"""Limits of one key: requests at a time, requests a minute, and who has none."""

from __future__ import annotations

import pytest

from fakes import ALICE, FakeEngine, make_service, request, silent
from http_client import ask, fake_app
from naiad.config import Config
from naiad.errors import RateLimited
from naiad.service.limits import KeyLimits
from naiad.types import Caller

ANN, BOB = Caller("ann@1", namespace="ann"), Caller("bob@1", namespace="bob")
ROOT = Caller("root@1", namespace="root", is_admin=True)


def begin(limits: KeyLimits, caller: Caller) -> None:
    with limits.enter(caller):
        pass


def test_requests_at_a_time_are_counted_by_key() -> None:
    limits = KeyLimits(max_in_flight=2)
    with limits.enter(ANN), limits.enter(ANN):
        with pytest.raises(RateLimited, match=r"has 2 requests .* may have 2") as refused:
            begin(limits, Caller("ann@2", namespace="ann"))
        assert refused.value.details["retry_after"] == 1
        begin(limits, BOB)
        for _ in range(5):
            begin(limits, ROOT)
    begin(limits, ANN)
    assert limits._in_flight == {}


def test_requests_a_minute_come_back_evenly() -> None:
    now = [0.0]
    limits = KeyLimits(per_minute=6, clock=lambda: now[0])
    for _ in range(6):
        begin(limits, ANN)
    with pytest.raises(RateLimited, match="6 requests a minute") as refused:
        begin(limits, ANN)
    assert refused.value.details == {"retry_after": 10, "limit_requests": 6}
    begin(limits, BOB)
    now[0] = 9.9
    with pytest.raises(RateLimited):
        limits.check(ANN)
    now[0] = 10.0
    begin(limits, ANN)
    with pytest.raises(RateLimited):
        begin(limits, ANN)
    now[0] = 1000.0
    for _ in range(6):
        begin(limits, ANN)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("naiad.service.limits._MOST_KEYS", 3)
    now = [0.0]
    limits = KeyLimits(per_minute=60, clock=lambda: now[0])
    for place in range(10):
        begin(limits, Caller(f"peer{place}"))
        now[0] += 2
    assert len(limits._spent) <= 3


async def test_the_service_asks_before_it_does_anything() -> None:
    engine = FakeEngine(silent)
    service = make_service(engine, Config(max_per_key=1))
    async with service.generate(request(), ALICE):
        with pytest.raises(RateLimited):
            service.check_room(ALICE)
        with pytest.raises(RateLimited):
            async with service.generate(request(), ALICE):
                raise AssertionError("entered")
        async with service.generate(request(), Caller("bob")):
            assert len(engine.streams) == 2


async def test_a_client_is_told_when_to_come_back() -> None:
    key = [("host", "localhost:5001"), ("x-api-key", "k")]
    app = fake_app(FakeEngine(), api_key="k", requests_per_minute=1)
    first = await ask(app, "POST", "/fake/generate", {"prompt": "hey"}, key)
    second = await ask(app, "POST", "/fake/generate", {"prompt": "hey"}, key)
    assert (first.status, second.status) == (200, 429)
    assert second.value["fake"]["code"] == "rate_limited"
    names = ("retry-after", "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests")
    assert [second.headers[name] for name in names] == ["60", "1", "0"]
    assert second.headers["x-ratelimit-reset-requests"] == "60s"


async def test_answers_to_one_request_count_once() -> None:
    engine = FakeEngine(silent)
    service = make_service(engine, Config(max_per_key=1, requests_per_minute=2))
    for n_streams in (3, 6):
        async with service.generate_all([request()] * 3, ALICE):
            assert len(engine.streams) == n_streams
            with pytest.raises(RateLimited, match="has 1 requests in progress"):
                service.check_room(ALICE)
    with pytest.raises(RateLimited, match="2 requests a minute"):
        service.check_room(ALICE)
