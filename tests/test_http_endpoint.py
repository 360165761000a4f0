"""The endpoints: what goes wrong before the headers, what comes after them, and who stops what."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from starlette.types import ASGIApp

from fakes import FAKE, FakeEngine, FakeStream, make_service, silent
from http_client import LOCAL, Answer, Connection, ask, fake_app
from naiad.client.base import EngineState
from naiad.config import Config
from naiad.dialects.base import Access, Dialect, Operation
from naiad.errors import EngineFailed
from naiad.http.app import build_app
from naiad.types import FinishReason
from patience import PATIENCE_S

GENERATE = "/fake/generate"


async def test_a_stream_is_headers_then_events_then_the_end() -> None:
    answer = await ask(fake_app(FakeEngine()), "POST", GENERATE, {"prompt": "hey", "stream": True})
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache, no-transform"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.pieces == [b"open 3\n", b"delta hey\n", b"close stop -\n"]
    assert answer.is_complete


async def test_a_whole_answer_is_the_fold_of_the_same_events() -> None:
    answer = await ask(fake_app(FakeEngine()), "POST", GENERATE, {"prompt": "hey"})
    assert (answer.status, answer.value) == (200, {"text": "hey", "reason": "stop"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-length"] == str(len(answer.body))


async def test_each_event_is_sent_at_once_and_headers_before_the_first_token() -> None:
    engine = FakeEngine(silent)
    connection = Connection(fake_app(engine), "POST", GENERATE)
    connection.feed(b'{"prompt": "hey", "stream": true}')
    task = asyncio.create_task(connection.run())
    await engine.until(lambda: bool(engine.streams))
    for text in ("a", "b", "c"):
        engine.streams[1].put(text)
        await until_idle()
    assert connection.answer.pieces == [b"open 3\n", b"delta a\n", b"delta b\n", b"delta c\n"]
    engine.streams[1].end(FinishReason.LENGTH)
    assert (await task).pieces[-1] == b"close length -\n"


async def until_idle() -> None:
    """Let every task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_request"),
        (b"{", 400, "invalid_json"),
        (b"\xff\xfe", 400, "invalid_json"),
        (b"[1]", 400, "invalid_json"),
        (b"null", 400, "invalid_json"),
        (b'"text"', 400, "invalid_json"),
        (b'{"prompt": 5}', 400, "invalid_request"),
        (b'{"prompt": "\\ud800"}', 400, "invalid_json"),
        (b'{"a":' * 50_000, 400, "invalid_json"),
        (b'{"a":' * 100_000, 413, "payload_too_large"),
        (b"[" * 100_000 + b"]" * 100_000, 400, "invalid_json"),
        (b'{"prompt": "refuse"}', 400, "invalid_request"),
        (b'{"prompt": "' + b"x" * 2_000_000 + b'"}', 413, "payload_too_large"),
        (b'{"prompt": "' + b"\\q" * 200_000 + b'"}', 400, "invalid_json"),
    ],
)
async def test_bad_bodies_are_refused_before_the_headers(
    body: bytes, status: int, code: str
) -> None:
    app = fake_app(FakeEngine(), max_body_bytes=1_000_000)
    answer = await ask(app, "POST", GENERATE, body)
    assert answer.status == status
    assert answer.value["fake"]["code"] == code
    assert answer.value["fake"]["message"].endswith(".")


async def test_large_bodies_are_read_in_pieces() -> None:
    def repeat(stream: FakeStream) -> None:
        stream.put(str(stream.job.prompt))
        stream.end(FinishReason.STOP)

    connection = Connection(fake_app(FakeEngine(repeat)), "POST", GENERATE)
    text = "x" * 300_000
    body = b'{"prompt": "' + text.encode() + b'"}'
    for i in range(0, len(body), 65_536):
        connection.feed(body[i : i + 65_536], more=i + 65_536 < len(body))
    assert (await connection.run()).value["text"] == text


async def test_a_declared_length_over_the_limit_is_refused_unread() -> None:
    app = fake_app(FakeEngine(), max_body_bytes=1000)
    headers = [*LOCAL, ("content-length", str(100_000_000))]
    answer = await Connection(app, "POST", GENERATE, headers).run()
    assert (answer.status, answer.value["fake"]["code"]) == (413, "payload_too_large")
    headers = [*LOCAL, ("content-length", "many")]
    assert (await Connection(app, "POST", GENERATE, headers).run()).status == 400


