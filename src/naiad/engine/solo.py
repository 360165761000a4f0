"""Requests that say the same every time: one at a time, each in a new context on the same weights.

In a batch the last bits of a token's logits depend on what is computed beside it, on how its prompt
was cut into chunks and on what was reused; sooner or later a draw falls on the other side. Here
nothing is shared and nothing varies: an empty context, chunks of one size, a fixed number of
threads. It costs a context's memory while such a request runs, all of its prompt each time, and the
speed of a batch; the other streams go on in theirs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from naiad.engine.base import CoreJob
from naiad.engine.blocks import Store
from naiad.engine.choosing import TokenTable
from naiad.engine.core import CoreLimits, EngineCore
from naiad.engine.draft_model import DraftModel
from naiad.engine.executor import Executor, State
from naiad.engine.journal import Journal
from naiad.engine.lane import Lane
from naiad.engine.queueing import WaitingLine
from naiad.engine.sequence import Sequence
from naiad.errors import NaiadError
from naiad.ipc.messages import ProgressItem, StreamItem
from naiad.types import FinishReason

#: Tokens of a prompt that one step computes.
CHUNK = 128


class SmallCore(Protocol):
    """An engine's core, as far as it is needed here; see naiad.engine.base."""

    def add(self, job: CoreJob) -> None: ...
    def abort(self, uid: int) -> None: ...
    def cancel_hint(self, uid: int) -> None: ...
    def has_work(self) -> bool: ...
    def step(self) -> list[StreamItem]: ...
    def progress(self) -> list[ProgressItem]: ...
    def close(self) -> None: ...


#: A new core for a job, with an empty context of its own. Raises NaiadError.
Make = Callable[[CoreJob], SmallCore]


class _Run:
    """One job in a thread of its own, from its context's beginning to its end."""

    def __init__(self, sequence: Sequence, make: Make, wake: Callable[[], None]) -> None:
        self.sequence = sequence
        self._make = make
        self._wake = wake
        self._lock = threading.Lock()
        # Guarded by the lock:
        self._core: SmallCore | None = None
        self._items: list[StreamItem] = []
        self._progress: list[ProgressItem] = []
        self._is_aborted = False
        self._is_over = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="naiad-solo", daemon=True)
        self._thread.start()

    # -- any thread ------------------------------------------------------------------------------

    def abort(self) -> None:
        with self._lock:
            self._is_aborted = True
        self.hint()

    def hint(self) -> None:
        with self._lock:
            if self._core is not None:
                self._core.cancel_hint(self.sequence.uid)

    @property
    def has_news(self) -> bool:
        with self._lock:
            return bool(self._items) or self._is_over

    @property
    def progress(self) -> list[ProgressItem]:
        with self._lock:
            return self._progress

    def take(self) -> tuple[list[StreamItem], bool]:
        """What it has said since, and whether all of it is over. Raises what its thread died of."""
        with self._lock:
            if self._failure is not None:
                raise self._failure
            items, self._items = self._items, []
            return items, self._is_over

    def join(self) -> None:
        self._thread.join()

    # -- its own ---------------------------------------------------------------------------------

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            self._decode(self.sequence.job)
        except BaseException as error:  # the main thread raises it again
            failure = error
        with self._lock:
            self._failure, self._is_over = failure, True
        self._wake()

    def _decode(self, job: CoreJob) -> None:
        try:
            core = self._make(job)
        except NaiadError as error:
            why = (error.code, error.message)
            self._put([StreamItem(job.uid, 0, [], b"", FinishReason.ERROR, error=why)], [])
            return
        try:
            core.add(job)
            with self._lock:
                self._core = core
            while core.has_work():
                if self._is_aborted:
                    core.abort(job.uid)
                self._put(core.step(), core.progress())
        finally:
            with self._lock:
                self._core = None
            core.close()

    def _put(self, items: list[StreamItem], progress: list[ProgressItem]) -> None:
        with self._lock:
            self._items += items
            self._progress = progress
        self._wake()


