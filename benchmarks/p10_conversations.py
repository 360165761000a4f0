"""P10: time to first token of interleaved conversations from turn 2, over llama-server's.

The same for the first turn after a restart of naiad, whose prefix has to come from the disk; it is
set against llama-server's figure without a restart. llama-server runs with its choices of pool. All
take turns, the median of each one's rounds counts, and of llama-server's medians the best.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import (
    DISK_CACHE,
    Figure,
    Server,
    conclude,
    free_port,
    must_be_right,
    options,
    parse,
    run,
    serve,
    starter,
)
from servers import Plan, add_llama_server, llama_server, missing

from naiad.bench.conversations import multi_turn, restart
from naiad.bench.figures import Summary
from naiad.bench.load import Sizes

CTX, PARALLEL = 8192, 8
FROM_TURN_2 = "multi-turn, from turn 2"
BEFORE, AFTER = "before the restart", "after the restart"
WARM_UP = Sizes(conversations=1, turns=1, tokens=4, system_tokens=10)
#: llama-server's flags that matter for conversations.
VARIANTS = (("-no-kvu",), ("-kvu", "--cache-reuse", "256"))


class Restartable:
    """naiad on one port with one disk cache, stopped and started again between two turns."""

    def __init__(self, stack: ExitStack, model: str) -> None:
        self._outer, self._model = stack, model
        folder = stack.enter_context(TemporaryDirectory(prefix="naiad-bench-"))
        self._env = {DISK_CACHE: folder}
        self._port = free_port()
        self.server = self._start()

    async def restart(self) -> None:
        """Nothing is in flight now, so the loop may as well stand still."""
        self._inner.close()
        self.server = self._start()

    def _start(self) -> Server:
        self._inner = self._outer.enter_context(ExitStack())
        flags = ("--parallel", str(PARALLEL), "--ctx", str(CTX))
        naiad = serve(self._model, *flags, port=self._port, env=self._env)
        return self._inner.enter_context(naiad)


def p50s(lines: Sequence[Summary]) -> dict[str, float]:
    """The median time to first token of each line, ms."""
    return {line.name: line.ttft.p50 for line in map(must_be_right, lines) if line.ttft}


def our_times(model: str, sizes: Sizes) -> tuple[dict[str, float], Mapping[str, Any]]:
    """Both scenarios' medians, and the settings the server ran with."""
    with ExitStack() as stack:
        naiad = Restartable(stack, model)
        client = naiad.server.client()
        run(multi_turn(client, WARM_UP))
        times = p50s(run(multi_turn(client, sizes)))
        times |= p50s(run(restart(client, replace(sizes, restart=naiad.restart))))
        return times, naiad.server.health["engine"]


def their_times(binary: Path, plan: Plan, sizes: Sizes) -> list[float]:
    """llama-server's median from turn 2 with each choice of pool, ms."""
    got = []
    for flags in VARIANTS:
        with llama_server(binary, plan, *flags) as client:
            run(multi_turn(client, WARM_UP))
            got.append(p50s(run(multi_turn(client, sizes)))[FROM_TURN_2])
    return got


def middle(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of the rounds, each figure by itself."""
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def best_variant(rounds: Sequence[Sequence[float]]) -> float | None:
    """The best of the medians of the rounds; None without any."""
    return min(map(statistics.median, zip(*rounds, strict=True)), default=None)


def figures_of(ours: dict[str, float], theirs: float | None) -> list[Figure]:
    """Without a llama-server the ratios are taken of naiad's own times, and have no bar."""
    first, later = ours["multi-turn, turn 1"], ours[FROM_TURN_2]
    times = {"TTFT of turn 1": first, "TTFT from turn 2": later, **_named(ours, theirs)}
    figures = [
        Figure("TTFT from turn 2, over turn 1's", later / first),
        Figure("TTFT after a restart, over before it", ours[AFTER] / ours[BEFORE]),
        *(Figure(name, value, "ms") for name, value in times.items()),
    ]
    if theirs is None:
        return figures
    over = [
        Figure("P10 TTFT from turn 2, over llama-server", later / theirs, "", 1.0, 0.7),
        Figure("P10 TTFT after a restart, over llama-server", ours[AFTER] / theirs, "", 2.0, 1.2),
    ]
    return over + figures


def _named(ours: dict[str, float], theirs: float | None) -> dict[str, float]:
    named = {f"TTFT {name}": ours[name] for name in (BEFORE, AFTER)}
    return named if theirs is None else named | {"TTFT from turn 2, llama-server": theirs}


def parser() -> argparse.ArgumentParser:
    made = options(__doc__)
    add_llama_server(made)
    made.add_argument("--conversations", type=int, default=6)
    made.add_argument("--turns", type=int, default=5)
    made.add_argument("--system-tokens", type=int, default=200)
    made.add_argument("--turn-tokens", type=int, default=60)
    made.add_argument("--tokens", type=int, default=48)
    made.add_argument("--rounds", type=int, default=3)
    return made


def main() -> int:
    small = {"conversations": 2, "turns": 2, "system_tokens": 20, "turn_tokens": 10, "tokens": 4}
    args = parse(parser(), **small, rounds=1)
    names = ("conversations", "turns", "system_tokens", "turn_tokens", "tokens")
    sizes = Sizes(**{name: getattr(args, name) for name in names})
    model = starter()
    absent = missing(args.llama_server)
    ours: list[dict[str, float]] = []
    theirs: list[list[float]] = []
    engine: Mapping[str, Any] = {}
    for _ in range(args.rounds):
        times, engine = our_times(model, sizes)
        ours.append(times)
        if not absent:
            plan = Plan(model, engine["threads"], CTX, PARALLEL)
            theirs.append(their_times(args.llama_server, plan, sizes))
            print(f"{times[FROM_TURN_2]:.0f} ms; llama-server {theirs[-1]}", file=sys.stderr)
    remarks = [absent] if absent else []
    return conclude(
        figures_of(middle(ours), best_variant(theirs)), args, *remarks, f"settings: {engine}"
    )


if __name__ == "__main__":
    sys.exit(main())
