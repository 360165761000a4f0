"""P11: time to first token when a conversation's oldest turns are dropped, over a plain append's.

That is what chat front ends do once the context is full: the system prompt stays, the oldest
exchange goes, and the rest moves up. The same with a new piece of lore in the middle is shown too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from common import Figure, Server, conclude, must_be_right, options, parse, run, serve, starter

from naiad.bench.conversations import trimmed_history
from naiad.bench.figures import Summary
from naiad.bench.load import Sizes


def measure(server: Server, sizes: Sizes) -> list[Summary]:
    client = server.client()
    run(trimmed_history(client, Sizes(histories=1, history_tokens=60, turn_tokens=5, tokens=4)))
    return [must_be_right(line) for line in run(trimmed_history(client, sizes))]


def figures_of(lines: Sequence[Summary]) -> list[Figure]:
    """The lines are cold, append, trimmed, and trimmed with lore."""
    times = {line.name.removeprefix("history, "): line.ttft.p50 for line in lines if line.ttft}
    append, trimmed, lore = times["append"], times["trimmed"], times["trimmed, lore"]
    return [
        Figure("P11 trimmed history's TTFT over an append's", trimmed / append, "", 1.3, 1.1),
        Figure("the same with lore in the middle", lore / append),
        Figure("trimmed history's TTFT over a cold one's", trimmed / times["cold"]),
        Figure("an append's TTFT over a cold one's", append / times["cold"]),
        *(Figure(f"TTFT, {kind}", value, "ms") for kind, value in times.items()),
    ]


def parser() -> argparse.ArgumentParser:
    made = options(__doc__)
    made.add_argument("--histories", type=int, default=3)
    made.add_argument("--history-tokens", type=int, default=1500)
    made.add_argument("--system-tokens", type=int, default=300)
    made.add_argument("--turn-tokens", type=int, default=60)
    return made


def main() -> int:
    args = parse(parser(), histories=1, history_tokens=100, system_tokens=20, turn_tokens=10)
    sizes = Sizes(
        histories=args.histories,
        history_tokens=args.history_tokens,
        system_tokens=args.system_tokens,
        turn_tokens=args.turn_tokens,
    )
    with serve(starter(), "--parallel", "16", "--ctx", "8192") as server:
        lines = measure(server, sizes)
    settings = f"settings: {server.health['engine']}"
    return conclude(figures_of(lines), args, settings)


if __name__ == "__main__":
    sys.exit(main())