async def test_an_undeclared_body_over_the_limit_is_refused_as_it_comes() -> None:
    connection = Connection(fake_app(FakeEngine(), max_body_bytes=1000), "POST", GENERATE)
    connection.feed(b"x" * 600, more=True)
    connection.feed(b"x" * 600, more=True)
    assert (await connection.run()).status == 413


async def test_a_body_that_does_not_arrive_is_refused_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("naiad.http.body.read_object.__defaults__", (0.01,))
    connection = Connection(fake_app(FakeEngine()), "POST", GENERATE)
    connection.feed(b'{"prompt"', more=True)
    answer = await connection.run()
    assert (answer.status, answer.headers["connection"]) == (408, "close")


async def test_a_client_that_leaves_within_its_body_gets_nothing() -> None:
    engine = FakeEngine()
    connection = Connection(fake_app(engine), "POST", GENERATE)
    connection.feed(b'{"prompt": "a"}', more=True)
    connection.hang_up()
    assert (await connection.run()).status == 0
    assert engine.streams == {}


@pytest.mark.parametrize("stream", [True, False])
async def test_a_hang_up_in_the_queue_stops_waiting(stream: bool) -> None:
    engine = FakeEngine(silent)
    engine.gate.clear()
    task, connection = start(engine, stream)
    await engine.until(lambda: engine.n_waiting == 1)
    connection.hang_up()
    assert (await task).status == 0
    assert (engine.n_waiting, engine.streams) == (0, {})


@pytest.mark.parametrize("n_tokens", [0, 3])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_hang_up_in_prefill_and_decode_aborts_once(stream: bool, n_tokens: int) -> None:
    engine = FakeEngine(silent)
    task, connection = start(engine, stream)
    await engine.until(lambda: bool(engine.streams))
    for _ in range(n_tokens):
        engine.streams[1].put("x")
        await until_idle()
    connection.hang_up()
    assert not (await task).is_complete
    assert engine.aborted == [1]


def start(engine: FakeEngine, stream: bool) -> tuple[asyncio.Task[Answer], Connection]:
    connection = Connection(fake_app(engine), "POST", GENERATE)
    connection.feed(b'{"prompt": "hey", "stream": %s}' % (b"true" if stream else b"false"))
    return asyncio.create_task(connection.run()), connection


async def test_cancelling_the_request_from_outside_is_no_hang_up() -> None:
    engine = FakeEngine(silent)
    task, _ = start(engine, stream=True)
    await engine.until(lambda: bool(engine.streams))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.aborted == [1]


async def test_an_abort_by_another_request_ends_the_stream_in_order() -> None:
    engine = FakeEngine(silent)
    app = fake_app(engine)
    connection = Connection(app, "POST", GENERATE)
    connection.feed(b'{"prompt": "hey", "stream": true, "handle": "h"}')
    task = asyncio.create_task(connection.run())
    await engine.until(lambda: bool(engine.streams))
    assert (await ask(app, "POST", "/fake/abort", {"handle": "h"})).value == {"done": True}
    assert (await task).pieces[-1] == b"close cancelled -\n"
    assert (await ask(app, "POST", "/fake/abort")).value == {"done": False}


