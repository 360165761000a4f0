"""The promise, end to end: every stream carries its own tokens, all of them, once, in order."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.client import Answer, ServerProcess, post_async, serving, stream
from naiad.service.registry import CREDIT_S
from naiad.testing.exact_models import N_CHARACTERS, character
from naiad.testing.lookback import lookback_text
from naiad.testing.watermark import watermark_text

pytestmark = [pytest.mark.engine, pytest.mark.soak]


@pytest.fixture(scope="module")
def watermark_server(
    watermark: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("watermark") / "server.log"
    with serving(log, str(watermark), "--parallel", "32", "--ctx", "4096") as server:
        yield server


def is_right(answer: Answer, want: str, *, whole: bool = True) -> bool:
    if not whole:
        return answer.status == 200 and want.startswith(answer.text)
    return answer.status == 200 and answer.text == want and len(answer.terminals) == 1


def integrity_violations(server: ServerProcess) -> int:
    return int(server.get("/health")[1]["integrity_violations"])


async def test_2000_consecutive_streams(watermark_server: ServerProcess) -> None:
    rng = random.Random(1)
    wrong = 0
    for i in range(2000):
        start, n = rng.randrange(N_CHARACTERS), rng.randrange(2, 24)
        answer = await stream(watermark_server, ("openai", "kobold")[i % 2], character(start), n)
        wrong += not is_right(answer, watermark_text(start, n))
    assert wrong == 0
    assert integrity_violations(watermark_server) == 0


async def test_1000_streams_64_at_once_with_aborts_and_disconnects(
    watermark_server: ServerProcess,
) -> None:
    rng = random.Random(2)
    gate = asyncio.Semaphore(64)
    wrong: list[Answer] = []

    async def one(i: int) -> None:
        start, n = rng.randrange(N_CHARACTERS), rng.randrange(4, 60)
        kind = rng.choice(["whole", "whole", "cut", "abort"])
        dialect = "kobold" if kind == "abort" else rng.choice(["openai", "kobold"])
        cut = rng.randrange(1, n) if kind == "cut" else None
        more: dict[str, Any] = {"genkey": f"key{i}"} if kind == "abort" else {}
        async with gate:
            task = asyncio.create_task(
                stream(watermark_server, dialect, character(start), n, cut_after=cut, **more)
            )
            if kind == "abort":
                await post_async(watermark_server, "/api/extra/abort", {"genkey": f"key{i}"})
            answer = await task
        if not is_right(answer, watermark_text(start, n), whole=kind == "whole"):
            wrong.append(answer)
        if kind == "abort" and len(answer.terminals) != 1:
            wrong.append(answer)

    await asyncio.gather(*(one(i) for i in range(1000)))
    assert wrong == []
    assert integrity_violations(watermark_server) == 0
    watermark_server.wait_idle()


async def test_the_abort_race_200_times(watermark_server: ServerProcess) -> None:
    """A front end's Stop: disconnect and key-less abort race each other and the next stream.

    The two halves of a Stop belong together for a while; a busy machine may keep them apart for
    longer, and then they are two.
    """
    rng = random.Random(3)
    cut_short = n_races = 0
    for i in range(200):
        began = time.monotonic()
        await stream(watermark_server, "openai", character(i), 2000, cut_after=rng.randrange(1, 5))
        start = rng.randrange(N_CHARACTERS)
        following = stream(watermark_server, "openai", character(start), 40)
        abort = post_async(watermark_server, "/api/extra/abort", b"")
        pair = (following, abort) if rng.random() < 0.5 else (abort, following)
        results = await asyncio.gather(*pair)
        if time.monotonic() - began < CREDIT_S:
            n_races += 1
            answer = next(r for r in results if isinstance(r, Answer))
            cut_short += not is_right(answer, watermark_text(start, 40))
    assert (cut_short, n_races) == (0, 200)


async def test_stop_before_the_disconnect_cancels_the_old_stream_only(
    watermark_server: ServerProcess,
) -> None:
    """The other order: the abort arrives while the old stream is still connected."""
    n_stopped = 0
    for i in range(50):
        started = asyncio.Event()
        old = asyncio.create_task(
            stream(watermark_server, "kobold", character(i), 3500, on_piece=started.set)
        )
        await started.wait()
        reply = await post_async(watermark_server, "/api/extra/abort", b"")
        new = await stream(watermark_server, "openai", character(7), 30)
        is_stopped = b'"success":"true"' in reply.replace(b" ", b"")
        assert is_right(new, watermark_text(7, 30))
        [terminal] = (await old).terminals
        assert is_stopped or terminal == "length"  # it was over before anybody read its beginning
        n_stopped += is_stopped
    assert n_stopped > 0


@pytest.mark.parametrize(("delay_ms", "n_streams"), [(0, 30), (60, 30), (400, 30), (2000, 5)])
async def test_a_frozen_worker_delays_and_changes_nothing(
    watermark_server: ServerProcess, delay_ms: int, n_streams: int
) -> None:
    """The defect this project exists to end: the engine is late, and the next stream is stale."""
    worker = watermark_server.worker_pid()
    loop = asyncio.get_running_loop()

    def freeze() -> None:
        os.kill(worker, signal.SIGSTOP)
        loop.call_later(delay_ms / 1000, os.kill, worker, signal.SIGCONT)

    wrong = 0
    for i in range(n_streams):
        start = i * 31
        answer = await stream(
            watermark_server,
            ("openai", "kobold")[i % 2],
            character(start),
            24,
            on_sent=freeze if delay_ms else None,
        )
        wrong += not is_right(answer, watermark_text(start, 24)) or len(answer.pieces) < 2
    assert wrong == 0


@pytest.mark.parametrize(("back", "n_jobs"), [(40, 500), (400, 250)])
async def test_lookback_with_shared_branching_and_disjoint_prefixes(
    back: int, n_jobs: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue("lookback" if back == 40 else "lookback_400")
    rng = random.Random(back)
    jobs = list(lookback_jobs(rng, back, n_jobs))
    wrong: list[str] = []
    with serving(
        tmp_path / "server.log", str(model), "--parallel", "32", "--ctx", "4096"
    ) as server:
        gate = asyncio.Semaphore(32)

        async def one(prompt: str, n: int, cut: bool) -> None:
            async with gate:
                answer = await stream(
                    server,
                    rng.choice(["openai", "kobold"]),
                    prompt,
                    n,
                    cut_after=1 if cut else None,
                )
            if not is_right(answer, lookback_text(prompt, n, back), whole=not cut):
                wrong.append(prompt)

        await asyncio.gather(*(one(*job) for job in jobs))
        assert wrong == []
        assert integrity_violations(server) == 0


def lookback_jobs(rng: random.Random, back: int, n: int) -> Iterator[tuple[str, int, bool]]:
    """(prompt, tokens, cut off early): sharing, branching from, extending and trimming others."""

    def fresh(length: int) -> str:
        return "".join(character(rng.randrange(N_CHARACTERS)) for _ in range(length))

    known = [fresh(rng.randrange(back + 30, back + 500)) for _ in range(8)]
    for _ in range(n):
        base = rng.choice(known)
        at = rng.randrange(back + 5, len(base))
        prompt = rng.choice(
            [
                base,
                base[:at] + fresh(rng.randrange(1, 60)),
                base + fresh(rng.randrange(1, 100)),
                fresh(rng.randrange(back + 5, back + 200)),
                base[:30] + base[rng.randrange(30, len(base) - back // 2) :] + fresh(back),
            ]
        )
        if back + 30 < len(prompt) < back + 900 and rng.random() < 0.5:
            known.append(prompt)
        yield prompt, back, rng.random() < 0.15
