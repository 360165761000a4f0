"""When to start a new worker after one has died, and when to give up. No I/O, no clock."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartLimits:
    """Seconds, but for max_deaths: so many deaths within the window and no restart follows."""

    delays_s: tuple[float, ...] = (0, 1, 2, 4, 8, 16, 30)  # the last one repeats
    healthy_s: float = 60  # a worker ready for this long starts the delays afresh
    max_deaths: int = 5
    window_s: float = 600


class RestartPolicy:
    """Counts deaths; all times are seconds of one monotonic clock, given by the caller."""

    def __init__(self, limits: RestartLimits) -> None:
        self._limits = limits
        self._deaths: deque[float] = deque()
        self._in_a_row = 0

    def died(self, now: float, ready_at: float | None) -> float:
        """A worker died that was ready since `ready_at` (None: never). The delay before the next.

        Infinite when there shall be no next one: too many have died within the window.
        """
        limits = self._limits
        self._deaths.append(now)
        while self._deaths[0] <= now - limits.window_s:
            self._deaths.popleft()
        if len(self._deaths) >= limits.max_deaths:
            return math.inf
        if ready_at is not None and now - ready_at >= limits.healthy_s:
            self._in_a_row = 0
        delay = limits.delays_s[min(self._in_a_row, len(limits.delays_s) - 1)]
        self._in_a_row += 1
        return delay
