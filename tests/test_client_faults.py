"""What an engine can do wrong, each on purpose, and that the front survives it and says so."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import psutil
import pytest

from naiad.client.base import EngineState, Job
from naiad.client.engine import SocketEngine
from naiad.client.launch import engine_from, in_thread
from naiad.client.restart import RestartLimits
from naiad.client.spawn import OutputLog, launch_process
from naiad.config import EngineConfig
from naiad.errors import EngineFailed, EngineUnavailable, IntegrityViolation, ModelFileError
from naiad.testing.exact import Answer, check_exact, exact_job, read_all
from naiad.testing.scripted import expected_text
from naiad.types import FinishReason, SamplingParams
from patience import PATIENCE_S

CONFIG = EngineConfig(engine="scripted", parallel=64, ctx=512)
AT_ONCE = RestartLimits(delays_s=(0,))
Build = Callable[..., SocketEngine]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAIAD_SCRIPTED_RATE", "0")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, too, a worker that can end by itself is not ended by force."""
    monkeypatch.setattr("naiad.client.engine.CLOSE_S", PATIENCE_S)
    monkeypatch.setattr("naiad.client.link.REAP_S", PATIENCE_S)


@pytest.fixture(params=[in_thread, engine_from], ids=["thread", "process"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[SocketEngine]:
    with_ready = await ready(request.param)
    yield with_ready
    await with_ready.close()


async def ready(build: Build, config: EngineConfig = CONFIG) -> SocketEngine:
    engine = build(config, limits=AT_ONCE)
    await engine.start()
    await engine.wait_ready()
    return engine


def scripted(*verbs: list[Any], max_tokens: int = 400) -> Job:
    return Job(json.dumps({"script": verbs}), max_tokens, SamplingParams())


async def act(engine: SocketEngine, *verbs: list[Any]) -> Answer:
    return await read_all(await engine.submit(scripted(*verbs)))


def load_script(*verbs: list[Any]) -> EngineConfig:
    return EngineConfig(engine="scripted", model=json.dumps({"script": verbs}))


async def serves_again(engine: SocketEngine, restarts: int) -> None:
    await engine.wait_ready()
    assert engine.status.restarts == restarts
    await check_exact(engine, "after the restart", 5)
    assert engine.num_open == 0


class TestOneStreamFails:
    """Faults that name a stream end that stream, and no other."""

    @pytest.mark.parametrize("verb", ["dup_seq", "skip_seq", "old_epoch"])
    async def test_a_wrong_frame(self, engine: SocketEngine, verb: str) -> None:
        neighbour = asyncio.ensure_future(check_exact(engine, "neighbour", 50))
        answer = await act(engine, ["emit", 5], [verb], ["emit", 5])
        assert isinstance(answer.error, IntegrityViolation)
        assert len(answer.tokens) == 5
        await neighbour
        assert engine.status.integrity_violations == 1
        assert engine.status.restarts == 0

    async def test_a_frame_of_nobody(self, engine: SocketEngine) -> None:
        answer = await act(engine, ["emit", 5], ["unknown_uid"], ["emit", 5])
        assert answer.finish is FinishReason.STOP
        assert engine.status.integrity_violations == 1

    @pytest.mark.parametrize(("verb", "text"), [("finish_error", "scripted"), ("nan", "NaN")])
    async def test_an_error_of_the_engine(self, engine: SocketEngine, verb: str, text: str) -> None:
        answer = await act(engine, ["emit", 2], [verb])
        assert (answer.finish, len(answer.tokens)) == (FinishReason.ERROR, 2)
        assert isinstance(answer.error, EngineFailed)
        assert text in answer.error.message
        assert engine.status.restarts == 0

    async def test_babble_after_an_abort_reaches_nobody(self, engine: SocketEngine) -> None:
        job = scripted(["babble_after_cancel", 20], ["emit", 300])
        for i in range(50):
            stream = await engine.submit(job)
            await stream.get()
            engine.abort(stream.uid)
            await check_exact(engine, f"after the abort {i}", 4)
        await check_exact(engine, "longer than any babble", 40)
        assert (engine.num_open, engine.status.integrity_violations) == (0, 0)


class TestWorkerFails:
    """Faults that name nobody end the worker, and every stream says so."""

    @pytest.mark.parametrize("verb", ["oversize", "garbage", "half_frame_eof", "die"])
    async def test_every_stream_ends_and_the_next_is_served(
        self, engine: SocketEngine, verb: str
    ) -> None:
        streams = [await engine.submit(scripted(["emit", 3], ["pause", 99])) for _ in range(8)]
        bystanders = [asyncio.ensure_future(read_all(stream)) for stream in streams]
        answers = [await act(engine, ["emit", 3], [verb]), *await asyncio.gather(*bystanders)]
        for answer in answers:
            assert answer.finish is FinishReason.ERROR
            assert isinstance(answer.error, EngineFailed)
            assert answer.error.message.startswith("the engine stopped (")
        assert engine.status.integrity_violations == 0
        await serves_again(engine, restarts=1)

    async def test_again_and_again(self, engine: SocketEngine) -> None:
        for i in range(4):
            assert (await act(engine, ["die"])).finish is FinishReason.ERROR
            await serves_again(engine, restarts=i + 1)

    async def test_too_often(self, engine: SocketEngine) -> None:
        for _ in range(5):
            await engine.wait_ready()
            await act(engine, ["die"])
        with pytest.raises(EngineUnavailable, match="too often"):
            await engine.wait_ready()
        with pytest.raises(EngineUnavailable, match="too often") as caught:
            await engine.submit(exact_job("too late", 1))
        assert caught.value.details["retry_after"] > 0
        assert engine.status.state is EngineState.FAILED

    async def test_while_it_restarts_requests_are_refused(self, engine: SocketEngine) -> None:
        await act(engine, ["die"])
        with pytest.raises(EngineUnavailable) as caught:
            await engine.submit(exact_job("too early", 1))
        assert caught.value.details["retry_after"] >= 1
        assert engine.status.state is EngineState.RESTARTING
        assert engine.status.model is not None
        await serves_again(engine, restarts=1)


class TestProcess:
    async def test_kill_9_in_the_middle_of_16_streams(self) -> None:
        engine = await ready(engine_from)
        streams = [await engine.submit(scripted(["emit", 3], ["pause", 99])) for _ in range(16)]
        calls = asyncio.ensure_future(engine.tokenize("x"))
        pid = engine.worker_pid
        assert pid is not None
        for stream in streams:
            assert (await stream.get()).tokens
        await calls
        os.kill(pid, signal.SIGKILL)
        answers = await asyncio.gather(*map(read_all, streams))
        assert {str(answer.error) for answer in answers} == {
            "the engine stopped (signal 9) while it worked on this request"
        }
        await serves_again(engine, restarts=1)
        new_pid = engine.worker_pid
        await engine.close()
        assert not psutil.pid_exists(pid)
        assert new_pid is not None
        assert not psutil.pid_exists(new_pid)

    async def test_submits_and_calls_under_way_fail_too(self) -> None:
        engine = await ready(engine_from)
        assert engine.worker_pid is not None
        os.kill(engine.worker_pid, signal.SIGSTOP)
        waiting = [
            asyncio.ensure_future(engine.submit(exact_job("never accepted", 1))),
            asyncio.ensure_future(engine.tokenize("never answered")),
        ]
        await asyncio.sleep(0)
        os.kill(engine.worker_pid, signal.SIGKILL)
        for failure in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(failure, EngineUnavailable)
            assert failure.details["retry_after"] >= 1
        await serves_again(engine, restarts=1)
        await engine.close()

    async def test_a_worker_frozen_as_each_request_enters(self) -> None:
        engine = await ready(engine_from)
        assert engine.worker_pid is not None
        for i in range(30):
            leftover = await engine.submit(exact_job(f"leftover {i}", 400))
            os.kill(engine.worker_pid, signal.SIGSTOP)
            engine.abort(leftover.uid)
            checking = asyncio.ensure_future(check_exact(engine, f"frozen {i}", 5))
            await asyncio.sleep(0)
            os.kill(engine.worker_pid, signal.SIGCONT)
            await checking
        assert (engine.num_open, engine.status.integrity_violations) == (0, 0)
        await engine.close()

    async def test_close_ends_a_worker_that_hangs_in_a_step(self) -> None:
        engine = await ready(engine_from)
        stream = await engine.submit(scripted(["hang"]))
        assert await engine.tokenize("the inbox lives") != []
        pid = engine.worker_pid
        await engine.close()
        assert isinstance((await stream.get()).error, EngineUnavailable)
        assert pid is not None
        assert not psutil.pid_exists(pid)

    async def test_close_kills_a_frozen_worker(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("naiad.client.engine.CLOSE_S", 0.05)
        monkeypatch.setattr("naiad.client.link.REAP_S", 0.05)
        engine = await ready(engine_from)
        pid = engine.worker_pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await engine.close()
        assert not psutil.pid_exists(pid)

    @pytest.mark.parametrize("script", [["emit", 1], ["hang"]], ids=["idle", "in a step"])
    async def test_the_worker_does_not_outlive_the_front(self, script: list[Any]) -> None:
        engine = await ready(engine_from)
        stream = await engine.submit(scripted(["emit", 1], script))
        await stream.get()
        link = engine._link
        assert link is not None
        link._channel.abort()  # all that a worker sees of a front that died
        answer = await read_all(stream) if script == ["hang"] else None
        if answer is not None:
            assert "(exit code 0)" in str(answer.error)  # it went by itself, not by force
        await serves_again_after_loss(engine)
        await engine.close()

    async def test_what_the_worker_logs_and_prints_is_in_our_log(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        config = load_script(["log", "warning", "from the inside"], ["print", "native words"])
        engine = await ready(engine_from, config)
        await engine.close()
        found = {(record.name, record.levelname, record.message) for record in caplog.records}
        assert ("naiad.testing.scripted", "WARNING", "from the inside") in found
        assert ("naiad.worker.output", "WARNING", "native words") in found


async def serves_again_after_loss(engine: SocketEngine) -> None:
    while engine.status.restarts == 0:
        await engine._changed.wait()
    await serves_again(engine, restarts=1)


class TestLoading:
    @pytest.fixture(params=[in_thread, engine_from], ids=["thread", "process"])
    def build(self, request: pytest.FixtureRequest) -> Build:
        found: Build = request.param
        return found

    async def test_a_bad_model_is_final(
        self, build: Build, caplog: pytest.LogCaptureFixture
    ) -> None:
        engine = build(load_script(["fail", "model_file", "not a GGUF file"]), limits=AT_ONCE)
        await engine.start()
        with pytest.raises(ModelFileError, match="not a GGUF file"):
            await engine.wait_ready()
        with pytest.raises(EngineUnavailable, match="not a GGUF file"):
            await engine.submit(exact_job("x", 1))
        assert engine.status.state is EngineState.FAILED
        assert (engine.status.reason, engine.status.restarts) == ("not a GGUF file", 0)
        # Who waits for the model tells of it: the log does not say it a second time.
        assert [r.message for r in caplog.records if r.levelname == "ERROR"] == []
        await engine.close()

    async def test_a_failed_self_test_starts_the_safe_mode(
        self, build: Build, caplog: pytest.LogCaptureFixture
    ) -> None:
        config = load_script(["fail_unless_safe", "engine_selftest", "the first decode gave NaN"])
        engine = await ready(build, config)
        model = await engine.wait_ready()
        assert not model.engine.extra_buffers
        assert "fast path failed" in caplog.text
        assert "the first decode gave NaN" in caplog.text
        await serves_again(engine, restarts=1)
        await engine.close()

    @pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGILL])
    async def test_a_crash_while_loading_starts_the_safe_mode(self, number: int) -> None:
        engine = await ready(engine_from, load_script(["die_unless_safe", number]))
        assert not (await engine.wait_ready()).engine.extra_buffers
        await serves_again(engine, restarts=1)
        await engine.close()

    async def test_the_safe_mode_is_tried_once(self) -> None:
        engine = engine_from(load_script(["die", signal.SIGSEGV]), limits=AT_ONCE)
        await engine.start()
        with pytest.raises(EngineUnavailable, match=r"too often \(signal 11"):
            await engine.wait_ready()
        assert engine.status.restarts == 5
        await engine.close()

    async def test_a_failed_self_test_in_safe_mode_is_final(self) -> None:
        engine = in_thread(load_script(["fail", "engine_selftest", "NaN"]), limits=AT_ONCE)
        await engine.start()
        with pytest.raises(ModelFileError, match="NaN"):
            await engine.wait_ready()
        await engine.close()

    async def test_close_while_loading(self, build: Build) -> None:
        engine = build(load_script(["pause", 0.2]), limits=AT_ONCE)
        await engine.start()
        await asyncio.sleep(0)
        with pytest.raises(EngineUnavailable, match="loading"):
            await engine.submit(exact_job("x", 1))
        await engine.close()
        assert engine.status.state is EngineState.STOPPED

    async def test_a_worker_that_cannot_be_started(self) -> None:
        async def launch(config: EngineConfig, epoch: int) -> Any:
            raise OSError("no more processes")

        engine = SocketEngine(CONFIG, launch, limits=AT_ONCE)
        await engine.start()
        with pytest.raises(EngineUnavailable, match="no more processes"):
            await engine.wait_ready()
        await engine.close()

    async def test_a_defect_of_the_supervisor_is_said(self) -> None:
        async def launch(config: EngineConfig, epoch: int) -> Any:
            raise KeyError("defect")

        engine = SocketEngine(CONFIG, launch)
        await engine.start()
        with pytest.raises(EngineUnavailable, match="supervised"):
            await engine.wait_ready()
        await engine.close()


class TestDelays:
    async def test_close_does_not_wait_for_the_delay(self) -> None:
        engine = in_thread(CONFIG, limits=RestartLimits(delays_s=(3600,)))
        await engine.start()
        await engine.wait_ready()
        await act(engine, ["die"])
        while "signal" not in engine.status.reason and "exit" not in engine.status.reason:
            await engine._changed.wait()
        with pytest.raises(EngineUnavailable) as caught:
            await engine.submit(exact_job("x", 1))
        assert caught.value.details["retry_after"] == 3601
        await engine.close()
        assert engine.status.restarts == 0


class TestPacing:
    async def test_commands_interrupt_the_wait_for_the_next_token(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NAIAD_SCRIPTED_RATE", "0.001")
        engine = await ready(in_thread)
        first = await engine.submit(exact_job("slow", 5))
        assert (await first.get()).data.decode() == expected_text("slow", 1)
        second = await engine.submit(exact_job("also slow", 1))  # its own start, not the first's
        assert (await read_all(second)).data.decode() == expected_text("also slow", 1)
        engine.abort(first.uid)
        await check_exact(engine, "settle", 1)
        assert engine.num_open == 0
        await engine.close()


async def test_output_is_logged_line_by_line(caplog: pytest.LogCaptureFixture) -> None:
    output = OutputLog()
    for data in (b"one\ntw", b"o\n\n  \n", b"\xff half", b"x" * 9000, b"\nlast"):
        output.data_received(data)
    output.connection_lost(None)
    assert output.ended.done()
    assert [record.message[:6] for record in caplog.records] == [
        "one", "two", "\ufffd half", "last",
    ]  # fmt: skip


async def test_a_command_that_cannot_run_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def popen(*args: Any, **kwargs: Any) -> None:
        raise OSError("no memory")

    monkeypatch.setattr("subprocess.Popen", popen)
    gc.collect()  # what earlier tests left is not closed meanwhile
    before = psutil.Process().num_fds()
    with pytest.raises(OSError, match="no memory"):
        await launch_process(CONFIG, 1)
    assert psutil.Process().num_fds() <= before


async def test_a_thread_that_does_not_end_is_left_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    from naiad.client.spawn import ThreadHandle

    release = threading.Event()

    def run(sock: socket.socket, epoch: int, config: EngineConfig) -> int:
        with sock:
            release.wait()
        return 0

    handle = ThreadHandle(run, CONFIG, 1)
    handle.kill()
    assert await handle.reap(0.0) == 1
    assert "did not end" in caplog.text
    release.set()
    assert await handle.reap(PATIENCE_S) == 0
    handle.sock.close()