async def test_the_race_of_stop_cuts_no_following_stream_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stream, its hang-up and the abort without a handle in either order, the next at once."""
    monkeypatch.setattr("naiad.service.registry.CREDIT_S", PATIENCE_S)
    engine = FakeEngine(silent)
    app = fake_app(engine)
    cut_short = 0
    for i in range(200):
        task, connection = stream_on(app)
        await engine.until(lambda n=2 * i + 1: n in engine.streams)  # type: ignore[misc]
        abort = Connection(app, "POST", "/fake/abort")
        abort.feed(b"")
        if i % 2:
            connection.hang_up()
            stop = asyncio.create_task(abort.run())
        else:
            stop = asyncio.create_task(abort.run())
            connection.hang_up()
        following, _ = stream_on(app)
        await engine.until(lambda n=2 * i + 2: n in engine.streams)  # type: ignore[misc]
        assert (await stop).value == {"done": True}
        await task
        engine.streams[2 * i + 2].put("whole")
        engine.streams[2 * i + 2].end(FinishReason.STOP)
        cut_short += (await following).pieces[-2:] != [b"delta whole\n", b"close stop -\n"]
    assert cut_short == 0


def stream_on(app: Any) -> tuple[asyncio.Task[Answer], Connection]:
    connection = Connection(app, "POST", GENERATE)
    connection.feed(b'{"prompt": "hey", "stream": true}')
    return asyncio.create_task(connection.run()), connection


async def test_an_engine_failure_is_a_status_before_the_headers_and_an_event_after() -> None:
    def script(stream: FakeStream) -> None:
        stream.put("half")
        stream.end(FinishReason.ERROR, EngineFailed("It died."))

    app = fake_app(FakeEngine(script))
    whole = await ask(app, "POST", GENERATE, {"prompt": "hey"})
    assert (whole.status, whole.value["fake"]["code"]) == (500, "engine_failed")
    stream = await ask(app, "POST", GENERATE, {"prompt": "hey", "stream": True})
    assert stream.pieces == [b"open 3\n", b"delta half\n", b"close error engine_failed\n"]
    assert stream.is_complete


async def test_a_defect_within_a_stream_ends_it_with_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = FakeEngine(lambda stream: stream.put("boom"))
    answer = await ask(fake_app(engine), "POST", GENERATE, {"prompt": "hey", "stream": True})
    assert answer.pieces[-1] == b"close error internal_error\n"
    assert engine.aborted == [1]
    assert "a defect in the formatter" in caplog.text


async def test_a_defect_in_a_query_shows_a_fixed_text(caplog: pytest.LogCaptureFixture) -> None:
    answer = await ask(fake_app(FakeEngine()), "POST", "/fake/count", {"crash": True})
    assert (answer.status, answer.value["fake"]["code"]) == (500, "internal_error")
    assert b"secret" not in answer.body
    assert "secret detail" in caplog.text


async def test_overload_says_when_to_retry() -> None:
    engine = FakeEngine(silent)
    app = fake_app(engine)
    running = [stream_on(app) for _ in range(4)]
    await engine.until(lambda: len(engine.streams) == 4)
    answer = await ask(app, "POST", GENERATE, {"prompt": "hey", "stream": True})
    assert (answer.status, answer.value["fake"]["code"]) == (503, "overloaded")
    assert answer.headers["x-should-retry"] == "true"
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    for task, connection in running:
        connection.hang_up()
        await task
    assert engine.aborted == [1, 2, 3, 4]


async def test_a_loading_engine_says_when_to_retry() -> None:
    engine = FakeEngine()
    engine.state, engine.model = EngineState.STARTING, None
    answer = await ask(fake_app(engine), "POST", GENERATE, {"prompt": "hey"})
    assert (answer.status, answer.headers["retry-after"]) == (503, "2")


def being_loaded(**config: Any) -> tuple[FakeEngine, ASGIApp]:
    """An app whose model was unloaded, and is loaded when the test says so."""
    engine = FakeEngine()
    engine.after_load = EngineState.STARTING
    engine.unload()
    return engine, fake_app(engine, **config)


async def first_and_last(wants_progress: bool) -> tuple[set[bytes], bytes]:
    """What a stream says while the model is loaded for it, and at its end."""
    engine, app = being_loaded(heartbeat_s=0.005)
    connection = Connection(app, "POST", GENERATE)
    body = {"prompt": "hey", "stream": True, "wants_progress": wants_progress}
    connection.feed(json.dumps(body).encode())
    has_begun = asyncio.Event()
    take = connection.answer.take

    async def telling(message: Any) -> None:
        await take(message)
        if message.get("body"):
            has_begun.set()

    connection.answer.take = telling  # type: ignore[method-assign]
    task = asyncio.create_task(connection.run())
    await engine.until(lambda: engine.state is EngineState.STARTING)
    async with asyncio.timeout(PATIENCE_S):
        await has_begun.wait()
    engine.become(EngineState.READY)
    pieces = (await task).pieces
    return set(pieces[: pieces.index(b"open 3\n")]), pieces[-1]


async def test_loading_is_told_to_who_asks_and_kept_alive_for_all_others() -> None:
    told, last = await first_and_last(True)
    assert (b"load 0.50\n" in told, last) == (True, b"close stop -\n")
    assert await first_and_last(False) == ({b"beat\n"}, b"close stop -\n")


async def test_a_quick_load_keeps_the_status_of_a_refusal() -> None:
    engine, app = being_loaded()
    task = asyncio.create_task(ask(app, "POST", GENERATE, {"prompt": "refuse", "stream": True}))
    await engine.until(lambda: engine.state is EngineState.STARTING)
    engine.become(EngineState.READY)
    assert (await task).status == 400


async def test_a_refusal_behind_the_headers_is_the_last_event() -> None:
    for state, code in (
        (EngineState.READY, "invalid_request"),
        (EngineState.UNLOADED, "engine_unavailable"),
    ):
        engine, app = being_loaded()
        body = {"prompt": "refuse", "stream": True, "wants_progress": True}
        task = asyncio.create_task(ask(app, "POST", GENERATE, body))
        await engine.until(lambda engine=engine: engine.state is EngineState.STARTING)  # type: ignore[misc]
        await asyncio.sleep(0)
        engine.become(state)
        answer = await task
        assert (answer.status, answer.is_complete) == (200, True)
        assert answer.pieces[-1] == f"close error {code}\n".encode()


async def test_a_silent_stream_is_kept_alive() -> None:
    engine = FakeEngine(silent)
    connection = Connection(fake_app(engine, heartbeat_s=0.005), "POST", GENERATE)
    connection.feed(b'{"prompt": "hey", "stream": true}')
    beats = asyncio.Event()
    take = connection.answer.take

    async def counting(message: Any) -> None:
        await take(message)
        if connection.answer.pieces.count(b"beat\n") == 3:
            beats.set()

    connection.answer.take = counting  # type: ignore[method-assign]
    task = asyncio.create_task(connection.run())
    async with asyncio.timeout(PATIENCE_S):
        await beats.wait()
    engine.streams[1].put("late")
    engine.streams[1].end(FinishReason.STOP)
    pieces = (await task).pieces
    assert pieces[0] == b"open 3\n"
    assert pieces[-2:] == [b"delta late\n", b"close stop -\n"]


async def test_a_client_that_never_reads_is_given_up() -> None:
    engine = FakeEngine(silent)
    app = fake_app(engine, heartbeat_s=0.005, stalled_s=0.01)
    connection = Connection(app, "POST", GENERATE)
    connection.feed(b'{"prompt": "hey", "stream": true}')
    take = connection.answer.take

    async def stalling(message: Any) -> None:
        await take(message)
        if len(connection.answer.pieces) == 2:
            await asyncio.Event().wait()

    connection.answer.take = stalling  # type: ignore[method-assign]
    task = asyncio.create_task(connection.run())
    await engine.until(lambda: bool(engine.streams))
    engine.streams[1].put("never read")
    assert not (await task).is_complete
    assert engine.aborted == [1]


async def test_heartbeats_can_be_switched_off() -> None:
    engine = FakeEngine(silent)
    connection = Connection(fake_app(engine, heartbeat_s=0), "POST", GENERATE)
    connection.feed(b'{"prompt": "hey", "stream": true}')
    task = asyncio.create_task(connection.run())
    await engine.until(lambda: bool(engine.streams))
    engine.streams[1].end(FinishReason.STOP)
    assert b"beat\n" not in (await task).pieces


async def test_ignored_fields_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "naiad.http.endpoint")
    app = fake_app(FakeEngine())
    for _ in range(3):
        await ask(app, "POST", GENERATE, {"prompt": "canary", "odd": 1, "x" * 1000: 2})
    assert caplog.text.count("'odd'") == 1
    assert len(caplog.records) == 2
    assert "canary" not in caplog.text
    assert "x" * 100 not in caplog.text


async def test_a_grammar_beside_a_demanded_call_is_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "naiad.http.endpoint")
    tool = {"type": "function", "function": {"name": "find"}}
    body = {"messages": [{"role": "user", "content": "canary"}], "tools": [tool]}
    body |= {"response_format": {"type": "json_object"}, "max_tokens": 1}
    path, app = "/v1/chat/completions", build_app(make_service(FakeEngine()), Config())
    for choice, n_told in (("auto", 0), ("required", 1), ("required", 1)):
        answer = await ask(app, "POST", path, body | {"tool_choice": choice})
        assert answer.status == 200, answer.body
        assert caplog.text.count("'response_format' has no effect") == n_told


async def test_queries_get_query_and_path_and_need_no_body() -> None:
    app = fake_app(FakeEngine())
    answer = await ask(app, "GET", "/fake/count/a/b?x=1")
    assert answer.value == {"n": 0, "query": {"x": "1"}, "path": {"name": "a/b"}}
    assert (await ask(app, "POST", "/fake/count", {"text": "héé"})).value["n"] == 5
    assert (await ask(app, "HEAD", "/fake/count/a")).status == 200


async def test_unknown_paths_and_methods_are_answered_in_the_dialect() -> None:
    app = fake_app(FakeEngine())
    missing = await ask(app, "POST", "/fake/nothing", {})
    assert (missing.status, missing.value["fake"]["code"]) == (404, "not_found")
    wrong = await ask(app, "DELETE", "/fake/count")
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST")
    assert wrong.value["fake"]["code"] == "method_not_allowed"
    assert (await ask(app, "POST", "/health")).headers["allow"] == "GET, HEAD"
    assert (await ask(app, "GET", "/fake/count/")).headers["allow"] == "POST"  # no name is no path
    assert (await ask(app, "POST", "/fake/count/a")).headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("sent", "is_echoed"),
    [("mine-1", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("é", False)],
)
async def test_request_ids_are_echoed_or_made(sent: str, is_echoed: bool) -> None:
    app = fake_app(FakeEngine())
    answer = await ask(app, "GET", "/ping", headers=[*LOCAL, ("x-request-id", sent)])
    assert (answer.headers["x-request-id"] == sent) is is_echoed
    made = [(await ask(app, "GET", "/ping")).headers["x-request-id"] for _ in range(2)]
    assert len(set(made)) == 2
    assert all(len(value) == 32 for value in made)


async def test_the_common_pages() -> None:
    engine = FakeEngine()
    app = fake_app(engine)
    for path in ("/", "/health", "/livez", "/readyz", "/ping"):
        assert (await ask(app, "GET", path)).status == 200
        assert (await ask(app, "HEAD", path)).status == 200
    at_a_terminal = [*LOCAL, ("user-agent", "curl/8.5.0")]
    assert b"/v1/chat/completions" in (await ask(app, "GET", "/", headers=at_a_terminal)).body
    assert (await ask(app, "GET", "/health")).value["status"] == "ok"
    engine.state = EngineState.RESTARTING
    statuses = {path: (await ask(app, "GET", path)).status for path in ("/health", "/readyz")}
    assert statuses == {"/health": 503, "/readyz": 503}
    assert (await ask(app, "GET", "/livez")).status == 200
    assert (await ask(app, "GET", "/health")).value["reason"] == "because"


def one_route(operation: Operation) -> Dialect:
    return Dialect("bad", (operation,), FAKE.error_body)


@pytest.mark.parametrize(
    ("operation", "complaint"),
    [
        (Operation("GET", "/x", None, handle=FAKE.operations[1].handle), "access"),  # type: ignore[arg-type]
        (Operation("GET", "/x", "user", handle=FAKE.operations[1].handle), "access"),  # type: ignore[arg-type]
        (Operation("GET", "/x", Access.USER), "exactly one"),
        (
            Operation(
                "GET",
                "/x",
                Access.USER,
                parse=FAKE.operations[0].parse,
                handle=FAKE.operations[1].handle,
            ),
            "exactly one",
        ),
        (Operation("GET", "/health", Access.USER, handle=FAKE.operations[1].handle), "twice"),
    ],
)
def test_a_bad_route_table_does_not_start(operation: Operation, complaint: str) -> None:
    config = Config()
    with pytest.raises(ValueError, match=complaint):
        build_app(make_service(FakeEngine()), config, [one_route(operation)], lambda path: FAKE)
