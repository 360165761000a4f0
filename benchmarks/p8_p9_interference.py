"""P8, P9: a long prompt arrives while four streams run: their longest gap, its time to first token.

The gap is the longest of any running stream between the newcomer's start and its first token; the
newcomer's time is set against that of such a prompt alone on the same server. Both are medians of
the rounds. All four must still run when the newcomer's first token comes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence

from common import Figure, Server, conclude, must_be_right, options, parse, run, serve, starter

from naiad.bench.figures import Summary
from naiad.bench.load import Sizes
from naiad.bench.scenarios import concurrent, interference

#: Where a step of the running streams is longer, so may be their gaps.
GAP_MS, GAP_STEPS = 200.0, 16


def measure(server: Server, sizes: Sizes, rounds: int) -> list[Sequence[Summary]]:
    """The scenario's lines of each round, after some streams that are not counted."""
    client = server.client()
    run(concurrent(client, Sizes(concurrency=(sizes.running,), tokens=16)))
    return [
        [must_be_right(line) for line in run(interference(client, sizes))] for _ in range(rounds)
    ]


def figures_of(rounds: Sequence[Sequence[Summary]], running: int) -> list[Figure]:
    """Each round is the newcomer alone, the newcomer beside the others, and those others."""

    def median(line: int, name: str) -> float:
        values = [got[line].extra[name] for got in rounds]
        return statistics.median(value for value in values if value is not None)

    still = min(got[2].extra["running_at_its_first_token"] or 0 for got in rounds)
    if still < running:
        raise SystemExit(f"only {still:g} of {running} streams still ran: nothing was measured")
    step = median(2, "gap_before_p50")
    bar = max(GAP_MS, GAP_STEPS * step)
    gap = median(2, "gap_during_max")
    return [
        Figure("P8 longest gap of the running streams", gap, "ms", bar, bar / 2),
        Figure(
            "P9 newcomer's TTFT over its TTFT alone", median(1, "ttft_over_alone"), "", 2.2, 1.6
        ),
        Figure("step of the running streams before it came", step, "ms"),
        Figure("longest gap of all rounds", _worst_gap(rounds), "ms"),
        *(
            Figure(f"newcomer's TTFT {where}", statistics.median(_ttfts(rounds, i)), "ms")
            for i, where in enumerate(("alone", "beside the streams"))
        ),
    ]


def _worst_gap(rounds: Sequence[Sequence[Summary]]) -> float:
    return max(got[2].extra["gap_during_max"] or 0.0 for got in rounds)


def _ttfts(rounds: Sequence[Sequence[Summary]], line: int) -> list[float]:
    spreads = [got[line].ttft for got in rounds]
    return [spread.p50 for spread in spreads if spread is not None]


def parser() -> argparse.ArgumentParser:
    made = options(__doc__)
    made.add_argument("--running", type=int, default=4)
    made.add_argument("--long-tokens", type=int, default=2000)
    made.add_argument("--rounds", type=int, default=3)
    return made


def main() -> int:
    args = parse(parser(), running=2, long_tokens=200, rounds=1)
    sizes = Sizes(running=args.running, long_tokens=args.long_tokens)
    with serve(starter(), "--parallel", "16", "--ctx", "4608") as server:
        rounds = measure(server, sizes, args.rounds)
    figures = figures_of(rounds, args.running)
    return conclude(figures, args, f"settings: {server.health['engine']}")


if __name__ == "__main__":
    sys.exit(main())
