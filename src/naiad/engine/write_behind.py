"""Work behind the engine's back: where no processor is wanted by others, but done in time.

A decode has a thread on each processor and all wait for the one that was interrupted, so this work
first waits a little, since a client's next request often comes at once, and then runs only where
nobody else wants to. On a busy machine that may be nowhere, and a thread that has given way cannot
take it back without privileges: then another thread takes over, with equal rights but a pause after
each job, so that the last one is done in time and no step of the engine meets more than one.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable

from naiad.native.threads import give_way

#: Seconds after the first job: until any is begun; until jobs are no longer left to a thread that
#: gives way. Seconds after each job until it is to be done.
REST_S, PATIENT_S, WITHIN_S = 1.0, 2.5, 4.0


class WriteBehind:
    """Jobs, done one after another in the order in which they came.

    Args:
        do: carries out a job. One that was begun by a thread that got no processor is carried out
            again by another; the first may come to its end much later.
        prepare: called before each job, and once when there is none left.
        fail: told what `do` raised, and that no thread could be started.
    """

    def __init__(
        self,
        do: Callable[[bytes], None],
        prepare: Callable[[], None],
        fail: Callable[[Exception], None],
    ) -> None:
        self._do = do
        self._prepare = prepare
        self._fail = fail
        self._changed = threading.Condition()  # over all below
        self._jobs: deque[tuple[bytes, float]] = deque()  # each with when it came
        self._in_hand: tuple[bytes, float] | None = None
        self._writer: threading.Thread | None = None  # lives while there is something to do
        self._at_work: threading.Thread | None = None  # it, or the one that gives way
        self._is_hurried = False  # somebody waits until all is done
        self._began = 0.0

    def add(self, job: bytes) -> None:
        with self._changed:
            self._jobs.append((job, time.monotonic()))
        self.start()

    def start(self) -> None:
        """Let `prepare` be called soon, whether or not there is a job."""
        with self._changed:
            if self._writer is not None:
                return
            writer = threading.Thread(target=self._run, name="naiad-disk", daemon=True)
            self._began = time.monotonic()
            try:
                writer.start()
            except RuntimeError as error:  # no more threads
                failure = error
            else:
                self._writer = writer
                return
        self._fail(failure)

    def finish(self, timeout_s: float) -> bool:
        """Do all of it now, and wait for that at most so long. False: not all of it is done."""
        with self._changed:
            self._is_hurried = self._writer is not None
            self._changed.notify_all()
            return self._wait(lambda: self._writer is None, timeout_s)

    def wait(self, timeout_s: float) -> bool:
        """Wait at most so long until all is done in its own time. False: not all of it is."""
        with self._changed:
            return self._wait(lambda: self._writer is None, timeout_s)

    def _wait(self, until: Callable[[], bool], timeout_s: float) -> bool:
        return self._changed.wait_for(until, max(timeout_s, 0))

    # -- the threads -----------------------------------------------------------------------------

    def _run(self) -> None:
        with self._changed:
            self._wait(lambda: self._is_hurried, REST_S)
            self._leave_to_another()
            self._at_work = threading.current_thread()
            if self._in_hand is not None:  # the other one is stuck in it
                self._jobs.appendleft(self._in_hand)
        self._work()

    def _leave_to_another(self) -> None:
        """Let a thread that gives way do all of it, if it can and there is time."""
        patient = threading.Thread(target=self._give_way, name="naiad-disk-idle", daemon=True)
        left_s = self._began + PATIENT_S - time.monotonic()
        if self._is_hurried or left_s <= 0:
            return
        with contextlib.suppress(RuntimeError):  # no more threads: then the writer does it
            self._at_work = patient
            patient.start()
            self._wait(lambda: self._is_hurried or self._at_work is not patient, left_s)

    def _give_way(self) -> None:
        give_way()
        self._work()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._do(job)
            except Exception as error:
                if self._is_at_work():  # or it says nothing of what another did meanwhile
                    self._fail(error)
            self._pause()

    def _is_at_work(self) -> bool:
        with self._changed:
            return self._at_work is threading.current_thread()

    def _next(self) -> bytes | None:
        """None when there is nothing left, or for a thread whose place was taken."""
        self._prepare()
        me = threading.current_thread()
        with self._changed:
            if self._at_work is not me:
                return None
            self._in_hand = self._jobs.popleft() if self._jobs else None
            if self._in_hand is None:
                self._at_work = None
                if self._writer is me:
                    self._writer, self._is_hurried = None, False
                self._changed.notify_all()
                return None
            return self._in_hand[0]

    def _pause(self) -> None:
        """Of a thread with equal rights: what is left is spread over the time each has left."""
        with self._changed:
            if self._jobs and self._writer is threading.current_thread():
                due = [came + WITHIN_S - time.monotonic() for _, came in self._jobs]
                pause_s = min(left_s / (i + 1) for i, left_s in enumerate(due))
                self._wait(lambda: self._is_hurried, pause_s)
