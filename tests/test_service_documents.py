"""What callers leave with the server: theirs alone, bounded, kept in a file that only its owner can
read; and work that goes on without them."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fakes import ALICE, FakeEngine, make_service, request, silent
from naiad.errors import InvalidRequest
from naiad.service.documents import Bounds, Documents
from naiad.types import Caller, Finished, FinishReason, StreamEvent
from patience import PATIENCE_S

BOB = Caller("bob@here", "bob")


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[Documents]:
    documents = Documents(tmp_path / "deep" / "answers.db")
    yield documents
    await documents.close()
    await documents.close()


def modes_in(folder: Path) -> set[int]:
    return {stat.S_IMODE(one.stat().st_mode) for one in folder.iterdir()}


async def test_each_key_sees_its_own(kept: Documents) -> None:
    await kept.save(ALICE, "a", b"one")
    await kept.save(BOB, "a", b"two")
    assert (await kept.load(ALICE, "a"), await kept.load(BOB, "a")) == (b"one", b"two")
    await kept.save(ALICE, "a", b"three")
    assert await kept.delete(BOB, "a")
    assert not await kept.delete(BOB, "a")
    assert (await kept.load(ALICE, "a"), await kept.load(BOB, "a")) == (b"three", None)


async def test_the_file_outlives_the_process_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "answers.db"
    path.touch(mode=0o644)
    first = Documents(path)
    await first.save(ALICE, "a", b"one")
    assert modes_in(tmp_path) == {0o600}
    await first.close()
    second = Documents(path)
    assert await second.load(ALICE, "a") == b"one"
    await second.close()


async def test_the_oldest_go_first_by_number_and_by_room(tmp_path: Path) -> None:
    few = Documents(tmp_path / "few.db", Bounds(n_most=2))
    for name in "abc":
        await few.save(ALICE, name, b"x")
    assert [await few.load(ALICE, name) for name in "abc"] == [None, b"x", b"x"]
    await few.close()
    small = Documents(None, Bounds(n_bytes=10))
    for name in "abc":
        await small.save(ALICE, name, b"x" * 6)
    assert [bool(await small.load(ALICE, name)) for name in "abc"] == [False, False, True]
    await small.save(ALICE, "d", b"x" * 60)
    assert await small.load(ALICE, "d"), "one that is too large by itself is still an answer"
    await small.close()


async def test_what_is_too_old_is_gone(tmp_path: Path) -> None:
    now = 1e9
    kept = Documents(None, Bounds(days=1), clock=lambda: now)
    await kept.save(ALICE, "a", b"x")
    now += 86_000
    assert await kept.load(ALICE, "a") == b"x"
    now += 800
    assert await kept.load(ALICE, "a") is None
    await kept.close()


@pytest.mark.parametrize("content", [b"this is no database, but it is long enough" * 20, None])
async def test_a_file_that_cannot_be_used_is_replaced_by_memory(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "answers.db"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    kept = Documents(path)
    await kept.save(ALICE, "a", b"x")
    assert await kept.load(ALICE, "a") == b"x"
    assert "kept in memory only" in caplog.text
    await kept.close()


async def test_what_cannot_be_saved_is_no_failure_of_the_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept = Documents()
    await kept._do(lambda db: db.execute("DROP TABLE documents"))
    await kept.save(ALICE, "a", b"x")
    assert "could not be kept" in caplog.text
    await kept.close()


# -- work that goes on by itself ------------------------------------------------------------------


async def test_events_are_told_and_the_end_is_done_once() -> None:
    engine = FakeEngine()
    service = make_service(engine)
    events: list[StreamEvent] = []
    done: list[int] = []

    async def finish() -> None:
        done.append(len(events))

    work = await service.start_apart("k", "mine", request("ab"), ALICE, events.append, finish)
    assert [None async for _ in work.changes()]
    assert work.subject == "mine"
    assert isinstance(events[-1], Finished)
    assert done == [len(events)]
    assert service.find_apart(ALICE, "k") is None
    assert not await service.cancel_apart(ALICE, "k")
    await service.close()


async def test_it_is_its_callers_own_and_ends_with_the_server() -> None:
    service = make_service(FakeEngine(silent))
    events: list[StreamEvent] = []
    await service.start_apart("k", None, request(), ALICE, events.append, nothing)
    assert service.find_apart(BOB, "k") is None
    assert service.find_apart(ALICE, "k") is not None
    await service.close()
    assert isinstance(events[-1], Finished)
    assert events[-1].reason is FinishReason.CANCELLED


async def test_refusals_are_for_who_asked_and_failures_are_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = make_service(FakeEngine())
    with pytest.raises(InvalidRequest, match="No such prompt"):
        await service.start_apart("k", None, request("refuse"), ALICE, lambda _: None, nothing)
    told: list[Any] = []

    def take(event: StreamEvent) -> None:
        told.append(event)
        if len(told) == 2:
            raise RuntimeError("a defect")

    async def broken() -> None:
        raise RuntimeError("another")

    work = await service.start_apart("k", None, request("abc"), ALICE, take, broken)
    async with asyncio.timeout(PATIENCE_S):
        assert [None async for _ in work.changes()]
    assert told[-1].reason is FinishReason.ERROR
    assert "work in the background failed" in caplog.text
    assert "could not be kept" in caplog.text
    await service.close()


async def test_one_whose_caller_leaves_before_the_yes_is_not_begun() -> None:
    engine = FakeEngine(silent)
    engine.gate.clear()
    service = make_service(engine)
    asking = asyncio.ensure_future(
        service.start_apart("k", None, request(), ALICE, lambda _: None, nothing)
    )
    await engine.until(lambda: engine.n_waiting == 1)
    asking.cancel()
    await asyncio.wait({asking})
    await engine.until(lambda: engine.n_waiting == 0)
    assert engine.streams == {}
    await service.close()


async def nothing() -> None:
    return
