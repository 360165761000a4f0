"""An engine behind a socket: takes jobs, and replaces its worker when that dies.

One task, `_supervise`, runs one worker after another. A worker's death is the end of its socket,
seen at once: every open stream is ended with an error, the process is reaped, and the next worker
is started after the delay that `RestartPolicy` gives. What a worker sends is handled within the
read of its socket; no task stands between the engine's step and a stream's mailbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import time

import msgspec

from naiad.client.base import EngineState, EngineStatus, Job
from naiad.client.link import Death, Link
from naiad.client.restart import RestartLimits, RestartPolicy
from naiad.client.spawn import Launch
from naiad.client.stream import Stream
from naiad.client.table import StreamTable
from naiad.config import EngineConfig
from naiad.errors import (
    EngineFailed,
    EngineUnavailable,
    InvalidRequest,
    ModelFileError,
    NaiadError,
)
from naiad.ipc.channel import FrameRefused
from naiad.ipc.messages import Abort, Submit
from naiad.types import CacheCounts, EmbeddedText, ModelInfo

logger = logging.getLogger(__name__)

#: How long a worker that was told to end may take to do so, seconds. It saves for up to 3.
CLOSE_S = 4.0

#: Deaths that a processor's fast path is known to cause, when they come before Ready.
_CRASHES = {-signal.SIGSEGV, -signal.SIGILL, -signal.SIGBUS, -signal.SIGABRT}
#: What a worker reports as LoadFailed when its fast path computes nonsense.
_SELFTEST_FAILED = "engine_selftest"


class SocketEngine:
    """The EngineClient over workers that `launch` starts.

    Args:
        config: the engine to load. With `extra_buffers`, a worker that dies of the processor's
            fast path while it loads is replaced, once and at once, by one without.
        launch: starts one worker.
        limits: the delays between restarts, and when to give up.
    """

    def __init__(
        self, config: EngineConfig, launch: Launch, *, limits: RestartLimits | None = None
    ) -> None:
        self._config = config
        self._launch = launch
        self._policy = RestartPolicy(limits or RestartLimits())
        self._table = StreamTable(self._send_abort)
        self._link: Link | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._wanted = asyncio.Event()  # cleared while the model is unloaded
        self._wanted.set()
        self._changed = asyncio.Event()
        self._state = EngineState.STARTING
        self._reason = "the model is loading"
        self._failure: NaiadError | None = None
        self._retry_after = 1
        self._epoch = 0
        self._n_reloads = 0
        self._patience: asyncio.TimerHandle | None = None  # with a worker that was told to end
        self._model: ModelInfo | None = None  # the last that was ready, kept through restarts

    # --- the five verbs and the status

    @property
    def status(self) -> EngineStatus:
        """A snapshot, for /health."""
        link = self._link
        return EngineStatus(
            state=self._state,
            reason=self._reason,
            progress=link.progress if link and not link.is_ending else 0.0,
            restarts=max(0, self._epoch - 1 - self._n_reloads),
            integrity_violations=self._table.violations,
            model=self._model,
            cache=link.cache if link else CacheCounts(),
        )

    @property
    def worker_pid(self) -> int | None:
        """The worker's process id; None when there is none, or it is no process."""
        handle = self._link.handle if self._link else None
        return handle.pid if handle else None

    @property
    def num_open(self) -> int:
        """Streams that have not ended, here or at the worker."""
        return self._table.n_open + self._table.n_tombstones

    async def start(self) -> None:
        """Start the first worker. Raises RuntimeError when called twice or after close()."""
        if self._supervisor is not None or self._closing.is_set():
            raise RuntimeError("an engine is started once")
        self._supervisor = asyncio.create_task(self._supervise(), name="naiad-supervisor")

    async def wait_ready(self) -> ModelInfo:
        """Wait for the model. Raises ModelFileError, or EngineUnavailable when given up."""
        while self._state in {EngineState.STARTING, EngineState.RESTARTING}:
            await self._changed.wait()
        if self._failure is not None:
            raise type(self._failure)(self._failure.message, **self._failure.details)
        self._require_ready()
        assert self._model is not None
        return self._model

    async def submit(self, job: Job) -> Stream:
        """See EngineClient.submit."""
        link = self._require_ready()
        stream = self._table.open(job, asyncio.get_running_loop().create_future())
        prompt = job.prompt if isinstance(job.prompt, str) else list(job.prompt)
        try:
            link.send(
                Submit(
                    stream.uid,
                    prompt,
                    job.max_tokens,
                    job.sampling,
                    job.namespace,
                    job.priority,
                    job.caller,
                    job.wants_progress,
                    job.shift_at_limit,
                    job.grammar,
                    trim=job.trim,
                    shown=None if job.shown is None else list(job.shown),
                    reasoning=job.reasoning,
                    is_deterministic=job.is_deterministic,
                )
            )
        except FrameRefused as error:
            self._table.forget(stream.uid)
            raise InvalidRequest(f"the prompt cannot be sent to the engine: {error}") from None
        try:
            return await stream.accepted
        except asyncio.CancelledError:
            self.abort(stream.uid)
            if not stream.accepted.cancelled():
                stream.accepted.exception()  # a refusal in the same turn: nobody is left to hear it
            raise

    def abort(self, uid: int) -> None:
        """End the stream as cancelled, here at once and at the worker within a step.

        What the worker still sends for it is dropped. Unknown or finished uids are no error.
        """
        self._table.abort(uid)

    async def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """See EngineClient.tokenize. Raises EngineUnavailable."""
        return await self._require_ready().tokenize(text, add_special, parse_special)

    async def detokenize(self, ids: list[int], *, special: bool = True) -> bytes:
        """See EngineClient.detokenize. Raises EngineUnavailable, InvalidRequest."""
        return await self._require_ready().detokenize(ids, special)

    async def embed(self, prompt: str | tuple[int, ...]) -> EmbeddedText:
        """See EngineClient.embed."""
        return await self._require_ready().embed(prompt)

    def unload(self) -> None:
        """See EngineClient.unload; a worker that does not end within 4 s is killed."""
        if self._state is not EngineState.READY or self._link is None:
            return
        self._wanted.clear()
        self._set_state(EngineState.UNLOADED, "the model was unloaded; a request loads it again")
        self._fail_streams(EngineUnavailable, "the model was unloaded")
        self._link.shut_down()
        self._patience = asyncio.get_running_loop().call_later(CLOSE_S, self._link.kill)

    def load(self) -> None:
        """See EngineClient.load."""
        if self._state is not EngineState.UNLOADED:
            return
        self._failure = None
        self._n_reloads += 1
        self._set_state(EngineState.STARTING, "the model is loading")
        self._wanted.set()

    def next_change(self) -> asyncio.Event:
        """See EngineClient.next_change."""
        return self._changed

    async def close(self) -> None:
        """End every stream with an error and stop the worker: politely, and after 4 s by force."""
        if not self._closing.is_set():
            self._closing.set()
            self._wanted.set()
            self._set_state(EngineState.STOPPED, "the server is shutting down")
            self._fail_streams(EngineUnavailable, "the server is shutting down")
            if self._link is not None:
                self._link.shut_down()
        if self._supervisor is not None:
            await asyncio.wait({self._supervisor}, timeout=CLOSE_S)
            if self._link is not None:
                self._link.kill()
            await self._supervisor

    # --- one worker after another

    async def _supervise(self) -> None:
        try:
            delay = 0.0
            while delay < math.inf and not await self._closes_within(delay):
                delay = self._after(await self._run_worker())
                await self._wanted.wait()
        except Exception as error:
            logger.exception("the supervisor failed")
            self._give_up(EngineUnavailable(f"the engine cannot be supervised: {error}"))

    async def _closes_within(self, delay: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), delay)
        return self._closing.is_set()

    async def _run_worker(self) -> Death:
        self._epoch += 1
        self._link = Link(self._epoch, self._table, self._on_news)
        death = await self._link.run(self._config, self._launch)
        message = f"the engine stopped ({death.how}) while it worked on this request"
        self._fail_streams(EngineFailed, message)
        self._table.forget_tombstones()
        return death

    def _after(self, death: Death) -> float:
        """What follows a death: the delay before the next worker, infinite for none."""
        if self._patience is not None:
            self._patience.cancel()
        if self._closing.is_set():
            return math.inf
        if self._link is not None and self._link.is_ending:
            logger.info("the model was unloaded; worker %d ended (%s)", self._epoch, death.how)
            return 0
        failure = death.load_failure
        if self._config.extra_buffers is not False and _is_fast_path_fault(death):
            self._config = msgspec.structs.replace(self._config, extra_buffers=False)
            logger.warning(
                "the processor's fast path failed while the model was loading (%s); "
                "starting again without it: answers are the same, but slower",
                failure.message if failure else death.how,
            )
            self._set_state(EngineState.RESTARTING, "starting again without the fast path")
            return 0
        if failure is not None:
            return self._cannot_load(ModelFileError(failure.message))
        return self._restart_delay(death)

    def _cannot_load(self, failure: ModelFileError) -> float:
        """The first load decides; a later one may fail only for now (memory, a lost disk)."""
        if self._state is EngineState.STARTING and self._model is not None:
            logger.error("the model cannot be loaded again: %s", failure.message)
            self._failure = failure
            self._wanted.clear()
            self._set_state(EngineState.UNLOADED, f"it could not be loaded: {failure.message}")
            return 0
        self._give_up(failure)
        return math.inf

    def _restart_delay(self, death: Death) -> float:
        delay = self._policy.died(time.monotonic(), death.ready_at)
        if delay == math.inf:
            self._give_up(
                EngineUnavailable(
                    f"the engine stopped too often ({death.how}, the last time); "
                    "see the log, then start the server again",
                    retry_after=60,
                )
            )
            return delay
        logger.error(
            "worker %d stopped (%s); the next starts in %g s", self._epoch, death.how, delay
        )
        self._retry_after = 1 + math.ceil(delay)
        self._set_state(EngineState.RESTARTING, f"the engine stopped ({death.how})")
        return delay

    def _give_up(self, failure: NaiadError) -> None:
        # One that never was ready is told of by `wait_ready`, and once is enough.
        level = logging.DEBUG if self._model is None else logging.ERROR
        logger.log(level, "no engine: %s", failure.message)
        self._failure = failure
        self._retry_after = 60
        self._set_state(EngineState.FAILED, failure.message)
        self._fail_streams(EngineFailed, failure.message)

    # --- state

    def _on_news(self) -> None:
        """The worker's progress, its Ready, or its loss."""
        if self._link is None or self._closing.is_set():
            return
        if self._link.is_lost:
            if self._state is EngineState.READY:
                self._set_state(EngineState.RESTARTING, "the engine stopped")
        elif self._link.model is not None:
            self._model = self._link.model
            self._retry_after = 1
            self._set_state(EngineState.READY, "")
        else:
            self._tell()

    def _set_state(self, state: EngineState, reason: str) -> None:
        self._state = state
        self._reason = reason
        self._tell()

    def _tell(self) -> None:
        self._changed.set()  # wakes those who wait now
        self._changed = asyncio.Event()

    def _require_ready(self) -> Link:
        if self._state is EngineState.READY and self._link is not None:
            return self._link
        raise EngineUnavailable(
            f"there is no engine to run this now: {self._reason}", retry_after=self._retry_after
        )

    def _fail_streams(self, kind: type[NaiadError], message: str) -> None:
        """End every open stream; one that was not accepted yet was never begun."""
        self._table.fail_all(
            lambda stream: (
                kind(message)
                if stream.is_accepted
                else EngineUnavailable(message, retry_after=self._retry_after)
            )
        )

    def _send_abort(self, uid: int) -> None:
        if self._link is not None:
            self._link.send(Abort(uid))


def _is_fast_path_fault(death: Death) -> bool:
    """Did the worker die of, or report, what the processor's fast path is known to do?"""
    if death.load_failure is not None:
        return death.load_failure.code == _SELFTEST_FAILED
    return death.ready_at is None and death.exit_code in _CRASHES
