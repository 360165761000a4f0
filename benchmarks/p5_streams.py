"""P5: tokens per second of 16 short unrelated streams, over llama-server's at its best.

Prompts are included. llama-server runs with the same type of KV cache and with each of its pool
layouts, and the best counts. The servers take turns, so that each has as many tries as the other:
the best of eight of one kind would beat the best of two of the same kind by chance alone. Once with
the default profile and once with the one that is made for this load.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from common import Figure, conclude, must_be_right, options, parse, run, serve, starter
from servers import (
    Plan,
    add_llama_server,
    add_llama_variants,
    llama_server,
    llama_variants,
    missing,
)

from naiad.bench.client import Client
from naiad.bench.load import Sizes
from naiad.bench.scenarios import concurrent

CTX = 4096
#: The flags of each of naiad's profiles.
PROFILES = {"default": (), "throughput": ("--profile", "throughput")}
LIMITS = {"default": (0.8, 1.0), "throughput": (1.0, 1.1)}


def rate(client: Client, sizes: Sizes) -> float:
    """Tokens per second of one round, after a short one that is not counted."""
    run(concurrent(client, Sizes(concurrency=sizes.concurrency, tokens=8)))
    (line,) = run(concurrent(client, sizes))
    return must_be_right(line).tokens_per_s


def settings_of(model: str, *flags: str) -> dict[str, Any]:
    """What a server with these flags says about its engine."""
    with serve(model, *flags) as server:
        return dict(server.health["engine"])


def compare(
    profile: str, model: str, binary: Path, sizes: Sizes, rounds: int, only: str = ""
) -> tuple[float, float, str]:
    """The best rates of both servers, and with which settings they were reached."""
    (streams,) = sizes.concurrency
    flags = ("--parallel", str(streams), "--ctx", str(CTX), *PROFILES[profile])
    ours, theirs, best = 0.0, 0.0, ""
    engine = settings_of(model, *flags)
    plan = Plan(model, engine["threads"], CTX, streams)
    for _ in range(rounds):
        for name, variant in llama_variants(engine["kv_type"], only).items():
            with serve(model, *flags) as server:
                mine = rate(server.client(), sizes)
            with llama_server(binary, plan, *variant) as client:
                got = rate(client, sizes)
            print(f"{mine:.1f} tok/s; llama-server {got:.1f} with {name}", file=sys.stderr)
            ours = max(ours, mine)
            theirs, best = max((theirs, best), (got, name))
    return ours, theirs, f"{profile} profile: {engine}; llama-server was best with: {best}"


def figures_of(profile: str, streams: int, ours: float, theirs: float) -> list[Figure]:
    what = f"{streams} streams, {profile} profile"
    ratio = Figure(
        f"P5 {what}, over llama-server", ours / theirs, "", *LIMITS[profile], at_least=True
    )
    return [
        ratio,
        Figure(f"{what}", ours, "tok/s"),
        Figure(f"{what}: llama-server", theirs, "tok/s"),
    ]


def parser() -> argparse.ArgumentParser:
    made = options(__doc__)
    add_llama_server(made)
    add_llama_variants(made)
    made.add_argument("--profiles", nargs="+", choices=list(PROFILES), default=list(PROFILES))
    made.add_argument("--streams", type=int, default=16)
    made.add_argument("--prompt-tokens", type=int, default=100)
    made.add_argument("--tokens", type=int, default=128)
    made.add_argument("--rounds", type=int, default=2)
    return made


def main() -> int:
    args = parse(parser(), streams=2, prompt_tokens=20, tokens=4, rounds=1)
    absent = missing(args.llama_server)
    if absent:
        return conclude([], args, absent)
    sizes = Sizes(concurrency=(args.streams,), tokens=args.tokens, prompt_tokens=args.prompt_tokens)
    figures, remarks, model = [], [], starter()
    for profile in args.profiles:
        ours, theirs, settings = compare(
            profile, model, args.llama_server, sizes, args.rounds, args.llama_variants
        )
        figures += figures_of(profile, args.streams, ours, theirs)
        remarks.append(settings)
    return conclude(figures, args, *remarks)


if __name__ == "__main__":
    sys.exit(main())
