"""What one key may ask of the server: requests at a time, and requests in a minute.

Overload concerns everybody and is a 503; these limits concern one key and are a 429. Callers
without a key are told apart by their machine. Administrators have no limits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from naiad.errors import RateLimited
from naiad.types import Caller

_MINUTE_S = 60.0
_BUSY_RETRY_S = 1  # a place is free as soon as any of the key's own requests ends
_MOST_KEYS = 10_000  # remembered; more would be somebody making them up


class KeyLimits:
    """Counts by key.

    max_in_flight: requests of one key that may run or wait; 0 for no limit.
    per_minute: requests of one key that may begin in a minute: a bucket of that many, refilled
        evenly; 0 for no limit.
    """

    def __init__(
        self,
        max_in_flight: int = 0,
        per_minute: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_in_flight = max_in_flight
        self._per_minute = per_minute
        self._clock = clock
        self._in_flight: dict[str, int] = {}
        self._spent: dict[str, tuple[float, float]] = {}  # missing in the bucket, as of when

    def check(self, caller: Caller) -> None:
        """Raises RateLimited when a request of this caller cannot begin now."""
        if caller.is_admin:
            return
        key = _key_of(caller)
        n_in_flight = self._in_flight.get(key, 0)
        if self._max_in_flight and n_in_flight >= self._max_in_flight:
            raise RateLimited(
                f"This key has {n_in_flight} requests in progress or waiting, and may have "
                f"{self._max_in_flight}.",
                retry_after=_BUSY_RETRY_S,
                limit_requests=self._max_in_flight,
            )
        missing = self._missing(key)
        if self._per_minute and missing > self._per_minute - 1:
            wait_s = (missing - self._per_minute + 1) * _MINUTE_S / self._per_minute
            raise RateLimited(
                f"This key may send {self._per_minute} requests a minute.",
                retry_after=max(1, math.ceil(wait_s)),
                limit_requests=self._per_minute,
            )

    @contextmanager
    def enter(self, caller: Caller) -> Iterator[None]:
        """Count a request for as long as the context lasts. Raises RateLimited."""
        self.check(caller)
        if caller.is_admin:
            yield
            return
        key = _key_of(caller)
        self._spend(key)
        self._in_flight[key] = self._in_flight.get(key, 0) + 1
        try:
            yield
        finally:
            self._in_flight[key] -= 1
            if not self._in_flight[key]:
                del self._in_flight[key]

    def _missing(self, key: str) -> float:
        missing, since = self._spent.get(key, (0.0, 0.0))
        return max(0.0, missing - (self._clock() - since) * self._per_minute / _MINUTE_S)

    def _spend(self, key: str) -> None:
        if not self._per_minute:
            return
        if len(self._spent) >= _MOST_KEYS:
            self._spent = {one: spent for one, spent in self._spent.items() if self._missing(one)}
        self._spent[key] = (self._missing(key) + 1, self._clock())


def _key_of(caller: Caller) -> str:
    return caller.namespace or caller.identity
