"""The worker on one end of a socket pair, and a plain blocking front on the other."""

from __future__ import annotations

import logging
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

import naiad
from naiad.config import EngineConfig
from naiad.engine import worker as worker_module
from naiad.engine.base import CoreJob, EngineBackend
from naiad.engine.worker import (
    EXIT_CRASHED,
    EXIT_LOAD_FAILED,
    EXIT_OK,
    ForwardLogs,
    Worker,
    run_in_thread,
)
from naiad.errors import ContextExceeded, InvalidRequest, ModelFileError
from naiad.ipc.channel import FrameDecoder, decode_event, encode_frame
from naiad.ipc.messages import (
    Abort,
    Accepted,
    AnyCommand,
    AnyEvent,
    CallFailed,
    Detokenize,
    Detokenized,
    LoadFailed,
    Loading,
    LogLine,
    Ready,
    Refused,
    Shutdown,
    StepDone,
    StreamItem,
    Submit,
    Tokenize,
    Tokenized,
)
from naiad.types import FinishReason, ModelInfo, SamplingParams
from patience import PATIENCE_S

E = TypeVar("E")
SAMPLING = SamplingParams()


class FakeTokenizer:
    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        if text == "defect":
            raise KeyError("a defect")
        return [*([1] if add_special else []), *text.encode()]

    def decode(self, ids: list[int], *, special: bool) -> bytes:
        if max(ids, default=0) > 255:
            raise InvalidRequest("no such id")
        return bytes(ids)


