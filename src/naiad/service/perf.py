"""Counters of the whole server; dialects give those that their clients know their own names."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from naiad.types import CacheCounts, Finished

Clock = Callable[[], float]


class Perf:
    """Counts generations and remembers the last one that ended.

    `snapshot` gives, as JSON values:
        uptime_s, idle_s: seconds since the start, and since the last generation ended (0 while one
            is in flight).
        n_generations, n_failed, n_cancelled: ended ones, of which failed or cancelled.
        n_in_flight, n_queued: now; queued are those beyond what the engine runs at once.
        n_waiting_tokens: of prompts whose answers have no text yet, about.
        cache_n_from_memory and so on: the fields of naiad.types.CacheCounts.
        total_prompt_tokens, total_completion_tokens, total_cached_tokens: over all that ended.
        total_prompt_s, total_decode_s: seconds, over all that ended.
        last_prompt_tokens, last_completion_tokens, last_cached_tokens, last_seed,
        last_finish_reason (None before the first): of the last one that ended.
        last_prompt_s, last_decode_s: its seconds up to the first text, and from there to the end.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._born = self._last_end = clock()
        self._counts = dict.fromkeys(("n_generations", "n_failed", "n_cancelled"), 0)
        self._totals: dict[str, float] = dict.fromkeys(_USAGE, 0)
        self._totals |= dict.fromkeys(("prompt_s", "decode_s"), 0.0)
        self._last: dict[str, Any] = {
            **dict.fromkeys((f"last_{name}" for name in _USAGE), 0),
            "last_seed": 0,
            "last_finish_reason": None,
            "last_prompt_s": 0.0,
            "last_decode_s": 0.0,
        }

    def record(self, finished: Finished, seed: int, prompt_s: float, decode_s: float) -> None:
        """Count a generation that reached its end."""
        self._last_end = self._clock()
        self._counts["n_generations"] += 1
        if finished.reason in _COUNTED:
            self._counts[_COUNTED[finished.reason]] += 1
        for name in _USAGE:
            value = getattr(finished.usage, name)
            self._totals[name] += value
            self._last[f"last_{name}"] = value
        self._last["last_seed"] = seed
        self._last["last_finish_reason"] = str(finished.reason)
        self._totals["prompt_s"] += prompt_s
        self._totals["decode_s"] += decode_s
        self._last["last_prompt_s"] = prompt_s
        self._last["last_decode_s"] = decode_s

    def snapshot(
        self,
        n_in_flight: int,
        n_queued: int,
        n_waiting_tokens: int = 0,
        cache: CacheCounts | None = None,
    ) -> dict[str, Any]:
        """All counters, as the class describes them."""
        now = self._clock()
        return {
            "uptime_s": now - self._born,
            "idle_s": 0.0 if n_in_flight else now - self._last_end,
            "n_in_flight": n_in_flight,
            "n_queued": n_queued,
            "n_waiting_tokens": n_waiting_tokens,
            **_prefixed("cache", msgspec.to_builtins(cache or CacheCounts())),
            **self._counts,
            **_prefixed("total", self._totals),
            **self._last,
        }


def _prefixed(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in values.items()}


_USAGE = ("prompt_tokens", "completion_tokens", "cached_tokens")
_COUNTED = {"error": "n_failed", "cancelled": "n_cancelled"}