class Solo:
    """The jobs that run alone, in the order in which others wait too. Main thread, but for `hint`.

    wake, an attribute: called from a job's thread when `collect` has something.
    """

    def __init__(self, make: Make) -> None:
        self._make = make
        self._line = WaitingLine()
        self._run: _Run | None = None
        self._ended: list[StreamItem] = []
        self.wake: Callable[[], None] = lambda: None

    @property
    def is_running(self) -> bool:
        return self._run is not None

    @property
    def has_news(self) -> bool:
        return bool(self._ended) or (self._run is not None and self._run.has_news)

    def add(self, job: CoreJob) -> None:
        self._line.add(Sequence(job))
        self._start_next()

    def _start_next(self) -> None:
        if self._run is not None or not self._line:
            return
        sequence = self._line.ordered()[0]
        self._line.started(sequence)
        self._run = _Run(sequence, self._make, self._wake)

    def _wake(self) -> None:
        self.wake()  # the one of that moment

    def hint(self, uid: int) -> None:
        """Any thread: that job is about to be aborted."""
        run = self._run
        if run is not None and run.sequence.uid == uid:
            run.hint()

    def abort(self, uid: int) -> None:
        """Drop a job; unknown ones are ignored."""
        if self._run is not None and self._run.sequence.uid == uid:
            self._run.abort()
        for sequence in self._line.ordered():
            if sequence.uid == uid:
                self._line.remove(sequence)
                self._ended.append(StreamItem(uid, 0, [], b"", FinishReason.CANCELLED))

    def collect(self) -> list[StreamItem]:
        """What there is to send; starts the next job when one is over."""
        items, self._ended = self._ended, []
        if self._run is None:
            return items
        said, is_over = self._run.take()
        sequence = self._run.sequence
        sequence.n_sent += sum(len(item.tokens) for item in said)
        if is_over:
            self._line.ended(sequence, sequence.n_prompt + sequence.n_sent)
            self._run = None
            self._start_next()
        return items + said

    def progress(self) -> list[ProgressItem]:
        """As a core's: of those that wait, and of the one that computes its prompt."""
        waiting = [
            ProgressItem(uid=s.uid, position=place + self.is_running, n_done=0, n_total=s.n_prompt)
            for place, s in enumerate(self._line.ordered())
            if s.job.wants_progress
        ]
        return waiting + (self._run.progress if self._run is not None else [])

    def close(self) -> None:
        """Give everything up and wait for the thread. Safe to call twice."""
        self.wake = lambda: None
        if self._run is not None:
            self._run.abort()
            self._run.join()
            self._run = None


class CoreWithSolo(EngineCore):
    """A core for all requests: those that run alone go one way, all others share the pool."""

    def __init__(
        self,
        executor: Executor,
        vocab: TokenTable,
        limits: CoreLimits,
        journal: Journal | None = None,
        lane: Lane | None = None,
        store: Store[State] | None = None,
        draft_model: DraftModel | None = None,
        *,
        solo: Solo,
        share: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """share: called before each step with whether a job runs alone, to divide the processor."""
        super().__init__(executor, vocab, limits, journal, lane, store, draft_model)
        self._solo = solo
        self._share = share

    def add(self, job: CoreJob) -> None:
        if not job.is_deterministic:
            super().add(job)
            return
        self._solo.add(job)
        if self._journal:
            self._journal.job_added(job)

    def abort(self, uid: int) -> None:
        super().abort(uid)  # forgets the hint too
        self._solo.abort(uid)

    def cancel_hint(self, uid: int) -> None:
        super().cancel_hint(uid)
        self._solo.hint(uid)

    def set_waker(self, wake: Callable[[], None]) -> None:
        super().set_waker(wake)
        self._solo.wake = wake

    def has_work(self) -> bool:
        return self._solo.has_news or super().has_work()

    def progress(self) -> list[ProgressItem]:
        return super().progress() + self._solo.progress()

    def step(self) -> list[StreamItem]:
        self._share(self._solo.is_running)
        items = self._solo.collect()
        for item in items:
            self._journal_item(item)
        return items + super().step()

    def close(self) -> None:
        self._solo.close()
        super().close()
