"""The worker: one engine, two threads, one socket to the front.

The inbox thread reads commands. It answers at once whatever needs no step (tokenising, the yes or
no to a request) and hands the rest to the main thread through a queue. The main thread owns the
core and does nothing but: take commands, step, send what the step did.

For one uid, Accepted is sent before its job enters the queue, so no item can overtake it.

The worker never outlives the front: when the socket ends, the inbox thread ends the process on the
spot, even in the middle of a decode. Run in a thread (tests), it ends after the step instead. Told
to end (Shutdown) while the front still lives, it first saves what finished and what still runs, for
a bounded time.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol, cast, runtime_checkable

import msgspec

from naiad.config import EngineConfig
from naiad.engine.accepting import Accepting, deliberate
from naiad.engine.base import (
    CompilesGrammars,
    Core,
    CoreJob,
    Embeds,
    EngineBackend,
    Loader,
    Prepares,
    Wakes,
)
from naiad.engine.embedding import Embedding
from naiad.engine.reporting import CacheReporter, ProgressReporter
from naiad.engine.saving import save
from naiad.errors import EngineUnavailable, InternalError, NaiadError
from naiad.ipc.channel import FrameRefused, WorkerChannel
from naiad.ipc.messages import (
    Abort,
    AnyCommand,
    CacheTold,
    CallFailed,
    Detokenize,
    Detokenized,
    Embed,
    LoadFailed,
    Loading,
    LogLine,
    Progressed,
    Ready,
    Shutdown,
    StepDone,
    Submit,
    Tokenize,
    Tokenized,
)

logger = logging.getLogger("naiad.engine.worker")  # not __name__, which is __main__ here

#: Exit codes of the worker process.
EXIT_OK, EXIT_CRASHED, EXIT_LOAD_FAILED = 0, 1, 3

#: Quiet time before background work begins, so that a client's next request finds the loop free.
IDLE_DELAY_S = 0.03

#: Quiet time before what the first request of some kind would wait for is done beforehand: by then
#: those who waited for the start have sent their requests.
PREPARE_DELAY_S = 2.0

#: How long a worker that was told to end may take to save what is unsaved, seconds.
SAVE_S = 3.0

#: Each engine is a module with `load(config) -> Loader`. By name: only the chosen one is imported,
#: and the scripted engine lives in a room that this one does not know.
ENGINES = {"llama": "naiad.engine.llama", "scripted": "naiad.testing.scripted"}


class _Wake:
    """Takes the main thread out of its wait."""


_WAKE = _Wake()


@runtime_checkable
class Paced(Protocol):
    """A core that has work but knows that it is not yet due."""

    def next_due(self) -> float | None:
        """The time.monotonic() at which step() has something to do; None: now."""
        ...


@runtime_checkable
class RawAccess(Protocol):
    """A backend that breaks the protocol on purpose, to test the front."""

    def attach(self, channel: WorkerChannel, epoch: int) -> None: ...


class Worker:
    """Serves one engine over one socket.

    Args:
        sock: the worker's end of the pair; closed when run() returns.
        epoch: which worker this is, counted by the front; stamped on every event.
        load: loads the engine, on the main thread.
        end: called with the exit code when the front is gone, or when saving after a Shutdown takes
            too long, to end the process at once; None ends run() after the current step instead.
    """

    def __init__(
        self,
        sock: socket.socket,
        epoch: int,
        load: Loader,
        *,
        end: Callable[[int], object] | None = None,
    ) -> None:
        self.channel = WorkerChannel(sock)
        self.epoch = epoch
        self._load = load
        self._end = end
        self._backend: EngineBackend | None = None
        self._is_prepared = False
        self._progress = -1.0
        self._steps = 0
        self._exit_code = EXIT_OK
        self._live: set[int] = set()  # uids whose last item is still to come
        self._cache: CacheReporter | None = None  # once there is a core
        self._save_until = 0.0  # time.monotonic(), once told to end
        # Bounded by the front's admission: one job and at most one abort per request in flight.
        self._queue: queue.SimpleQueue[CoreJob | Abort | Shutdown | _Wake] = queue.SimpleQueue()
        self._accepting = Accepting(self.channel, epoch, self._require_backend, self._queue.put)
        self._embedding = Embedding(
            epoch, self._require_backend, self.channel.send, self._call_failed
        )
        self._inbox = threading.Thread(target=self._read_commands, name="naiad-inbox", daemon=True)

    def run(self) -> int:
        """Load, serve until told to end, and return the exit code."""
        self._inbox.start()
        try:
            self._serve()
        except OSError:
            logger.info("the front is gone")
        except Exception:
            # The core's state is unknown now: end, and let the supervisor start afresh.
            logger.exception("the engine failed; the worker ends")
            self._exit_code = EXIT_CRASHED
        self._tear_down()
        return self._exit_code

    def _serve(self) -> None:
        backend = self._load_backend()
        if backend is None:
            self._exit_code = EXIT_LOAD_FAILED
            return
        core = backend.core
        reporter, self._cache = ProgressReporter(core), CacheReporter(core)
        if isinstance(core, Wakes):
            core.set_waker(lambda: self._queue.put(_WAKE))
        gc.freeze()  # what is loaded stays: the collector need not walk it between tokens
        while self._take_commands(core, reporter):
            items = core.step()
            if items:
                self._steps += 1
                ended = [item.uid for item in items if item.finish is not None]
                self._live.difference_update(ended)
                self.channel.send(StepDone(self.epoch, self._steps, items))
                if ended:
                    self._tell_of_cache()
            if news := reporter.news(items):
                self.channel.send(Progressed(self.epoch, news))
        if self._save_until:
            save(backend, self._live, self._save_until)

    # --- main thread: commands

    def _take_commands(self, core: Core, reporter: ProgressReporter) -> bool:
        """Apply every command that waits; wait for one while there is no work. False: end."""
        command = self._wait(core)
        while command is not None:
            if isinstance(command, Shutdown):
                return False
            if isinstance(command, _Wake):
                pass  # the core has something to do now, which the next look at it shows
            elif isinstance(command, Abort):
                core.abort(command.uid)
            else:
                self._live.add(command.uid)
                core.add(command)
                reporter.watch(command)
            command = self._poll(0)
        return True

    def _wait(self, core: Core) -> CoreJob | Abort | Shutdown | _Wake | None:
        """The next command, or None when there is a step to run first."""
        if core.has_work():
            return self._poll(_until_due(core))
        command = self._poll(IDLE_DELAY_S)
        while command is None and core.idle_slice():
            command = self._poll(0)
        if command is None:
            self._tell_of_cache()  # as it is after what was saved meanwhile
            command = self._prepare()
        return command or self._queue.get()

    def _prepare(self) -> CoreJob | Abort | Shutdown | _Wake | None:
        """Use a longer quiet, once; returns the command that ends it, if one does."""
        backend = self._require_backend()
        if self._live or self._is_prepared or not isinstance(backend, Prepares):
            return None
        command = self._poll(PREPARE_DELAY_S)
        while command is None and not self._is_prepared:
            self._is_prepared = not _prepares_on(backend)
            command = self._poll(0)
        return command

    def _tell_of_cache(self) -> None:
        if self._cache is not None and (counts := self._cache.news()):
            self.channel.send(CacheTold(self.epoch, counts))

    def _poll(self, timeout: float) -> CoreJob | Abort | Shutdown | _Wake | None:
        try:
            return self._queue.get(timeout > 0, timeout)
        except queue.Empty:
            return None

    # --- main thread: beginning and end

    def _load_backend(self) -> EngineBackend | None:
        self._report_progress(0.0)
        try:
            backend = self._load(self._report_progress)
        except NaiadError as error:
            self.channel.send(LoadFailed(self.epoch, error.code, error.message))
            return None
        except Exception as error:
            logger.exception("loading the engine failed")
            text = f"the engine could not be loaded: {type(error).__name__}: {error}"
            self.channel.send(LoadFailed(self.epoch, InternalError.code, text))
            return None
        if isinstance(backend, RawAccess):
            backend.attach(self.channel, self.epoch)
        self._backend = backend
        self.channel.send(Ready(self.epoch, backend.info))
        return backend

    def _report_progress(self, progress: float) -> None:
        """Tell the front, in steps of a hundredth: loaders call this thousands of times."""
        if progress - self._progress >= 0.01:
            self._progress = progress
            self.channel.send(Loading(self.epoch, progress))

    def _tear_down(self) -> None:
        self.channel.shut()  # first: the front must not wait for a core that cannot be closed
        self._inbox.join()
        self._accepting.close()
        self._embedding.close()
        if self._backend is not None:
            if isinstance(self._backend, Embeds):
                self._backend.close_embedder()
            self._backend.core.close()
            if isinstance(self._backend, CompilesGrammars):
                self._backend.close_grammars()
        self.channel.close()

    # --- inbox thread

    def _read_commands(self) -> None:
        try:
            for command in self.channel.commands():
                if isinstance(command, Shutdown) and self._backend is None:
                    break  # still loading: there is nothing to save
                self._handle(command)
        except OSError:
            logger.info("the front is gone")
        except Exception:
            logger.exception("the inbox failed; the worker ends")
            self._exit_code = EXIT_CRASHED
        if self._end is not None:
            self._end(self._exit_code)
        self._queue.put(Shutdown())

    def _handle(self, command: AnyCommand) -> None:
        match command:
            case Submit():
                self._accepting.submit(command)
            case Abort(uid):
                if not self._accepting.abort(uid):
                    if self._backend is not None:
                        self._backend.core.cancel_hint(uid)
                    self._queue.put(command)
            case Tokenize() | Detokenize():
                self._answer(command)
            case Embed():
                self._embedding.put(command)
            case Shutdown():
                self._shut_down()

    def _shut_down(self) -> None:
        """Let the main thread save and end; go on reading, to see if the front does not wait."""
        self._save_until = time.monotonic() + SAVE_S
        core = self._require_backend().core
        for uid in tuple(self._live):
            core.cancel_hint(uid)  # a long step must not use up the time for saving
        self._queue.put(Shutdown())
        if self._end is not None:
            last_call = threading.Timer(SAVE_S, self._end, [EXIT_OK])
            last_call.daemon = True
            last_call.start()

    def _answer(self, command: Tokenize | Detokenize) -> None:
        try:
            self.channel.send(self._call(command))
        except OSError:
            raise
        except Exception as error:
            self.channel.send(self._call_failed(command.call, error))

    def _call_failed(self, call: int, error: Exception) -> CallFailed:
        failure = deliberate(error)
        return CallFailed(self.epoch, call, failure.code, failure.message, failure.details)

    def _call(self, command: Tokenize | Detokenize) -> Tokenized | Detokenized:
        tokenizer = self._require_backend().tokenizer
        if isinstance(command, Detokenize):
            data = tokenizer.decode(command.ids, special=command.special)
            return Detokenized(self.epoch, command.call, data)
        ids = tokenizer.encode(
            command.text, add_special=command.add_special, parse_special=command.parse_special
        )
        return Tokenized(self.epoch, command.call, ids)

    def _require_backend(self) -> EngineBackend:
        if self._backend is None:
            raise EngineUnavailable("the model is still loading", retry_after=1)
        return self._backend


def _prepares_on(backend: Prepares) -> bool:
    """A part of the work. False: there is no more, or it cannot be done; nobody asked for it."""
    try:
        return backend.prepare()
    except Exception as error:
        logger.warning("requests with a grammar will be refused: %s", error)
        return False


class ForwardLogs(logging.Handler):
    """Sends log records to the front, where they are logged again under the same name."""

    def __init__(self, channel: WorkerChannel, epoch: int) -> None:
        super().__init__()
        self._channel = channel
        self._epoch = epoch

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = LogLine(self._epoch, _level(record.levelno), record.name, self.format(record))
            self._channel.send(line)
        except (OSError, FrameRefused):
            # No front to tell, or a line no frame can carry: standard error is all that is left.
            sys.stderr.write(f"{record.levelname} {record.name}: {record.getMessage()!a}\n")


def _level(number: int) -> str:
    if number >= logging.ERROR:
        return "error"
    if number >= logging.WARNING:
        return "warning"
    return "info" if number >= logging.INFO else "debug"


def _until_due(core: Core) -> float:
    """Seconds until step() has something to do."""
    due = core.next_due() if isinstance(core, Paced) else None
    return 0 if due is None else due - time.monotonic()


def run_in_thread(sock: socket.socket, epoch: int, config: EngineConfig) -> int:
    """Serve `config` on the calling thread until the front closes; the exit code."""
    return Worker(sock, epoch, _loader(config)).run()


def _loader(config: EngineConfig) -> Loader:
    """The engine that the config names, imported only when it is loaded."""

    def load(progress: Callable[[float], None]) -> EngineBackend:
        module = importlib.import_module(ENGINES[config.engine])
        return cast(Loader, module.load(config))(progress)

    return load


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="naiad.engine.worker", description="Started by naiad.")
    parser.add_argument("--fd", type=int, required=True, help="the socket to the front")
    parser.add_argument("--epoch", type=int, required=True)
    parser.add_argument("--config", required=True, help="EngineConfig as JSON")
    parser.add_argument("--log-level", default="INFO")
    return parser.parse_args(argv)


def _yield_to_the_front() -> None:
    """Tell Linux that this process computes in bulk: the front, which wakes for each step, and the
    clients beside it get a processor at once, are soon done, and the step is longer by less.
    """
    if hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):  # some sandboxes forbid it; it is only a hint
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the worker process: `python -m naiad.engine.worker --fd N --epoch E --config JSON`."""
    arguments = _arguments(argv)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C belongs to the front, which ends us
    _yield_to_the_front()
    os.environ["GGML_NO_BACKTRACE"] = "1"  # a failed native assertion must not start a debugger
    config = msgspec.json.decode(arguments.config, type=EngineConfig)
    sock = socket.socket(fileno=arguments.fd)
    sock.set_inheritable(False)
    worker = Worker(sock, arguments.epoch, _loader(config), end=os._exit)
    logging.basicConfig(
        level=arguments.log_level,
        handlers=[ForwardLogs(worker.channel, worker.epoch)],
        format="%(message)s",
    )
    return worker.run()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # native libraries' exit handlers have nothing left to do but crash
