"""P6, P7: sixteen requests with one long prefix, cold and warm, over the bare engine sharing cells.

The time is from the first request's start to the last one's end, at its best of the rounds, each
with a prefix of its own. The bare loop computes the prefix once and shares its cells between the
sequences, with the server's settings. Over llama-server's time as well, at its best flags.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import Figure, bare, conclude, must_be_right, options, parse, run, serve, starter
from servers import (
    Plan,
    add_llama_server,
    add_llama_variants,
    llama_server,
    llama_variants,
    missing,
)

from naiad.bench.client import Client
from naiad.bench.figures import Summary
from naiad.bench.load import Sizes
from naiad.bench.scenarios import shared_prefix

CTX = 4096
#: Tokens of a prompt that are not shared: the question, and what the chat template puts around it.
OWN_TOKENS = 24
#: Cells for each sequence of the bare loop come in so many.
CELLS = 256


def best_totals(client: Client, sizes: Sizes, rounds: int) -> tuple[dict[str, float], Summary]:
    """The shortest time of each phase, seconds, and a cold line."""
    run(shared_prefix(client, Sizes(sharers=2, prefix_tokens=64, tokens=4)))
    totals: dict[str, float] = {}
    for _ in range(rounds):
        cold, warm = map(must_be_right, run(shared_prefix(client, sizes)))
        for phase, line in (("cold", cold), ("warm", warm)):
            totals[phase] = min(line.wall_s, totals.get(phase, line.wall_s))
    return totals, cold


def bare_totals(
    model: str, engine: Mapping[str, Any], sizes: Sizes, n_prompt: int
) -> dict[str, float]:
    """The bare loop's time for the same work, seconds."""
    n_each = n_prompt + sizes.tokens
    cells = (sizes.sharers + 1) * (n_each // CELLS + 1) * CELLS
    shared = [sizes.sharers, n_prompt - OWN_TOKENS, OWN_TOKENS, sizes.tokens]
    room = ["--seqs", str(sizes.sharers + 1), "--n-ctx", str(cells)]
    flags = ["--batch", "--prefill", "--repeat", "2", "--shared", *map(str, shared)]
    got = bare(model, engine, *room, *flags)["shared"]
    return {phase: float(got[phase]["total_s"]) for phase in ("cold", "warm")}


def llama_totals(
    binary: Path, plan: Plan, sizes: Sizes, variants: Mapping[str, tuple[str, ...]]
) -> dict[str, float]:
    """llama-server's best time of each phase over its flags, each in one round."""
    best: dict[str, float] = {}
    for name, flags in variants.items():
        with llama_server(binary, plan, *flags) as client:
            totals, _ = best_totals(client, sizes, 1)
        print(f"llama-server, {name}: {totals}", file=sys.stderr)
        best = {phase: min(t, best.get(phase, t)) for phase, t in totals.items()}
    return best


def figures_of(
    ours: Mapping[str, float], ceiling: Mapping[str, float], theirs: Mapping[str, float]
) -> list[Figure]:
    """`theirs` is empty when there is no llama-server."""
    limits = {"cold": ("P6", 1.4, 1.1, 0.2, 0.11), "warm": ("P7", 1.5, 1.2, 0.25, 0.13)}
    figures = []
    for phase, (bar, most, aim, most_theirs, aim_theirs) in limits.items():
        what = f"{bar} shared prefix, {phase}: total over"
        figures.append(Figure(f"{what} bare", ours[phase] / ceiling[phase], "", most, aim))
        if theirs:
            value = ours[phase] / theirs[phase]
            figures.append(Figure(f"{what} llama-server", value, "", most_theirs, aim_theirs))
    times = {"": ours, ", bare": ceiling, ", llama-server": theirs}
    return figures + [
        Figure(f"{phase} total{who}", seconds[phase], "s")
        for phase in limits
        for who, seconds in times.items()
        if seconds
    ]


def parser() -> argparse.ArgumentParser:
    made = options(__doc__)
    add_llama_server(made)
    add_llama_variants(made)
    made.add_argument("--sharers", type=int, default=16)
    made.add_argument("--prefix-tokens", type=int, default=1700)
    made.add_argument("--tokens", type=int, default=16)
    made.add_argument("--rounds", type=int, default=2)
    return made


def main() -> int:
    args = parse(parser(), sharers=3, prefix_tokens=100, tokens=4, rounds=1)
    sizes = Sizes(sharers=args.sharers, prefix_tokens=args.prefix_tokens, tokens=args.tokens)
    model, parallel = starter(), max(16, args.sharers)
    with serve(model, "--parallel", str(parallel), "--ctx", str(CTX)) as server:
        ours, cold = best_totals(server.client(), sizes, args.rounds)
    engine = server.health["engine"]
    n_prompt = cold.prompt_tokens or args.prefix_tokens + OWN_TOKENS
    ceiling = bare_totals(model, engine, sizes, n_prompt)
    absent, theirs = missing(args.llama_server), {}
    if not absent:
        plan = Plan(model, engine["threads"], CTX, parallel)
        variants = llama_variants(engine["kv_type"], args.llama_variants)
        theirs = llama_totals(args.llama_server, plan, sizes, variants)
    remarks = [f"settings: {engine}", *([absent] if absent else [])]
    return conclude(figures_of(ours, ceiling, theirs), args, *remarks)


if __name__ == "__main__":
    sys.exit(main())
