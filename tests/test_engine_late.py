"""The engine starts its work late: nobody is handed what was said before.

The defect that this project exists to end comes from reading the engine's state after a wait that
was meant to be long enough. Here the real engine is late by more than any such wait.
"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from naiad.client.launch import in_thread
from naiad.config import EngineConfig
from naiad.engine.base import CoreJob
from naiad.engine.core import EngineCore
from naiad.testing.exact import check_exact
from naiad.testing.exact_models import character
from naiad.testing.watermark import watermark_text

pytestmark = pytest.mark.engine


@pytest.mark.parametrize(("delay_ms", "n_streams"), [(0, 30), (60, 30), (400, 30), (2000, 5)])
async def test_work_that_starts_late_is_still_ones_own(
    watermark: Path, monkeypatch: pytest.MonkeyPatch, delay_ms: int, n_streams: int
) -> None:
    delays: list[int] = []
    add = EngineCore.add

    def add_late(core: EngineCore, job: CoreJob) -> None:
        delays.append(job.uid)
        threading.Event().wait(delay_ms / 1000)  # the fault that is injected, on the engine's side
        add(core, job)

    monkeypatch.setattr(EngineCore, "add", add_late)
    engine = in_thread(EngineConfig(model=str(watermark), parallel=2, ctx=512))
    await engine.start()
    await engine.wait_ready()
    try:
        for i in range(n_streams):
            start = i * 101
            await check_exact(engine, character(start), 12, expected=watermark_text(start, 12))
    finally:
        await engine.close()
    assert len(delays) == n_streams
    assert engine.status.integrity_violations == 0
