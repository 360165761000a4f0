"""Ending a running decode early, once all the work in it belongs to cancelled requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from naiad.engine.executor import Executor


class Interrupts:
    """One for each executor. `hint` may be called from any thread."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._lock = threading.Lock()
        self._hinted: set[int] = set()
        self._in_step: set[int] = set()

    def hint(self, uid: int) -> None:
        """uid is about to be aborted."""
        with self._lock:
            self._hinted.add(uid)
            if self._in_step and self._in_step <= self._hinted:
                self._executor.interrupt()

    def forget(self, uid: int) -> None:
        """The abort itself has arrived."""
        with self._lock:
            self._hinted.discard(uid)

    @contextmanager
    def step(self, uids: set[int]) -> Iterator[bool]:
        """Around one decode; yields whether anyone still wants its result."""
        with self._lock:
            self._executor.clear_interrupt()
            self._in_step = uids
            is_wanted = not uids <= self._hinted
        try:
            yield is_wanted
        finally:
            with self._lock:
                self._in_step = set()
