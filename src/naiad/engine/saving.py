"""A worker's last act: what it has computed is kept for the next one."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from naiad.engine.base import EngineBackend


@runtime_checkable
class Persistent(Protocol):
    """A backend that keeps finished work beyond its own life."""

    def flush(self, timeout_s: float) -> bool:
        """Write what is not written yet, for at most so long. True: all of it is."""
        ...


def save(backend: EngineBackend, live: Iterable[int], until: float) -> None:
    """Keep what the next worker can use, as far as there is time.

    live: uids of the jobs that still run; they are ended. until: a time.monotonic().
    """
    core = backend.core
    for uid in live:
        core.abort(uid)
    while core.has_work() and time.monotonic() < until:
        core.step()  # nobody waits for what it says: the front has ended these streams
    while time.monotonic() < until and core.idle_slice():
        continue
    if isinstance(backend, Persistent):
        backend.flush(until - time.monotonic())
