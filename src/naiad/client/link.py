"""One worker, from its start to its reaping: the connection, its calls, and how it ended."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from naiad.client.spawn import Launch, WorkerHandle
from naiad.client.table import StreamTable
from naiad.config import EngineConfig
from naiad.errors import EngineUnavailable, InvalidRequest, from_code
from naiad.ipc.channel import FrameRefused, FrontChannel
from naiad.ipc.messages import (
    Accepted,
    AnyCommand,
    AnyEvent,
    CacheTold,
    CallFailed,
    Detokenize,
    Detokenized,
    Embed,
    Embedded,
    Event,
    LoadFailed,
    Loading,
    LogLine,
    Progressed,
    Ready,
    Refused,
    Shutdown,
    StepDone,
    Tokenize,
    Tokenized,
)
from naiad.types import CacheCounts, EmbeddedText, ModelInfo

logger = logging.getLogger(__name__)

#: How long a worker that has closed its socket may take to end, seconds.
REAP_S = 0.5

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


@dataclass(frozen=True, slots=True)
class Death:
    """How a worker ended.

    how: for people, e.g. "signal 9"; exit_code: as in subprocess, None when it never started.
    ready_at: time.monotonic() of its Ready, None if it never was.
    """

    how: str
    exit_code: int | None = None
    ready_at: float | None = None
    load_failure: LoadFailed | None = None


class Link:
    """The front's end of one worker.

    Args:
        epoch: which worker this is; events of any other are refused.
        table: takes the events that belong to streams.
        on_news: called when progress or model changed, and when the worker is lost.

    Attributes:
        progress: of the model load, 0 to 1.
        model: set by Ready.
        cache: what the worker told of its cache last; all zeros before.
        is_lost: the socket has ended; nothing can be sent or will come.
    """

    def __init__(self, epoch: int, table: StreamTable, on_news: Callable[[], None]) -> None:
        self.epoch = epoch
        self.progress = 0.0
        self.model: ModelInfo | None = None
        self.cache = CacheCounts()
        self.handle: WorkerHandle | None = None
        self._table = table
        self._on_news = on_news
        self._channel = FrontChannel(self._on_event, self._on_lost)
        self._lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._ready_at: float | None = None
        self._load_failure: LoadFailed | None = None
        self._is_shutting_down = False
        self._call_numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            StepDone: table.step_done,
            Progressed: table.progressed,
            CacheTold: self._on_cache_told,
            Accepted: table.accepted,
            Refused: table.refused,
            Loading: self._on_loading,
            Ready: self._on_ready,
            LoadFailed: self._on_load_failed,
            Tokenized: lambda event: self._on_answer(event.call, event.ids),
            Detokenized: lambda event: self._on_answer(event.call, event.data),
            Embedded: lambda event: self._on_answer(
                event.call, EmbeddedText(event.vector, event.n_tokens)
            ),
            CallFailed: self._on_call_failed,
            LogLine: _log_line,
        }

    @property
    def is_lost(self) -> bool:
        return self._lost.done()

    @property
    def is_ending(self) -> bool:
        """It was told to end."""
        return self._is_shutting_down

    async def run(self, config: EngineConfig, launch: Launch) -> Death:
        """Start the worker, serve it until its socket ends, and reap it."""
        try:
            self.handle = await launch(config, self.epoch)
        except OSError as error:
            self._on_lost(error)
            return Death(f"it cannot be started: {error}")
        try:
            return await self._serve(self.handle)
        except BaseException:
            self.handle.kill()
            raise

    def send(self, command: AnyCommand) -> None:
        """Write a command; a worker that is gone is no error. Raises FrameRefused."""
        if not self.is_lost:
            self._channel.send(command)

    async def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """See EngineClient."""
        number = next(self._call_numbers)
        ids: list[int] = await self._call(Tokenize(number, text, add_special, parse_special))
        return ids

    async def detokenize(self, ids: list[int], special: bool) -> bytes:
        """See EngineClient."""
        data: bytes = await self._call(Detokenize(next(self._call_numbers), ids, special))
        return data

    async def embed(self, prompt: str | tuple[int, ...]) -> EmbeddedText:
        """See EngineClient."""
        sent = prompt if isinstance(prompt, str) else list(prompt)
        found: EmbeddedText = await self._call(Embed(next(self._call_numbers), sent))
        return found

    def shut_down(self) -> None:
        """Tell the worker to end, now or as soon as it is connected."""
        self._is_shutting_down = True
        self.send(Shutdown())

    def kill(self) -> None:
        """End the worker by force, if it has been started."""
        if self.handle is not None:
            self.handle.kill()

    async def _serve(self, handle: WorkerHandle) -> Death:
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self._channel, sock=handle.sock)
        if self._is_shutting_down:
            self.send(Shutdown())
        fault = await self._lost
        if fault is not None and not isinstance(fault, OSError):
            logger.error("worker %d sent what is no message: %s", self.epoch, fault)
            handle.kill()
        code = await handle.reap(REAP_S)
        return Death(_describe_exit(code), code, self._ready_at, self._load_failure)

    async def _call(self, command: Tokenize | Detokenize | Embed) -> Any:
        answer = asyncio.get_running_loop().create_future()
        self._calls[command.call] = answer
        try:
            self.send(command)
            return await answer
        except FrameRefused as error:
            raise InvalidRequest(f"the text cannot be sent to the engine: {error}") from None
        finally:
            del self._calls[command.call]

    # --- events

    def _on_event(self, event: AnyEvent) -> None:
        if event.epoch == self.epoch:
            self._handlers[type(event)](event)
        else:
            self._table.wrong_epoch(event, self.epoch)

    def _on_lost(self, fault: Exception | None) -> None:
        if not self._lost.done():
            self._lost.set_result(fault)
        for call in self._calls.values():
            if not call.done():
                call.set_exception(EngineUnavailable("the engine stopped", retry_after=1))
        self._on_news()

    def _on_loading(self, event: Loading) -> None:
        self.progress = event.progress
        self._on_news()

    def _on_ready(self, event: Ready) -> None:
        self.progress = 1.0
        self.model = event.model
        self._ready_at = time.monotonic()
        self._on_news()

    def _on_cache_told(self, event: CacheTold) -> None:
        self.cache = event.counts

    def _on_load_failed(self, event: LoadFailed) -> None:
        self._load_failure = event

    def _on_answer(self, number: int, answer: object) -> None:
        call = self._calls.get(number)  # None when the caller has gone away meanwhile
        if call is not None and not call.done():
            call.set_result(answer)

    def _on_call_failed(self, event: CallFailed) -> None:
        call = self._calls.get(event.call)
        if call is not None and not call.done():
            call.set_exception(from_code(event.code, event.message, event.details))


def _log_line(event: LogLine) -> None:
    logging.getLogger(event.logger).log(_LEVELS.get(event.level, logging.INFO), "%s", event.text)


def _describe_exit(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