class FakeCore:
    """One token a step for each job, until its max_tokens; every call is written down."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self.jobs: dict[int, tuple[int, int]] = {}  # uid -> (next seq, max_tokens)
        self.num_idle = 0
        self.permits: threading.Semaphore | None = None  # steps that may run; None: all
        self.fault: Exception | None = None
        self.is_closed = False
        self.cancelled: list[int] = []

    def add(self, job: CoreJob) -> None:
        self.calls.put(("add", job.uid, job.prompt, job.max_tokens, job.namespace))
        self.jobs[job.uid] = (0, job.max_tokens)

    def abort(self, uid: int) -> None:
        self.calls.put(("abort", uid))
        if self.jobs.pop(uid, None):
            self.cancelled.append(uid)

    def cancel_hint(self, uid: int) -> None:
        self.calls.put(("hint", uid))

    def has_work(self) -> bool:
        return bool(self.jobs or self.cancelled)

    def step(self) -> list[StreamItem]:
        if self.permits is not None:
            self.permits.acquire()
        if self.fault is not None:
            raise self.fault
        items = [StreamItem(uid, 0, [], b"", FinishReason.CANCELLED) for uid in self.cancelled]
        self.cancelled.clear()
        for uid, (seq, limit) in list(self.jobs.items()):
            is_last = seq + 1 == limit
            self.jobs[uid] = (seq + 1, limit)
            if is_last:
                del self.jobs[uid]
            items.append(StreamItem(uid, seq, [7], b"x", FinishReason.LENGTH if is_last else None))
        return items

    def idle_slice(self) -> bool:
        if self.num_idle == 0:
            return False
        self.num_idle -= 1
        self.calls.put(("idle",))
        return True

    def close(self) -> None:
        self.is_closed = True


class FakeBackend:
    def __init__(self) -> None:
        self.info = ModelInfo(name="fake")
        self.tokenizer = FakeTokenizer()
        self.core = FakeCore()

    def check(self, prompt: list[int], max_tokens: int | None) -> int:
        if len(prompt) > 20:
            raise ContextExceeded("too long", n_prompt_tokens=len(prompt), n_ctx=20)
        return max_tokens or 3


class Front:
    """Starts a worker in a thread and talks to it."""

    def __init__(
        self,
        load: Callable[[Callable[[float], None]], EngineBackend],
        end: Callable[[int], object] | None = None,
    ) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(PATIENCE_S)
        self.codes: list[int] = []
        self._decoder = FrameDecoder()
        self._events = self._read()
        self.worker = Worker(theirs, 4, load, end=end)
        self._thread = threading.Thread(
            target=lambda: self.codes.append(self.worker.run()), daemon=True
        )
        self._thread.start()

    def _read(self) -> Iterator[AnyEvent]:
        while data := self.sock.recv(65536):
            yield from map(decode_event, self._decoder.feed(data))

    def send(self, *commands: AnyCommand) -> None:
        for command in commands:
            self.sock.sendall(encode_frame(command))

    def next(self, kind: type[E]) -> E:
        """The next event, which must be of this kind."""
        event = next(self._events)
        assert isinstance(event, kind), event
        assert event.epoch == 4
        return event

    def ready(self) -> Front:
        assert self.next(Loading).progress == 0
        assert self.next(Ready).model.name == "fake"
        return self

    def rest(self) -> list[AnyEvent]:
        return list(self._events)

    def end(self) -> int:
        self.sock.close()
        return self.exit_code()

    def exit_code(self) -> int:
        self._thread.join(PATIENCE_S)
        return self.codes[0]


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def front(backend: FakeBackend) -> Iterator[Front]:
    front = Front(lambda progress: backend).ready()
    yield front
    front.end()
    assert backend.core.is_closed


class TestCommands:
    def test_a_request_from_yes_to_end(self, front: Front, backend: FakeBackend) -> None:
        front.send(Submit(9, "ab", 2, SAMPLING, "mine"))
        assert front.next(Accepted) == Accepted(4, 9, 3)
        assert front.next(StepDone) == StepDone(4, 1, [StreamItem(9, 0, [7], b"x")])
        last = StreamItem(9, 1, [7], b"x", FinishReason.LENGTH)
        assert front.next(StepDone) == StepDone(4, 2, [last])
        assert backend.core.calls.get() == ("add", 9, (1, 97, 98), 2, "mine")

    def test_ids_are_used_as_they_are(self, front: Front, backend: FakeBackend) -> None:
        front.send(Submit(9, [5, 6], None, SAMPLING))
        assert front.next(Accepted).n_prompt == 2
        assert backend.core.calls.get() == ("add", 9, (5, 6), 3, "")

    def test_one_frame_per_step(self, front: Front, backend: FakeBackend) -> None:
        permits = backend.core.permits = threading.Semaphore(0)
        front.send(Submit(1, [5], 2, SAMPLING))
        front.next(Accepted)
        assert backend.core.calls.get()[0] == "add"  # the step for it alone now waits
        front.send(Submit(2, [5], 2, SAMPLING), Submit(3, [5], 2, SAMPLING))
        assert [front.next(Accepted).uid, front.next(Accepted).uid] == [2, 3]
        permits.release(100)
        frames = [front.next(StepDone) for _ in range(3)]
        assert [[item.uid for item in frame.items] for frame in frames] == [[1], [1, 2, 3], [2, 3]]
        assert [frame.step for frame in frames] == [1, 2, 3]

    def test_refusals_carry_code_and_details(self, front: Front) -> None:
        front.send(Submit(9, "x" * 30, 2, SAMPLING))
        refused = front.next(Refused)
        assert (refused.uid, refused.code) == (9, ContextExceeded.code)
        assert refused.details == {"n_prompt_tokens": 31, "n_ctx": 20}

    def test_a_defect_is_a_refusal_that_tells_nothing(
        self, front: Front, caplog: pytest.LogCaptureFixture
    ) -> None:
        front.send(Submit(9, "defect", 2, SAMPLING), Tokenize(3, "defect"))
        refused = front.next(Refused)
        assert (refused.code, "defect" in refused.message) == ("internal_error", False)
        assert front.next(CallFailed).code == "internal_error"
        assert "a defect" in caplog.text

    def test_an_abort_is_hinted_then_applied(self, front: Front, backend: FakeBackend) -> None:
        permits = backend.core.permits = threading.Semaphore(0)
        front.send(Submit(9, [5], 50, SAMPLING))
        front.next(Accepted)
        assert backend.core.calls.get()[0] == "add"
        front.send(Abort(9))
        assert backend.core.calls.get() == ("hint", 9)  # while the step still runs
        permits.release(100)
        assert backend.core.calls.get() == ("abort", 9)
        assert front.next(StepDone).items[0].finish is None
        assert front.next(StepDone).items[0].finish is FinishReason.CANCELLED

    def test_tokens_are_answered_while_a_step_runs(
        self, front: Front, backend: FakeBackend
    ) -> None:
        permits = backend.core.permits = threading.Semaphore(0)
        front.send(Submit(9, [5], 1, SAMPLING))
        front.next(Accepted)
        assert backend.core.calls.get()[0] == "add"
        front.send(Tokenize(1, "a"), Tokenize(2, "a", False), Detokenize(3, [97]))
        assert front.next(Tokenized) == Tokenized(4, 1, [1, 97])
        assert front.next(Tokenized) == Tokenized(4, 2, [97])
        assert front.next(Detokenized) == Detokenized(4, 3, b"a")
        front.send(Detokenize(4, [999]))
        assert front.next(CallFailed) == CallFailed(4, 4, "invalid_request", "no such id")
        permits.release(100)

    def test_idle_work_runs_until_done_and_commands_come_between(
        self, front: Front, backend: FakeBackend
    ) -> None:
        backend.core.num_idle = 3
        front.send(Submit(9, [5], 1, SAMPLING))
        names = [backend.core.calls.get(timeout=PATIENCE_S)[0] for _ in range(4)]
        assert names == ["add", "idle", "idle", "idle"]
        front.send(Submit(10, [5], 1, SAMPLING))
        assert backend.core.calls.get(timeout=PATIENCE_S)[:2] == ("add", 10)

    def test_what_can_be_prepared_is_once_and_commands_come_between(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("naiad.engine.worker.PREPARE_DELAY_S", 0.0)
        backend = PreparingBackend()
        front = Front(lambda progress: backend).ready()
        assert backend.core.calls.get(timeout=20) == ("prepare",)
        front.send(Submit(9, [5], 1, SAMPLING), Tokenize(1, "a"))
        front.next(Accepted)
        front.next(Tokenized)  # by now the job is in the queue
        backend.may_go_on.release()
        assert [backend.core.calls.get(timeout=20)[0] for _ in range(3)] == [
            "add",
            *["prepare"] * 2,
        ]
        front.next(StepDone)
        front.send(Submit(10, [5], 1, SAMPLING))
        assert backend.core.calls.get(timeout=20)[:2] == ("add", 10)
        front.end()
        assert backend.core.calls.empty()

    def test_what_cannot_be_prepared_ends_nothing(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("naiad.engine.worker.PREPARE_DELAY_S", 0.0)
        backend = PreparingBackend()
        backend.error = ValueError("an odd vocabulary")
        front = Front(lambda progress: backend).ready()
        assert backend.core.calls.get(timeout=PATIENCE_S) == ("prepare",)
        backend.may_go_on.release()
        front.send(Submit(9, [5], 1, SAMPLING))
        front.next(Accepted)
        front.next(StepDone)
        front.end()
        assert "will be refused: an odd vocabulary" in caplog.text


class PreparingBackend(FakeBackend):
    """Has three slices of work; does not end the first before it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.n_slices = 3
        self.error: Exception | None = None
        self.may_go_on = threading.Semaphore(0)

    def prepare(self) -> bool:
        self.core.calls.put(("prepare",))
        if self.n_slices == 3:
            self.may_go_on.acquire()
        if self.error:
            raise self.error
        self.n_slices -= 1
        return self.n_slices > 0


