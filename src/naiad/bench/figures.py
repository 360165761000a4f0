"""Statistics over streams. Pure; times go in as seconds and come out as milliseconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from naiad.bench.results import StreamResult, lumped_streams, stale_streams


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear interpolation between the closest ranks. `values` need not be sorted, nor empty.

    Raises:
        ValueError: there are no values, or `percent` is outside 0 to 100.
    """
    if not values or not 0 <= percent <= 100:
        raise ValueError("percentile needs values and a percent from 0 to 100")
    ranked = sorted(values)
    place = (len(ranked) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ranked) - 1)
    return ranked[below] + (ranked[above] - ranked[below]) * (place - below)


#: The percentiles that make up a curve.
CURVE = tuple(range(0, 101, 5))


@dataclass(frozen=True, slots=True)
class Spread:
    """How a set of times is spread, in milliseconds; n is how many there are.

    curve: the percentiles of CURVE, which is enough to draw the distribution.
    """

    n: int
    p50: float
    p99: float
    max: float
    curve: tuple[float, ...] = ()


def spread(seconds: Iterable[float | None]) -> Spread | None:
    """The spread of the times that are there; None when none are."""
    known = sorted(1000.0 * value for value in seconds if value is not None)
    if not known:
        return None
    return Spread(
        n=len(known),
        p50=round(percentile(known, 50), 3),
        p99=round(percentile(known, 99), 3),
        max=round(max(known), 3),
        curve=tuple(round(percentile(known, percent), 3) for percent in CURVE),
    )


@dataclass(frozen=True, slots=True)
class Summary:
    """One line of the report.

    failed: streams that ended in an error, were cut off or said nothing; wrong: streams that
    carried another request's text; lumped: answers that came in one event.
    tokens_per_s: all tokens over the whole time, prompts included; times are milliseconds.
    extra: figures of one scenario only, by name.
    """

    name: str
    streams: int
    failed: int
    wrong: int
    lumped: int
    tokens: int
    prompt_tokens: int | None
    wall_s: float
    tokens_per_s: float
    ttft: Spread | None
    gap: Spread | None
    tail: Spread | None
    errors: tuple[str, ...] = ()
    extra: dict[str, float | None] = field(default_factory=dict)


def summarize(
    name: str,
    results: Sequence[StreamResult],
    *,
    markers: Sequence[str] | None = None,
    extra: dict[str, float | None] | None = None,
) -> Summary:
    """Fold the streams of one scenario, or of one step of it, into a line. Needs at least one."""
    wall = max(r.ended_at for r in results) - min(r.started_at for r in results)
    tokens = sum(r.n_tokens for r in results)
    errors = [r.error for r in results if r.error is not None]
    return Summary(
        name=name,
        streams=len(results),
        failed=len(errors),
        wrong=stale_streams(results, markers) if markers is not None else 0,
        lumped=lumped_streams(results),
        tokens=tokens,
        prompt_tokens=results[0].n_prompt,
        wall_s=round(wall, 4),
        tokens_per_s=round(tokens / wall, 2) if wall > 0 else 0.0,
        ttft=spread(r.ttft for r in results),
        gap=spread(gap for r in results for gap in r.gaps),
        tail=spread(r.tail for r in results),
        errors=tuple(sorted(set(errors)))[:5],
        extra=extra or {},
    )


def handovers(results: Sequence[StreamResult]) -> list[float]:
    """Seconds from the last text of each stream to the first text of the next one."""
    spoken = [r.event_times for r in results if r.event_times]
    return [later[0] - earlier[-1] for earlier, later in pairwise(spoken)]


def gaps_between(results: Sequence[StreamResult], start: float, end: float) -> list[float]:
    """Every gap of any stream that overlaps the time from start to end."""
    return [
        later - earlier
        for result in results
        for earlier, later in pairwise(result.event_times)
        if later > start and earlier < end
    ]


def running_at(results: Sequence[StreamResult], at: float) -> int:
    """How many streams had text before `at` and text after it."""
    return sum(bool(r.event_times) and r.event_times[0] <= at <= r.event_times[-1] for r in results)


def cached_share(results: Sequence[StreamResult]) -> float | None:
    """Which share of the prompts' tokens the server had computed before, by its own count."""
    known = [(r.n_cached, r.n_prompt) for r in results if r.n_cached is not None and r.n_prompt]
    if not known:
        return None
    return round(sum(cached for cached, _ in known) / sum(n for _, n in known), 4)


def ratio(of: float | None, over: float | None) -> float | None:
    """One figure over another, or None where there is none or the second is 0."""
    return round(of / over, 3) if of is not None and over else None


def ttft_ratio(of: Summary, over: Summary) -> float | None:
    """The median time to first token of one line over another's."""
    return ratio(of.ttft.p50 if of.ttft else None, over.ttft.p50 if over.ttft else None)
