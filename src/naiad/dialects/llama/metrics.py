"""Counters in Prometheus' text format, version 0.0.4.

llama-server's names where it has any, so that its dashboards work; else names of our own. What
cannot be told truly is not there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from naiad.dialects.base import Backend, Call, Raw

MEDIA = "text/plain; version=0.0.4; charset=utf-8"

#: name -> kind, what it means, the counter in service.perf.
_PLAIN = {
    "llamacpp:tokens_predicted_total": (
        "counter",
        "Tokens generated.",
        "total_completion_tokens",
    ),
    "llamacpp:tokens_predicted_seconds_total": (
        "counter",
        "Seconds from the first text of each answer to its end.",
        "total_decode_s",
    ),
    "llamacpp:prompt_seconds_total": (
        "counter",
        "Seconds from the acceptance of each request to its first text, waiting included.",
        "total_prompt_s",
    ),
    "llamacpp:requests_deferred": ("gauge", "Requests that wait for their turn.", "n_queued"),
    "naiad_prompt_tokens_cached_total": (
        "counter",
        "Tokens of prompts that were reused instead of computed.",
        "total_cached_tokens",
    ),
    "naiad_prompt_tokens_waiting": (
        "gauge",
        "Tokens of prompts whose answers have no text yet, about.",
        "n_waiting_tokens",
    ),
    "naiad_cache_states_saved_total": (
        "counter",
        "States (blocks or whole sequences) that were saved, since the engine was started.",
        "cache_n_saved",
    ),
    "naiad_cache_states_lost_total": (
        "counter",
        "States that should have been on disk and were gone or damaged.",
        "cache_n_lost",
    ),
    "naiad_cache_read_bytes_total": (
        "counter",
        "Bytes of states that were read from disk.",
        "cache_n_bytes_from_disk",
    ),
    "naiad_uptime_seconds": ("gauge", "Seconds since the server was started.", "uptime_s"),
}


async def show_metrics(backend: Backend, _call: Call) -> Any:
    """All counters. What is still running counts when it has ended."""
    return Raw("".join(_families(backend.perf())).encode(), MEDIA)


def _families(perf: Mapping[str, Any]) -> Iterator[str]:
    for name, (kind, told, counter) in _PLAIN.items():
        yield _family(name, kind, told, {"": perf[counter]})
    n_computed = perf["total_prompt_tokens"] - perf["total_cached_tokens"]
    yield _family(
        "llamacpp:prompt_tokens_total", "counter", "Prompt tokens computed.", {"": n_computed}
    )
    n_running = perf["n_in_flight"] - perf["n_queued"]
    yield _family("llamacpp:requests_processing", "gauge", "Requests at work.", {"": n_running})
    yield _family(
        "llamacpp:prompt_tokens_seconds",
        "gauge",
        "Prompt tokens computed per second, over all requests, waiting included.",
        {"": _ratio(n_computed, perf["total_prompt_s"])},
    )
    yield _family(
        "llamacpp:predicted_tokens_seconds",
        "gauge",
        "Tokens generated per second of each answer, over all requests.",
        {"": _ratio(perf["total_completion_tokens"], perf["total_decode_s"])},
    )
    yield _family("naiad_requests_total", "counter", "Requests that ended.", _outcomes(perf))
    reused = _tiers(perf["cache_n_from_memory"], perf["cache_n_from_disk"])
    told = "States that prompts were begun with."
    yield _family("naiad_cache_states_reused_total", "counter", told, reused)
    held = _tiers(perf["cache_n_bytes_in_memory"], perf["cache_n_bytes_on_disk"])
    yield _family("naiad_cache_bytes", "gauge", "Bytes of states that are kept.", held)


def _tiers(memory: int, disk: int) -> dict[str, int]:
    return {'{tier="memory"}': memory, '{tier="disk"}': disk}


def _outcomes(perf: Mapping[str, Any]) -> dict[str, int]:
    n_failed, n_cancelled = perf["n_failed"], perf["n_cancelled"]
    counts = {
        "completed": perf["n_generations"] - n_failed - n_cancelled,
        "failed": n_failed,
        "cancelled": n_cancelled,
    }
    return {f'{{outcome="{name}"}}': count for name, count in counts.items()}


def _family(name: str, kind: str, told: str, samples: Mapping[str, float]) -> str:
    lines = [f"# HELP {name} {told}", f"# TYPE {name} {kind}"]
    lines += [f"{name}{labels} {value}" for labels, value in samples.items()]
    return "\n".join(lines) + "\n"


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else 0.0