class TestEnds:
    @pytest.mark.parametrize("is_told", [True, False], ids=["Shutdown", "end of the socket"])
    def test_a_plain_end(self, backend: FakeBackend, is_told: bool) -> None:
        front = Front(lambda progress: backend).ready()
        if is_told:
            front.send(Shutdown())
            assert front.rest() == []
        assert front.end() == EXIT_OK

    def test_a_front_that_dies_in_the_middle_of_a_stream(self, backend: FakeBackend) -> None:
        front = Front(lambda progress: backend).ready()
        front.send(Submit(9, [5], 10**9, SAMPLING))
        assert front.end() == EXIT_OK
        assert backend.core.is_closed

    def test_a_failed_step_ends_the_worker(
        self, backend: FakeBackend, caplog: pytest.LogCaptureFixture
    ) -> None:
        backend.core.fault = RuntimeError("no memory for the step")
        front = Front(lambda progress: backend).ready()
        front.send(Submit(9, [5], 1, SAMPLING))
        assert isinstance(front.rest()[-1], Accepted)
        assert front.exit_code() == EXIT_CRASHED
        assert "no memory for the step" in caplog.text
        front.end()

    def test_a_front_that_talks_nonsense(
        self, backend: FakeBackend, caplog: pytest.LogCaptureFixture
    ) -> None:
        front = Front(lambda progress: backend).ready()
        front.sock.sendall(b"GET / HTTP/1.1\r\n")
        assert front.rest() == []
        assert front.exit_code() == EXIT_CRASHED
        front.end()

    @pytest.mark.parametrize(
        ("error", "code", "text"),
        [
            (ModelFileError("not a GGUF"), "model_file", "not a GGUF"),
            (OSError("disk"), "internal_error", "could not be loaded: OSError: disk"),
        ],
    )
    def test_a_model_that_cannot_be_loaded(
        self, error: Exception, code: str, text: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        def load(progress: Callable[[float], None]) -> EngineBackend:
            raise error

        front = Front(load)
        failed = front.rest()[-1]
        assert isinstance(failed, LoadFailed)
        assert failed.code == code
        assert text in failed.message
        assert front.exit_code() == EXIT_LOAD_FAILED
        front.end()

    def test_requests_while_loading_are_refused(self, backend: FakeBackend) -> None:
        may_load = threading.Event()

        def load(progress: Callable[[float], None]) -> EngineBackend:
            may_load.wait(PATIENCE_S)
            return backend

        front = Front(load)
        front.next(Loading)
        front.send(Abort(8), Submit(9, "x", 1, SAMPLING), Tokenize(1, "x"))
        assert front.next(Refused).code == "engine_unavailable"
        assert front.next(CallFailed).code == "engine_unavailable"
        may_load.set()
        front.next(Ready)
        assert front.end() == EXIT_OK

    def test_progress_comes_in_hundredths(self, backend: FakeBackend) -> None:
        def load(progress: Callable[[float], None]) -> EngineBackend:
            for i in range(10_001):
                progress(i / 10_000)
            raise ModelFileError("enough")

        front = Front(load)
        found = [event.progress for event in front.rest() if isinstance(event, Loading)]
        assert 90 <= len(found) <= 101
        assert found == sorted(set(found))
        assert front.end() == EXIT_LOAD_FAILED


class PersistentBackend(FakeBackend):
    """Keeps work beyond its life. may_flush: flush waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.may_flush = threading.Event()
        self.may_flush.set()

    def flush(self, timeout_s: float) -> bool:
        self.core.calls.put(("flush", timeout_s))
        return self.may_flush.wait(PATIENCE_S)


def names_of_calls(core: FakeCore) -> list[str]:
    names = []
    while not core.calls.empty():
        names.append(core.calls.get()[0])
    return names


class TestSaving:
    """Told to end, it keeps what it can; the front's death it follows at once."""

    @pytest.fixture(autouse=True)
    def enough_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """To save, unless a test says else: a busy machine must not use it up."""
        monkeypatch.setattr(worker_module, "SAVE_S", PATIENCE_S)

    @pytest.fixture
    def backend(self) -> PersistentBackend:
        return PersistentBackend()

    def hold_in_a_step(self, front: Front, backend: FakeBackend) -> threading.Semaphore:
        permits = backend.core.permits = threading.Semaphore(0)
        front.send(Submit(9, [5], 50, SAMPLING))
        front.next(Accepted)
        assert backend.core.calls.get(timeout=PATIENCE_S)[0] == "add"
        return permits

    def test_what_runs_is_ended_and_saved_and_written(self, backend: PersistentBackend) -> None:
        front = Front(lambda progress: backend).ready()
        permits = self.hold_in_a_step(front, backend)
        backend.core.num_idle = 3
        front.send(Shutdown())
        # While the step still runs:
        assert backend.core.calls.get(timeout=PATIENCE_S) == ("hint", 9)
        permits.release(100)
        assert front.exit_code() == EXIT_OK
        assert names_of_calls(backend.core) == ["abort", "idle", "idle", "idle", "flush"]
        assert not backend.core.has_work()
        front.end()

    def test_what_has_ended_is_not_ended_again(self, backend: PersistentBackend) -> None:
        front = Front(lambda progress: backend).ready()
        front.send(Submit(9, [5], 1, SAMPLING))
        assert [type(front.next(kind)) for kind in (Accepted, StepDone)]
        front.send(Shutdown())
        assert front.exit_code() == EXIT_OK
        assert names_of_calls(backend.core) == ["add", "flush"]
        front.end()

    def test_writing_has_what_is_left_of_the_time(self, backend: PersistentBackend) -> None:
        front = Front(lambda progress: backend).ready()
        front.send(Shutdown())
        name, timeout_s = backend.core.calls.get(timeout=PATIENCE_S)
        assert name == "flush"
        assert 0 < timeout_s <= worker_module.SAVE_S
        front.end()

    def test_without_time_nothing_is_begun(
        self, backend: PersistentBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(worker_module, "SAVE_S", -1.0)
        front = Front(lambda progress: backend).ready()
        permits = self.hold_in_a_step(front, backend)
        backend.core.num_idle = 3
        front.send(Shutdown())
        assert backend.core.calls.get(timeout=20) == ("hint", 9)
        permits.release(100)
        assert front.exit_code() == EXIT_OK
        assert names_of_calls(backend.core) == ["abort", "flush"]
        front.end()

    def test_when_the_front_dies_nothing_is_saved(self, backend: PersistentBackend) -> None:
        front = Front(lambda progress: backend).ready()
        permits = self.hold_in_a_step(front, backend)
        front.sock.close()
        permits.release(100)
        assert front.exit_code() == EXIT_OK
        assert "flush" not in names_of_calls(backend.core)

    def test_a_step_that_takes_too_long_is_not_waited_for(
        self, backend: PersistentBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(worker_module, "SAVE_S", 0.01)
        codes: queue.SimpleQueue[int] = queue.SimpleQueue()
        front = Front(lambda progress: backend, codes.put).ready()
        permits = self.hold_in_a_step(front, backend)
        front.send(Shutdown())
        assert codes.get(timeout=PATIENCE_S) == EXIT_OK  # here the process would be gone
        permits.release(100)
        front.end()

    def test_a_front_that_stops_waiting_is_followed_at_once(
        self, backend: PersistentBackend
    ) -> None:
        backend.may_flush.clear()
        codes: queue.SimpleQueue[int] = queue.SimpleQueue()
        front = Front(lambda progress: backend, codes.put).ready()
        front.send(Shutdown())
        assert backend.core.calls.get(timeout=PATIENCE_S)[0] == "flush"
        front.sock.close()
        assert codes.get(timeout=PATIENCE_S) == EXIT_OK
        backend.may_flush.set()
        front.end()

    def test_while_loading_there_is_nothing_to_save(self, backend: PersistentBackend) -> None:
        may_load = threading.Event()
        codes: queue.SimpleQueue[int] = queue.SimpleQueue()

        def load(progress: Callable[[float], None]) -> EngineBackend:
            may_load.wait(PATIENCE_S)
            return backend

        front = Front(load, codes.put)
        front.next(Loading)
        front.send(Shutdown())
        assert codes.get(timeout=PATIENCE_S) == EXIT_OK
        may_load.set()
        front.end()
        assert "flush" not in names_of_calls(backend.core)


class TestProcess:
    """The command line, in a real process."""

    @pytest.fixture
    def sock(self) -> Iterator[socket.socket]:
        ours, theirs = socket.socketpair()
        root = str(Path(naiad.__file__).parents[1])
        config = msgspec.json.encode(EngineConfig(engine="scripted")).decode()
        arguments = ["--fd", str(theirs.fileno()), "--epoch", "4", "--config", config]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "naiad.engine.worker", *arguments],
            pass_fds=(theirs.fileno(),),
            env={**os.environ, "PYTHONPATH": root},
        )
        theirs.close()
        ours.settimeout(PATIENCE_S)
        yield ours
        ours.close()
        self.process.wait(PATIENCE_S)

    def events(self, sock: socket.socket) -> Iterator[AnyEvent]:
        decoder = FrameDecoder()
        while data := sock.recv(65536):
            yield from map(decode_event, decoder.feed(data))

    def test_it_is_ready_ignores_ctrl_c_and_goes_when_told(self, sock: socket.socket) -> None:
        events = self.events(sock)
        assert any(isinstance(event, Ready) for event in events)
        self.process.send_signal(signal.SIGINT)
        sock.sendall(encode_frame(Tokenize(1, "a")))
        assert next(events) == Tokenized(4, 1, [97])
        sock.sendall(encode_frame(Shutdown()))
        assert list(events) == []
        assert self.process.wait(PATIENCE_S) == EXIT_OK

    def test_it_goes_when_the_front_goes(self, sock: socket.socket) -> None:
        assert any(isinstance(event, Ready) for event in self.events(sock))
        sock.close()
        assert self.process.wait(PATIENCE_S) == EXIT_OK


FRONT_THAT_WAITS = """
import asyncio
from naiad.client.launch import engine_from
from naiad.config import EngineConfig

async def main():
    engine = engine_from(EngineConfig(engine="scripted"))
    await engine.start()
    await engine.wait_ready()
    print(engine.worker_pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs a descriptor of a process")
def test_a_killed_front_leaves_no_orphan() -> None:
    root = str(Path(naiad.__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", FRONT_THAT_WAITS],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    ) as front:
        assert front.stdout is not None
        worker = os.pidfd_open(int(front.stdout.readline()))
        front.kill()
        has_ended, _, _ = select.select([worker], [], [], PATIENCE_S)
        os.close(worker)
    assert has_ended


class TestLogs:
    def test_records_go_to_the_front(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            channel = Worker(theirs, 4, lambda progress: FakeBackend()).channel
            logger = logging.Logger("naiad.native", logging.DEBUG)
            logger.addHandler(ForwardLogs(channel, 4))
            for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.CRITICAL):
                logger.log(level, "level %d", level)
            theirs.shutdown(socket.SHUT_WR)
            data = b"".join(iter(lambda: ours.recv(65536), b""))
        lines = [decode_event(payload) for payload in FrameDecoder().feed(data)]
        levels = [("debug", 10), ("info", 20), ("warning", 30), ("error", 50)]
        expected = [LogLine(4, name, "naiad.native", f"level {n}") for name, n in levels]
        assert lines == expected

    def test_without_a_front_they_go_to_standard_error(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        ours, theirs = socket.socketpair()
        ours.close()
        with theirs:
            channel = Worker(theirs, 4, lambda progress: FakeBackend()).channel
            logger = logging.Logger("naiad.native")
            logger.addHandler(ForwardLogs(channel, 4))
            logger.warning("nobody listens")
        assert "WARNING naiad.native: 'nobody listens'" in capsys.readouterr().err


def test_the_engine_is_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(worker_module.ENGINES, "llama", "naiad.no_such_module")
    front, theirs = socket.socketpair()
    with front:
        assert run_in_thread(theirs, 1, EngineConfig(engine="llama")) == EXIT_LOAD_FAILED
        events = [decode_event(p) for p in FrameDecoder().feed(front.recv(65536))]
    assert isinstance(events[-1], LoadFailed)
    assert "no_such_module" in events[-1].message
