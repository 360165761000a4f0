"""Several rounds of the same scenarios made into one report. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from naiad.bench.figures import CURVE, Spread, Summary, percentile


def pool(rounds: Sequence[Sequence[Summary]]) -> list[Summary]:
    """One line for each name, in the order of their first appearance.

    Counts are added up; durations, speeds and figures of one scenario only are the median of the
    rounds; the spreads of times are those of all rounds together.
    """
    groups: dict[str, list[Summary]] = {}
    for lines in rounds:
        for line in lines:
            groups.setdefault(line.name, []).append(line)
    return [_pool_lines(lines) for lines in groups.values()]


def _pool_lines(lines: Sequence[Summary]) -> Summary:
    return Summary(
        name=lines[0].name,
        streams=sum(line.streams for line in lines),
        failed=sum(line.failed for line in lines),
        wrong=sum(line.wrong for line in lines),
        lumped=sum(line.lumped for line in lines),
        tokens=sum(line.tokens for line in lines),
        prompt_tokens=lines[0].prompt_tokens,
        wall_s=round(statistics.median(line.wall_s for line in lines), 4),
        tokens_per_s=round(statistics.median(line.tokens_per_s for line in lines), 2),
        ttft=pool_spreads(line.ttft for line in lines),
        gap=pool_spreads(line.gap for line in lines),
        tail=pool_spreads(line.tail for line in lines),
        errors=tuple(sorted({error for line in lines for error in line.errors}))[:5],
        extra=_pool_extras(lines),
    )


def pool_spreads(spreads: Iterable[Spread | None]) -> Spread | None:
    """The spread of everything together, each round with the same weight; None when none is there.

    The percentiles come from the rounds' curves, since the times themselves are gone by now: they
    are exact for one round, and between the rounds' values for several. p99 is the median of the
    rounds' own, for a curve of every fifth percentile does not hold it.
    """
    known = [spread for spread in spreads if spread is not None]
    if not known:
        return None
    points = sorted(value for spread in known for value in spread.curve or (spread.p50,))
    curve = tuple(round(percentile(points, percent), 3) for percent in CURVE)
    return Spread(
        n=sum(spread.n for spread in known),
        p50=round(percentile(points, 50), 3),
        p99=round(statistics.median(spread.p99 for spread in known), 3),
        max=max(spread.max for spread in known),
        curve=curve,
    )


def _pool_extras(lines: Sequence[Summary]) -> dict[str, float | None]:
    values: dict[str, list[float]] = {}
    for line in lines:
        for name, value in line.extra.items():
            values.setdefault(name, []).extend([] if value is None else [value])
    return {name: round(statistics.median(got), 3) if got else None for name, got in values.items()}
