"""How many requests may be in the house: what the engine runs at once, and a bounded queue."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from naiad.errors import Overloaded

_WEIGHT = 0.2  # of the newest duration in the running average
_LONGEST_WAIT_S = 60  # clients stop retrying altogether when told to wait for minutes


class Admission:
    """Counts requests in flight and refuses those beyond the limit.

    max_queue: requests that may wait beyond the `parallel` ones that run; 0 or more.
    """

    def __init__(self, max_queue: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_queue = max_queue
        self._clock = clock
        self._n_in_flight = 0
        self._mean_s = 1.0

    @property
    def n_in_flight(self) -> int:
        """Requests admitted and not yet ended, waiting ones included."""
        return self._n_in_flight

    def n_queued(self, parallel: int) -> int:
        """Requests beyond those that the engine runs at once."""
        return max(0, self._n_in_flight - parallel)

    @contextmanager
    def admit(self, parallel: int) -> Iterator[None]:
        """Hold a place for as long as the context lasts. Raises Overloaded when all are taken."""
        if self._n_in_flight >= parallel + self._max_queue:
            raise Overloaded(
                f"The server is busy; requests in progress or waiting: {self._n_in_flight}. "
                "Try again later.",
                retry_after=self._retry_after(parallel),
            )
        self._n_in_flight += 1
        began = self._clock()
        try:
            yield
        finally:
            self._n_in_flight -= 1
            self._mean_s += _WEIGHT * (self._clock() - began - self._mean_s)

    def _retry_after(self, parallel: int) -> int:
        # A place is free again after about one request's share of the time that all of them take.
        return min(_LONGEST_WAIT_S, max(1, math.ceil(self._mean_s / max(1, parallel))))
