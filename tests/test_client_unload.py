"""Unloading ends the worker, loading starts another; streams before and after are exact."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import psutil
import pytest

from naiad.client.base import EngineState
from naiad.client.engine import SocketEngine
from naiad.client.launch import engine_from, in_thread
from naiad.client.restart import RestartLimits
from naiad.config import EngineConfig
from naiad.errors import EngineFailed, EngineUnavailable, ModelFileError
from naiad.testing.exact import check_exact, exact_job, read_all
from patience import PATIENCE_S

CONFIG = EngineConfig(engine="scripted", parallel=8, ctx=512)
AT_ONCE = RestartLimits(delays_s=(0,))


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAIAD_SCRIPTED_RATE", "0")


async def started(config: EngineConfig = CONFIG, *, is_process: bool = True) -> SocketEngine:
    engine = (engine_from if is_process else in_thread)(config, limits=AT_ONCE)
    await engine.start()
    await engine.wait_ready()
    return engine


async def until_gone(pid: int) -> None:
    """The process has ended; its parent, this process, reaps it."""
    process = psutil.Process(pid)
    await asyncio.to_thread(psutil.wait_procs, [process], PATIENCE_S)
    with contextlib.suppress(psutil.NoSuchProcess):  # between two questions, too
        assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("is_process", [False, True], ids=["thread", "process"])
async def test_round_and_round(is_process: bool) -> None:
    engine = await started(is_process=is_process)
    for turn in range(3):
        await check_exact(engine, f"turn {turn}", 20)
        pid = engine.worker_pid
        engine.unload()
        engine.unload()
        assert (engine.status.state, engine.status.progress) == (EngineState.UNLOADED, 0.0)
        assert engine.status.model is not None
        with pytest.raises(EngineUnavailable, match="unloaded"):
            await engine.submit(exact_job("x", 1))
        if pid is not None:
            await until_gone(pid)
        engine.load()
        engine.load()
        await engine.wait_ready()
        assert pid is None or engine.worker_pid != pid
    await check_exact(engine, "at the end", 20)
    assert (engine.status.restarts, engine.num_open) == (0, 0)
    await engine.close()


async def test_streams_that_were_open_end_with_an_error() -> None:
    engine = await started(is_process=False)
    stream = await engine.submit(exact_job("x", 400))
    await stream.get()
    engine.unload()
    answer = await read_all(stream)
    assert isinstance(answer.error, EngineFailed | EngineUnavailable)
    engine.load()
    await engine.wait_ready()
    await check_exact(engine, "after", 5)
    await engine.close()


async def test_changes_are_told() -> None:
    engine = await started(is_process=False)
    changed = engine.next_change()
    engine.unload()
    assert changed.is_set()
    changed = engine.next_change()
    engine.load()
    assert changed.is_set()
    assert engine.status.state is EngineState.STARTING
    await engine.wait_ready()
    await engine.close()


async def test_closing_an_unloaded_engine() -> None:
    engine = await started()
    engine.unload()
    await engine.close()
    assert engine.status.state is EngineState.STOPPED
    engine.load()
    assert engine.status.state is EngineState.STOPPED


async def test_a_load_that_fails_later_can_be_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    configs = {False: CONFIG.model, True: json.dumps({"script": [["fail", "model_file", "gone"]]})}
    engine = await started(is_process=False)
    for is_bad in (True, False):
        engine.unload()
        engine._config = EngineConfig(engine="scripted", model=configs[is_bad], ctx=512)
        engine.load()
        if is_bad:
            with pytest.raises(ModelFileError, match="gone"):
                await engine.wait_ready()
            assert engine.status.state is EngineState.UNLOADED
            assert "gone" in engine.status.reason
        else:
            await engine.wait_ready()
            await check_exact(engine, "again", 5)
    assert "cannot be loaded again" in caplog.text
    await engine.close()
